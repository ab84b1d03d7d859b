"""Several processes that train together, for tests: forked from one server that has imported what takes seconds."""

import multiprocessing
import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from torchdata.stateful_dataloader import StatefulDataLoader

from dinov3_hf.training.batches import collate

from .ports import free_port


PRELOADED = [
    "torch",
    "accelerate",
    "datasets",
    "pytest",
    "dinov3_hf.training.pretrain",
    "dinov3_hf.training.engine.loop",
]
PRELOADED += ["dinov3_hf.training.distillation", "dinov3_hf.text_alignment.alignment", "dinov3_hf.evaluation.bench"]
PRELOADED += ["dinov3_hf.pipelines.class_maps", "dinov3_hf.finetuning.adapters"]


def run_processes(work: Callable[..., None], *arguments, world: int = 2) -> None:
    """Run `work(rank, *arguments)` in processes that find each other by torch's environment variables.

    Each has one thread and its own memory. Raises what one of them raised.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    start_processes(_run, args=(world, free_port(), work, arguments), nprocs=world, start_method="forkserver")


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training's loaders fork their workers from the same server, where how they start is not what is tested.

    Not for use: those workers would outlive a training process that is killed.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)

    class Loader(StatefulDataLoader):
        def __init__(self, *arguments: object, multiprocessing_context: str | None, **options: object):
            context = multiprocessing_context and "forkserver"
            super().__init__(*arguments, multiprocessing_context=context, **options)

    monkeypatch.setattr(collate, "StatefulDataLoader", Loader)


def _run(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    work(rank, *arguments)
    if dist.is_initialized():
        dist.destroy_process_group()
