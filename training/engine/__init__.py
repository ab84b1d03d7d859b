"""The loop and what it alone knows: processes, devices, precision, sharding, checkpoints."""
