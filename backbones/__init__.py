"""Backbones: one architecture family per file, found by file name."""
