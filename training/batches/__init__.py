"""Batches of a step, each a function of (seed, step, place in the global batch)."""
