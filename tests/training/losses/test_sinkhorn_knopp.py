"""Sinkhorn-Knopp over the whole range of logits, against the same iterations in fp64 logarithms."""

import pytest
import torch

from dinov3_hf.training.losses import sinkhorn_knopp


def in_logs(logits, temperature, num_iterations=3):
    logs = logits.double() / temperature
    for _ in range(num_iterations):
        logs = logs - logs.logsumexp(0, keepdim=True)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp().float()


@pytest.mark.parametrize("scale, tolerance", [(0.1, 1e-5), (1.0, 1e-5), (3.0, 1e-5), (8.0, 1e-5), (50.0, 1e-4)])
@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_equals_the_iterations_in_logs_at_every_scale(shape, scale, tolerance):
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        logits = torch.randn(shape, generator=generator) * scale
        torch.testing.assert_close(sinkhorn_knopp(logits, 0.05), in_logs(logits, 0.05), rtol=0, atol=tolerance)


@pytest.mark.parametrize("gap", [80.0, 95.0, 120.0, 1e4])
def test_a_prototype_used_only_by_a_row_far_below_the_others_is_kept(gap):
    """exp(-95) is subnormal and its inverse overflows; exp(-120) is zero: neither may lose the row."""
    logits = torch.tensor([[0.0, -2e4], [-2e4, -gap]])
    torch.testing.assert_close(sinkhorn_knopp(logits, 1.0), torch.eye(2))


def test_logits_stay_as_they_were():
    logits = torch.randn(8, 4)
    before = logits.clone()
    sinkhorn_knopp(logits, 1.0)
    assert torch.equal(logits, before)
