"""Evaluation protocols for frozen features: one file a protocol, each with an untrained twin and raw pixels beside."""
