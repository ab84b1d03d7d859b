"""Estimates of the memory, time and cost of a recipe before it is run."""
