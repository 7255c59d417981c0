"""Programs that measure which training examples a network memorizes."""
