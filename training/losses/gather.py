"""Gathering of the rows of all processes, with gradients back to the process of each row."""

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives


def gather_rows(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Gather every process's [B, D] to [W * B, D], by rank; the gradient of a row is summed over processes."""
    # torch's public `nn.functional.all_gather` is deprecated in favour of this function.
    rows = _functional_collectives.all_gather_single_autograd(tensor.contiguous(), 0, group)
    return _functional_collectives.wait_tensor(rows)
