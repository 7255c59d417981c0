"""Ideas that several methods share, as functions."""
