"""Sinkhorn-Knopp centring of the teacher's logits (SwAV, section 3.1; DINOv3, section 3.2)."""

import torch
import torch.distributed as dist


@torch.no_grad()
def sinkhorn_knopp(
    logits: torch.Tensor, temperature: float, num_iterations: int = 3, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Turn teacher logits [N, K] into assignments that use all prototypes equally; every row sums to 1, in fp32.

    With a process group, sums are taken over the rows of all its processes, which may have different numbers of rows.
    """

    def reduced(value: torch.Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> torch.Tensor:
        if group is not None:
            dist.all_reduce(value, op=operation, group=group)
        return value

    logits = logits.float() / temperature
    # The first normalisation over the prototypes is done in logarithms, relative to the maximum of each prototype.
    # Without a maximum exp would overflow; with a common maximum, rows far below it would underflow, and prototypes
    # used only by them would get a sum of 0. Later sums cannot be 0: the largest of the N shares of a
    # prototype is at least 1 / N, and at least 1 / (N K) after rows are normalised.
    largest = logits.amax(dim=0, keepdim=True) if len(logits) else logits.new_full((1, logits.shape[1]), -torch.inf)
    logits.sub_(reduced(largest, dist.ReduceOp.MAX))
    assignments = logits.sub_(reduced(logits.exp().sum(dim=0, keepdim=True)).log_()).softmax(dim=1)
    for _ in range(num_iterations - 1):
        assignments /= reduced(assignments.sum(dim=0, keepdim=True))
        assignments /= assignments.sum(dim=1, keepdim=True)
    return assignments
