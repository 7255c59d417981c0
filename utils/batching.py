"""Batching: how many images a forward pass without gradients takes at once."""

# Images per forward pass: enough to fill a device, little enough for a wide network's activations.
CHUNK = {"cpu": 500, "cuda": 2000}
