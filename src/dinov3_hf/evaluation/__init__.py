"""Evaluation protocols for frozen features, one file each; baselines are random weights and raw pixels."""
