"""Training: the loop through a stream of tasks, evaluation, optimizers, and what it drives (ports)."""
