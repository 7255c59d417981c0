"""Metrics: the accuracy matrix R with what is computed from it, and statistics over seeds."""
