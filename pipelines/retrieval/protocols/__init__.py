"""Benchmarks as declared objects: one small file a family."""
