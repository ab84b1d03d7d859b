"""Sinkhorn-Knopp centring of the teacher's logits (SwAV, section 3.1; DINOv3, section 3.2)."""

import torch
import torch.distributed as dist


@torch.no_grad()
def sinkhorn_knopp(
    logits: torch.Tensor, temperature: float, num_iterations: int = 3, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Turn teacher logits [N, K] into assignments that use all prototypes equally; every row sums to 1, in fp32.

    With a process group the sums run over the rows of all its processes, which may hold different numbers of rows.
    """

    def reduced(value: torch.Tensor, operation=dist.ReduceOp.SUM) -> torch.Tensor:
        if group is not None:
            dist.all_reduce(value, op=operation, group=group)
        return value

    logits = logits.float() / temperature
    # Each row is scaled by its own maximum, so that none underflows, and keeps its place among the others in `weights`:
    # after the first pass over the prototypes every row sums to 1 and the scale is gone.
    row_max = logits.amax(dim=1, keepdim=True)
    largest = row_max.max() if row_max.numel() else row_max.new_tensor(-torch.inf)
    weights = (row_max - reduced(largest.reshape(1), dist.ReduceOp.MAX)).exp_()
    assignments = (logits - row_max).exp_()
    for iteration in range(num_iterations):
        weighted = assignments * weights if iteration == 0 else assignments
        per_prototype = reduced(weighted.sum(dim=0, keepdim=True))
        # A prototype that no row uses has a sum of zero: it keeps its zeros.
        assignments /= torch.where(per_prototype > 0, per_prototype, 1.0)
        assignments /= assignments.sum(dim=1, keepdim=True)
    return assignments
