"""Schedules against the published vectors."""

import json
from pathlib import Path

import numpy as np
import pytest

from dinov3_hf.training.arguments import OptimizationArguments
from dinov3_hf.training.schedules import Schedules, warmup_cosine


GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "schedules.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["linear_warmup_cosine_decay"], ids=lambda case: str(case["kwargs"]))
def test_golden(case):
    given = case["kwargs"]
    warmup, total = given["warmup_iterations"], given["total_iterations"]
    cosine = given.get("cosine_iterations", total - warmup)
    values = warmup_cosine(given["start"], given["peak"], given["end"], warmup, cosine, total)
    assert values.shape == (total,)
    np.testing.assert_allclose(values, case["values"], rtol=1e-9, atol=1e-12)


def test_golden_run():
    """A whole run's schedules: 3 "epochs" of warm-up of 3 steps each, and so on, at batch 64 (a scale of 1)."""
    golden = GOLDEN["build_schedulers_v2_world1_bs64"]
    arguments = OptimizationArguments(
        steps=30, lr=1e-3, lr_end=1e-6, lr_warmup_steps=6, freeze_last_layer_steps=3, weight_decay=0.04,
        momentum=0.994, momentum_end=1.0, teacher_temperature_start=0.04, teacher_temperature=0.07,
        teacher_temperature_warmup_steps=9,
    )  # fmt: skip
    schedules = Schedules(arguments, global_batch_size=64)
    names = {"lr": "lr", "wd": "weight_decay", "momentum": "momentum", "teacher_temp": "teacher_temperature"}
    for theirs, ours in {**names, "last_layer_lr": "last_layer_lr"}.items():
        found = [schedules.values_at(step)[ours] for step in range(30)]
        np.testing.assert_allclose(found, golden[theirs], rtol=1e-9, atol=1e-12, err_msg=ours)


def test_learning_rate_scales_with_the_root_of_the_global_batch():
    arguments = OptimizationArguments(steps=4, lr=1e-3, lr_warmup_steps=0)
    assert Schedules(arguments, 2048).values_at(0)["lr"] == pytest.approx(1e-3 * 4 * 2**0.5)
    arguments.lr_scaling = "none"
    assert Schedules(arguments, 2048).values_at(0)["lr"] == 1e-3


def test_constant_without_an_end_and_past_the_end():
    schedules = Schedules(OptimizationArguments(steps=10, lr=2.0, lr_scaling="none", lr_warmup_steps=4), 64)
    assert [schedules.values_at(step)["lr"] for step in (0, 2, 4, 9, 10, 99)] == [0.0, 1.0, 2.0, 2.0, 2.0, 2.0]
