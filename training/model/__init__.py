"""The models: importable with torch, transformers and numpy alone. Importing it tells the Auto classes."""

from training.model.auto import register

register()
