"""Tracking: what a run reports to MLflow, and stores of older versions."""
