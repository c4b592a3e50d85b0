"""Where it runs and the floor everyone stands on: base, operations, command line."""
