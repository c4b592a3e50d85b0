"""The models: importable with torch, transformers and numpy alone. On import AutoConfig and AutoModel learn of them."""

from training.model.auto import register

register()
