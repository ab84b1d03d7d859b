"""Several processes that train together, for tests: forked from one server that has imported what takes seconds."""

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes


PRELOADED = [
    "torch",
    "accelerate",
    "datasets",
    "pytest",
    "dinov3_hf.training.pretrain",
    "dinov3_hf.training.engine.loop",
]
PRELOADED += ["dinov3_hf.training.distillation", "dinov3_hf.text_alignment.alignment"]


def run_processes(work: Callable[..., None], *arguments, world: int = 2) -> None:
    """Run `work(rank, *arguments)` in processes that find each other by torch's environment variables.

    Each has one thread and its own memory. Raises what one of them raised.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_run, args=(world, port, work, arguments), nprocs=world, start_method="forkserver")


def _run(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    work(rank, *arguments)
    if dist.is_initialized():
        dist.destroy_process_group()
