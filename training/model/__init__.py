"""AdaFocal: importable with torch, transformers and numpy alone."""
