"""Benchmarks of what the template makes: `python -m tests.bench`."""
