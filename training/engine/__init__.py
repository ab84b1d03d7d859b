"""The training loop, and everything about processes, devices, precision, sharding and checkpoints."""
