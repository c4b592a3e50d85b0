"""Configuration, storage, versions, errors, progress: the floor that every room stands on."""
