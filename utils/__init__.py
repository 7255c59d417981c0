"""The machinery: configuration, training, evaluation, metrics, buffers, tracking."""
