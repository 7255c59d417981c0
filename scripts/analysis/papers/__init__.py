"""One file for each paper whose tables stand beside its published numbers."""
