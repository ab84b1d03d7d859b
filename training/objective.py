"""The interface between a training objective and the training loop.

Pretraining (`self_distillation.py`), distillation (`distillation.py`) and text alignment are three objectives trained
by the same loop. The loop handles processes, devices, precision and checkpoints; an objective owns the networks and
their losses, and knows about processes only through the process groups that it is given.
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
    """The loss to minimise, a scalar, and metrics such as its unweighted parts, fp32 scalars."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


class Objective(nn.Module):
    """Base class of training objectives: one module that owns every network of a run.

    Subclasses implement the methods that raise NotImplementedError. Every child must be called only through its own
    `__call__`, because FSDP2 shards it as one unit.

    Attributes:
        shown_metrics: names of the metrics shown in the progress bar.
        process_group: all processes, whose batches form the global batch; None for a single process.
        group: the processes that train the same networks as this one; None for a single process.
    """

    shown_metrics: tuple[str, ...] = ()

    def __init__(self):
        super().__init__()
        self.process_group: dist.ProcessGroup | None = None
        self.group: dist.ProcessGroup | None = None

    # Called by the loop before training.

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks that this process trains, by name; the gradient of each is clipped separately."""
        raise NotImplementedError

    def frozen_networks(self) -> dict[str, nn.Module]:
        """Return the networks without gradients (teachers, moving averages), which are always in eval mode."""
        raise NotImplementedError

    def process_groups(self) -> Sequence[Sequence[int]] | None:
        """Return the ranks of each group of processes with its own networks; None if all train all networks."""
        return None

    def spanning_networks(self) -> tuple[str, ...]:
        """Return the names of children that are sharded over all processes, even if there are groups."""
        return ()

    def join(self, process_group: dist.ProcessGroup, group: dist.ProcessGroup) -> None:
        """Set the process groups, which the loop creates; called once, only with several processes."""
        self.process_group, self.group = process_group, group

    # Called by the loop in every step, in this order.

    def before_step(self, step: int) -> None:
        """Prepare a step (counted from 0); does nothing by default."""

    def forward(self, batch: Mapping[str, torch.Tensor], values: Mapping[str, float]) -> ObjectiveOutput:
        """Compute the loss of a batch with the scheduled values of this step."""
        raise NotImplementedError

    def after_step(self, step: int, values: Mapping[str, float]) -> None:
        """Update moving averages and teachers after an optimizer step; not called if the step was skipped."""
        raise NotImplementedError

    # Called by the loop to save.

    def part_of(self, name: str) -> str:
        """Return the part of a checkpoint (a separate folder) to which the tensor of this name belongs."""
        return ""

    def export(self, directory: Path) -> Path | list[Path]:
        """Write the exported models and return their paths; all processes must call it, the first one writes."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Objective":
        super().train(mode)
        for network in self.frozen_networks().values():
            network.eval()
        return self


def local(parameter: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a sharded parameter, or the parameter itself."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
