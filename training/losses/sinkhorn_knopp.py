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
    # The first pass over the prototypes runs in logs, relative to each prototype's own maximum: exp overflows without one,
    # and with a maximum shared by all, rows far below it underflow and take the prototypes that only they use with them.
    # No later sum vanishes: the largest of N shares of a prototype is at least 1 / N, and 1 / (N K) once rows sum to 1.
    largest = logits.amax(dim=0, keepdim=True) if len(logits) else logits.new_full((1, logits.shape[1]), -torch.inf)
    logits.sub_(reduced(largest, dist.ReduceOp.MAX))
    assignments = logits.sub_(reduced(logits.exp().sum(dim=0, keepdim=True)).log_()).softmax(dim=1)
    for _ in range(num_iterations - 1):
        assignments /= reduced(assignments.sum(dim=0, keepdim=True))
        assignments /= assignments.sum(dim=1, keepdim=True)
    return assignments
