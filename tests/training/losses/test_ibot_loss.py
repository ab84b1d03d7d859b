"""Precision of the patch objective: fp32 inside, whatever comes in and whatever autocast is on."""

import pytest
import torch

from dinov3_hf.training.losses import ibot_loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_computes_in_fp32(dtype, autocast):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 64, generator=generator).to(dtype).requires_grad_()
    teacher = torch.randn(6, 64, generator=generator).softmax(-1)
    weights = torch.tensor([0.5, 0.5, 1.0, 1 / 3, 1 / 3, 1 / 3])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = ibot_loss(student, teacher, weights, 4)
    value.backward()
    logits, scale = student.detach().double() / 0.1, weights.double() / 4
    expected = -(scale * (teacher.double() * logits.log_softmax(-1)).sum(-1)).sum()
    slope = scale[:, None] * (logits.softmax(-1) - teacher.double()) / 0.1
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-6, atol=0)
    rounding = 4e-3 if dtype == torch.bfloat16 else 1e-5
    assert (student.grad.double() - slope).abs().max() <= rounding * slope.abs().max()
