"""Benchmarks of a checkout; not part of what is installed."""
