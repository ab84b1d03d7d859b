"""Gram loss against the published values and a naive version, in value and gradient."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from dinov3_hf.training.losses import gram_loss, resize_patches


GOLDEN = Path(__file__).parents[2] / "data" / "gram.safetensors"
CLAMPS = {None: "none", "both": "remove_neg", "teacher": "remove_only_teacher_neg"}


def naive(student, teacher, normalize, per_image, clamp):
    """Sum over every pair of patches, one pair at a time."""
    if not per_image:
        student, teacher = student.flatten(0, 1)[None], teacher.flatten(0, 1)[None]
    total, count = 0, 0
    for image_s, image_t in zip(student, teacher, strict=True):
        for i, j in itertools.product(range(len(image_s)), repeat=2):
            pair = []
            for image in (image_s, image_t):
                a, b = image[i], image[j]
                pair.append(a @ b / ((a.norm() * b.norm()) if normalize else 1))
            s, t = pair
            if clamp is not None:
                t = t.clamp(min=0)
            if clamp == "both":
                s = s.clamp(min=0)
            total, count = total + (s - t) ** 2, count + 1
    return total / count


@pytest.mark.parametrize("normalize, per_image, clamp", list(itertools.product((True, False), (True, False), CLAMPS)))
def test_golden_and_naive(normalize, per_image, clamp):
    with safe_open(GOLDEN, "pt") as file:
        name = f"norm{int(normalize)}_img{int(per_image)}_{CLAMPS[clamp]}"
        expected, gradient = file.get_tensor(f"{name}/loss"), file.get_tensor(f"{name}/grad")
        student, teacher = file.get_tensor("student").requires_grad_(), file.get_tensor("teacher")
        assert expected.item() == pytest.approx(json.loads(file.metadata()["meta"])[name])
    for function, tolerance in ((gram_loss, 1e-6), (naive, 1e-5)):
        loss = function(student, teacher, normalize, per_image, clamp)
        (found,) = torch.autograd.grad(loss, student)
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
        assert (found - gradient).norm() <= tolerance * gradient.norm()


def test_golden_of_one_flat_set_of_patches():
    with safe_open(GOLDEN, "pt") as file:
        expected, gradient = file.get_tensor("flat2d_rows11/loss"), file.get_tensor("flat2d_rows11/grad")
        student, teacher = (file.get_tensor(name).flatten(0, 1)[:11] for name in ("student", "teacher"))
    student.requires_grad_()
    loss = gram_loss(student, teacher, per_image=False)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (student.grad - gradient).norm() <= 1e-6 * gradient.norm()


def test_widths_may_differ_and_the_teacher_gets_no_gradient():
    student, teacher = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 12, requires_grad=True)
    gram_loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_runs_in_fp32_under_autocast():
    student, teacher = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gram_loss(student, teacher)
    assert inside.dtype == torch.float32 and inside.item() == gram_loss(student, teacher).item()


def test_resizing_keeps_places_on_grids_that_are_not_square():
    """A map that grows along one axis only stays so: rows and columns are not mixed up."""
    height, width = 4, 8
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(8.0), indexing="ij")
    patches = torch.stack([rows, columns], dim=-1).reshape(1, height * width, 2)
    small = resize_patches(patches, (height, width), (2, 4)).reshape(2, 4, 2)
    assert torch.allclose(small[:, :, 0].std(dim=1), torch.zeros(2), atol=1e-5)
    assert torch.allclose(small[:, :, 1].std(dim=0), torch.zeros(4), atol=1e-5)
    assert (small[:, :, 0].diff(dim=0) > 1).all() and (small[:, :, 1].diff(dim=1) > 1).all()
    assert resize_patches(patches, (4, 8), (4, 8)) is patches
    expected = F.interpolate(patches.transpose(1, 2).reshape(1, 2, 4, 8), size=(2, 4), mode="bicubic")
    assert torch.equal(small, expected[0].permute(1, 2, 0))
