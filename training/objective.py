"""The contract of a training objective: what the loop may call, and what it may set.

Pretraining (`self_distillation.py`), distillation (`distillation.py`) and text alignment are three objectives of one loop.
The loop knows processes, devices, precision and checkpoints and nothing of losses; an objective owns its networks and
their losses and knows nothing of processes but the groups that it is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor


@dataclass
class ObjectiveOutput:
    """The loss to minimise, a scalar, and its unweighted parts and whatever else tells of the step, fp32 scalars."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


class Objective(nn.Module):
    """One module that owns every network of a training. Subclasses implement what raises NotImplementedError here.

    Every child is a network that is entered through its own `__call__` alone, since FSDP2 shards it as one.

    Attributes:
        shown_metrics: names of metrics that the progress bar shows.
        process_group: all processes, whose batches make the global batch; None for one alone.
        group: those that train the same networks as this process; None for one alone.
    """

    shown_metrics: tuple[str, ...] = ()

    def __init__(self):
        super().__init__()
        self.process_group: dist.ProcessGroup | None = None
        self.group: dist.ProcessGroup | None = None

    # What the loop asks before training.

    def networks(self) -> dict[str, nn.Module]:
        """Return what this process trains, by name; the gradient of each is clipped by itself."""
        raise NotImplementedError

    def frozen_networks(self) -> dict[str, nn.Module]:
        """Return what only follows or stands still (teachers, moving averages): always in eval mode."""
        raise NotImplementedError

    def process_groups(self) -> Sequence[Sequence[int]] | None:
        """Return the ranks of each group of processes that trains networks of its own, None where all train all."""
        return None

    def spanning_networks(self) -> tuple[str, ...]:
        """Return the names of children that are sharded over all processes, whatever the groups."""
        return ()

    def join(self, process_group: dist.ProcessGroup, group: dist.ProcessGroup) -> None:
        """Be told the processes of the run; the loop, which alone creates groups, calls it once where there are several."""
        self.process_group, self.group = process_group, group

    # What the loop calls in every step, in this order.

    def before_step(self, step: int) -> None:
        """Prepare the step of this number, counted from 0; by default there is nothing to prepare."""

    def forward(self, batch: Mapping[str, torch.Tensor], values: Mapping[str, float]) -> ObjectiveOutput:
        """Compute the loss of a batch with the scheduled numbers of this step."""
        raise NotImplementedError

    def after_step(self, step: int, values: Mapping[str, float]) -> None:
        """Follow the optimizer's step: move averages, refresh teachers. Not called where a step was not applied."""
        raise NotImplementedError

    # What the loop calls to save.

    def part_of(self, name: str) -> str:
        """Return the part of a checkpoint, a folder of its own, that the tensor of this name belongs to."""
        return ""

    def export(self, directory: Path) -> Path | list[Path]:
        """Write the usable model or models; every process calls it, the first one writes."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Objective":
        super().train(mode)
        for network in self.frozen_networks().values():
            network.eval()
        return self


def local(parameter: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a sharded parameter, or the parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
