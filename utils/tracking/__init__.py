"""Tracking: MLflow."""
