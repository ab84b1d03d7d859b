"""Training batches, which depend only on the seed, the step and the position in the global batch."""
