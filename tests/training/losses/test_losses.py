"""Losses against the published system's numbers, and against naive loops in value and gradient."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from dinov3_hf.training.losses import dino_loss, ibot_loss, koleo_loss, sinkhorn_knopp


DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def dino():
    return load_file(DATA / "dino.safetensors")


@pytest.fixture(scope="module")
def ibot():
    return load_file(DATA / "ibot.safetensors")


def close(value, expected, tolerance=1e-5):
    assert (value - expected).abs().max() <= tolerance * expected.abs().max()


def value_and_gradient(loss, x, *arguments, **options):
    x = x.clone().requires_grad_()
    value = loss(x, *arguments, **options)
    value.backward()
    return value.detach(), x.grad


# Sinkhorn-Knopp


@pytest.mark.parametrize(
    "temperature, iterations, name", [(0.04, 3, "0.04"), (0.07, 3, "0.07"), (0.07, 1, "0.07_iter1")]
)
def test_sinkhorn_golden(dino, temperature, iterations, name):
    result = sinkhorn_knopp(dino["teacher_logits"].flatten(0, 1), temperature, iterations)
    close(result, dino[f"sinkhorn_temp{name}"])


def test_sinkhorn_golden_bf16(dino):
    close(sinkhorn_knopp(dino["teacher_logits"].flatten(0, 1).bfloat16(), 0.07), dino["sinkhorn_bf16in_temp0.07"])


def test_sinkhorn_rows_sum_to_one_and_prototypes_are_used_equally():
    logits = torch.randn(64, 16)
    result = sinkhorn_knopp(logits, 0.5, num_iterations=50)
    close(result.sum(1), torch.ones(64))
    close(result.sum(0), torch.full((16,), 4.0), 1e-3)
    assert result.dtype == torch.float32


def test_sinkhorn_survives_huge_logits_and_no_rows():
    result = sinkhorn_knopp(torch.randn(8, 4) * 1e4, 0.05)
    assert torch.isfinite(result).all()
    close(result.sum(1), torch.ones(8))
    assert sinkhorn_knopp(torch.empty(0, 4), 0.05).shape == (0, 4)


# Image loss


@pytest.mark.parametrize(
    "name, crops, ignore",
    [
        ("global_all_pairs", "global", False),
        ("global_ignore_diag", "global", True),
        ("local", "local", False),
        ("local_ignore_diag_rect", "local", True),
    ],
)
def test_dino_golden(dino, name, crops, ignore):
    value, gradient = value_and_gradient(
        dino_loss, dino[f"student_logits_{crops}"], dino["teacher_probs"], ignore_diagonal=ignore
    )
    close(value, dino[f"loss_{name}"])
    close(gradient, dino[f"grad_{name}"], 1e-4)


def test_dino_golden_bf16(dino):
    close(dino_loss(dino["student_logits_local"].bfloat16(), dino["teacher_probs"]), dino["loss_local_bf16in"])


@pytest.mark.parametrize("ignore", [False, True])
def test_dino_naive_loop(ignore):
    student, teacher = torch.randn(3, 5, 7), torch.randn(2, 5, 7).softmax(-1)

    def naive(student):
        total, pairs = 0.0, 0
        for s in range(3):
            for t in range(2):
                if ignore and s == t:
                    continue
                pairs += 1
                for b in range(5):
                    total = total - (teacher[t, b] * torch.log(torch.softmax(student[s, b] / 0.2, -1))).sum()
        return total / (5 * pairs)

    value, gradient = value_and_gradient(dino_loss, student, teacher, 0.2, ignore)
    expected, expected_gradient = value_and_gradient(naive, student)
    close(value, expected)
    close(gradient, expected_gradient)


# Patch loss


def test_ibot_golden(ibot):
    value, gradient = value_and_gradient(
        ibot_loss, ibot["student_logits"], ibot["teacher_probs"], ibot["masks_weight"], 4
    )
    close(value, ibot["loss_masked_std"])
    close(gradient, ibot["grad_masked_std"], 1e-4)


def test_ibot_equals_the_dense_form(ibot):
    """Masked rows of the dense tensors, weighted by one over each crop's masked patches."""
    masks = ibot["masks"]
    weights = (1 / masks.sum(-1, keepdim=True).clamp(min=1)).expand(masks.shape)[masks]
    value = ibot_loss(ibot["dense_student_logits"][masks], ibot["dense_teacher_probs"][masks], weights, len(masks))
    close(value, ibot["loss_dense"])


def test_ibot_naive_loop():
    student, teacher = torch.randn(6, 7), torch.randn(6, 7).softmax(-1)
    weights = torch.tensor([0.5, 0.5, 1.0, 1 / 3, 1 / 3, 1 / 3])

    def naive(student):
        total = 0.0
        for row in range(6):
            total = total - weights[row] * (teacher[row] * torch.log(torch.softmax(student[row] / 0.1, -1))).sum()
        return total / 4

    value, gradient = value_and_gradient(ibot_loss, student, teacher, weights, 4)
    expected, expected_gradient = value_and_gradient(naive, student)
    close(value, expected)
    close(gradient, expected_gradient)


def test_ibot_without_masked_patches_is_zero_with_a_gradient():
    value, gradient = value_and_gradient(ibot_loss, torch.empty(0, 7), torch.empty(0, 7), torch.empty(0), 4)
    assert value == 0 and gradient.shape == (0, 7)


# KoLeo


def naive_koleo(features, topk=1, eps=1e-8):
    x, total = normalize(features, eps=eps), 0.0
    for i in range(len(x)):
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -(x[i] @ x[j]).item())[:topk]
        for j in others:
            total = total - torch.log((((x[i] - x[j] + eps) ** 2).sum()).sqrt() + eps)
    return total / (len(x) * topk)


@pytest.mark.parametrize("topk", [1, 3])
def test_koleo_naive_loop(topk):
    features = torch.randn(9, 6)
    value, gradient = value_and_gradient(koleo_loss, features, topk)
    expected, expected_gradient = value_and_gradient(naive_koleo, features, topk)
    close(value, expected)
    close(gradient, expected_gradient, 1e-4)


def test_koleo_gives_gradient_to_both_ends():
    """Row 0 is the neighbour of rows 1 and 2 but has one of its own: its gradient differs from a one-sided one."""
    features = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])
    _, gradient = value_and_gradient(koleo_loss, features)
    x = features.clone().requires_grad_()
    unit = normalize(x, eps=1e-8)
    one_sided = -torch.log((unit - unit.detach()[[1, 0, 0]]).norm(dim=1)).mean()
    one_sided.backward()
    assert (gradient - x.grad).abs().max() > 1e-2


def test_koleo_of_one_image_is_zero_with_a_warning():
    with pytest.warns(UserWarning, match="at least two images"):
        value, gradient = value_and_gradient(koleo_loss, torch.randn(1, 6))
    assert value == 0 and (gradient == 0).all()


def test_koleo_of_duplicates_is_finite_and_runs_in_fp32():
    features = torch.randn(1, 6).expand(4, 6).contiguous()
    value, gradient = value_and_gradient(koleo_loss, features)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    with torch.autocast("cpu", torch.bfloat16):
        close(
            koleo_loss(features.bfloat16() + torch.eye(4, 6)),
            koleo_loss((features.bfloat16() + torch.eye(4, 6)).float()),
            1e-6,
        )
