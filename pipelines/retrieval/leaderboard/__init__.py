"""Evaluations of any number of models and benchmarks as tables in order: a page, Markdown and CSV."""
