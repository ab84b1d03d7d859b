"""No test asks a network for anything, and each of the processes that run tests has one core."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Several processes with a thread for every core each would wait for one another. `-n 0` runs tests in one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
