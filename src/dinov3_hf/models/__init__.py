"""Networks, configurations and processors, in a flat folder because saved models carry these files as remote code."""
