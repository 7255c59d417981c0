"""Sweeps: many runs, from a specification, in processes here or on a cluster."""
