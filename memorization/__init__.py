"""Programs that measure which training examples a network memorizes; `python -m memorization` lists them."""
