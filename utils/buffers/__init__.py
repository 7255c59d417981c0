"""Buffers: memories of samples, and rules that select what they hold."""
