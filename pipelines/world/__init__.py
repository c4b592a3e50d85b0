"""The procedural world: looks, scenes and texts with exact truth."""
