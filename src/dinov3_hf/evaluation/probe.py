"""The training loop of a head on frozen features: one-cycle schedule, progress bar, and resumable checkpoints."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..errors import Failed
from ..terminal import progress_bar


# The paper warms its dense heads up over 1500 of 40000 steps (section 6.1.2).
WARMUP_SHARE = 1500 / 40000
SAVE_SECONDS = 30


def train_probe(
    head: nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    checkpoint: Path | None = None,
    warmup_share: float = WARMUP_SHARE,
    description: str = "head",
    progress: bool = True,
) -> None:
    """Train `head` in place on `loss_at(step)`; the optimizer's learning rates are the peaks of a one-cycle schedule.

    `loss_at` must draw its batch from the step's number alone: a run resumed from `checkpoint` (written every half
    minute and at the end) then repeats the steps since the last save exactly. Raises `Failed` if the loss is not
    finite.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=max(steps, 2), pct_start=warmup_share, cycle_momentum=False
    )
    parts, first = {"head": head, "optimizer": optimizer, "schedule": schedule}, 0
    if checkpoint is not None and checkpoint.is_file():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["step"]

    def save(step: int) -> None:
        if checkpoint is None:
            return
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_name(f"{checkpoint.name}.{os.getpid()}")
        torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial)
        partial.rename(checkpoint)

    head.train()
    saved_at = time.monotonic()
    bar = progress_bar(range(first, steps), desc=description, initial=first, total=steps, disable=not progress)
    for step in bar:
        loss = loss_at(step)
        if not loss.isfinite():
            raise Failed(f"{description}: the loss is {loss.item()} at step {step}, accepted: a finite loss")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.monotonic() - saved_at > SAVE_SECONDS:
            save(step + 1)
            saved_at = time.monotonic()
    if first < steps:
        save(steps)
    head.eval()


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a step's random draws; it depends only on `seed` and `step`, so that runs can resume."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
