"""Benchmarks: speed as ratios that are measured in one run."""
