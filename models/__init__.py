"""Continual-learning methods: one paper per file, found by file name."""
