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
    # Subtracting one global maximum changes nothing but keeps exp from overflowing.
    largest = logits.max() if logits.numel() else logits.new_tensor(-torch.inf)
    assignments = (logits - reduced(largest.reshape(1), dist.ReduceOp.MAX)).exp_()
    assignments /= reduced(assignments.sum().reshape(1))
    for _ in range(num_iterations):
        # A prototype that no row uses at all has a sum of zero: it keeps its zeros.
        per_prototype = reduced(assignments.sum(dim=0, keepdim=True))
        assignments /= torch.where(per_prototype > 0, per_prototype, 1.0)
        assignments /= assignments.sum(dim=1, keepdim=True)
    return assignments
