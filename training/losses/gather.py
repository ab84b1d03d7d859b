"""Rows of all processes in one tensor, through which gradients flow back to where each row came from."""

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives


def gather_rows(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return [W * B, D] of every process's [B, D], rank by rank; the gradient of a row is summed over processes."""
    # torch's public `nn.functional.all_gather` is deprecated in favour of this one.
    rows = _functional_collectives.all_gather_single_autograd(tensor.contiguous(), 0, group)
    return _functional_collectives.wait_tensor(rows)
