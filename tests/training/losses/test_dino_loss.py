"""Precision of the image objective: fp32 inside, whatever comes in and whatever autocast is on."""

import pytest
import torch

from dinov3_hf.training.losses import dino_loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_computes_in_fp32(dtype, autocast):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, 64, generator=generator).to(dtype).requires_grad_()
    teacher = torch.randn(2, 4, 64, generator=generator).softmax(-1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = dino_loss(student, teacher)
    # Outside autocast, as in the loop: inside, the backward product would run in half precision.
    value.backward()
    logits = student.detach().double() / 0.1
    expected = -(teacher.double() * logits[:, None].log_softmax(-1)).sum(-1).mean()
    # Mean over crops and images of softmax(s / .1) - t, divided by the temperature.
    slope = (logits.softmax(-1) - teacher.double().mean(0)) / (0.1 * 3 * 4)
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-6, atol=0)
    rounding = 4e-3 if dtype == torch.bfloat16 else 1e-5
    assert (student.grad.double() - slope).abs().max() <= rounding * slope.abs().max()
