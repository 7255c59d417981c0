"""Runs: the directory of a run, its record, and everything that is written about it."""
