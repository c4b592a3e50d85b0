"""Ranking engine, evaluation, query and report."""
