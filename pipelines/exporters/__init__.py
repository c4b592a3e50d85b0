"""A dataset version in layouts that others read, one file each."""
