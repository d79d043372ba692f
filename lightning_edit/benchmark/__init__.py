"""Benchmarks: run grids of methods, models, data and protocols, and tabulate the results."""
