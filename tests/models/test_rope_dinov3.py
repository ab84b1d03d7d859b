from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinov3_hf import Dinov3Config
from dinov3_hf.models import rope_dinov3
from dinov3_hf.models.rope_dinov3 import (
    Dinov3RotaryEmbedding,
    RopeAugmentation,
    apply_rotary,
    patch_coordinates,
    rope_angles,
    rope_periods,
    rotary_table,
)


GOLDEN = load_file(Path(__file__).parents[1] / "data" / "rope.safetensors")
TABLES = sorted({name.rsplit("/", 1)[0] for name in GOLDEN if name.startswith("base100") and name.count("/") == 3})


@pytest.mark.parametrize("name", TABLES)
def test_tables_match_the_published_system(name):
    family, coords, grid = name.split("/")
    height, width = map(int, grid.split("x"))
    periods = rope_periods(int(family.split("_hd")[1]), 100.0)
    angles = rope_angles(patch_coordinates(height, width, coords), periods)
    torch.testing.assert_close(angles.cos(), GOLDEN[f"{name}/cos"], atol=2e-5, rtol=0)
    torch.testing.assert_close(angles.sin(), GOLDEN[f"{name}/sin"], atol=2e-5, rtol=0)


def test_period_bounds_match_the_published_system():
    periods = rope_periods(16, 100.0, 0.5, 20.0)
    torch.testing.assert_close(periods, GOLDEN["minmax_0.5_20_hd16/periods"])
    angles = rope_angles(patch_coordinates(6, 3, "separate"), periods)
    torch.testing.assert_close(angles.cos(), GOLDEN["minmax_0.5_20_hd16/separate/6x3/cos"], atol=2e-5, rtol=0)


def test_augmentation_steps_and_their_order_match_the_published_system(monkeypatch):
    draws = iter([GOLDEN["aug/shift_hw"], GOLDEN["aug/jitter_hw"].log(), GOLDEN["aug/rescale"].log()])
    monkeypatch.setattr(rope_dinov3, "_uniform", lambda like, size, bound: next(draws))
    coords = RopeAugmentation(shift=0.5, jitter=2.0, rescale=2.0)(patch_coordinates(6, 3, "separate"))
    angles = rope_angles(coords, rope_periods(16, 100.0))
    torch.testing.assert_close(angles.cos(), GOLDEN["aug/cos"], atol=2e-5, rtol=0)
    torch.testing.assert_close(angles.sin(), GOLDEN["aug/sin"], atol=2e-5, rtol=0)


def test_augmentation_draws_stay_in_their_ranges():
    torch.manual_seed(0)
    coords = patch_coordinates(4, 4, "separate")
    shifts = torch.stack([RopeAugmentation(shift=0.25)(coords) - coords for _ in range(300)])
    assert shifts.std(dim=1).max() < 1e-6, "one draw for all patches"
    assert 0.24 < shifts.max() <= 0.25 and -0.25 <= shifts.min() < -0.24
    jitters = torch.stack([RopeAugmentation(jitter=2.0)(coords) / coords for _ in range(300)])
    assert (jitters[..., 0] - jitters[..., 1]).abs().max() > 0.1, "each axis its own draw"
    assert 1.95 < jitters.max() <= 2.0001 and 0.4999 <= jitters.min() < 0.51
    rescales = torch.stack([RopeAugmentation(rescale=2.0)(coords) / coords for _ in range(300)])
    torch.testing.assert_close(rescales[..., 0], rescales[..., 1])
    assert abs(rescales.log().mean()) < 0.05, "log-uniform"


@pytest.mark.parametrize("fields", [{"shift": -1.0}, {"jitter": 0.5}, {"rescale": 0.0}])
def test_augmentation_refuses_values_out_of_range(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}="):
        RopeAugmentation(**fields)


def naive_rotation(states, angles, prefix):
    """Pairs (i, i + d/2) turned by their angle, one number at a time."""
    result, half = states.clone(), states.shape[-1] // 2
    for token in range(prefix, states.shape[1]):
        for i in range(half):
            cos, sin = angles[token - prefix, i].cos(), angles[token - prefix, i].sin()
            first, second = states[:, token, :, i], states[:, token, :, i + half]
            result[:, token, :, i] = first * cos - second * sin
            result[:, token, :, i + half] = second * cos + first * sin
    return result


def test_rotation_leaves_prefix_tokens_and_turns_patches():
    torch.manual_seed(0)
    angles = rope_angles(patch_coordinates(2, 3, "separate"), rope_periods(8, 100.0))
    states = torch.randn(2, 9, 2, 8)
    torch.testing.assert_close(apply_rotary(states, rotary_table(angles, 3)), naive_rotation(states, angles, 3))


def test_rotation_runs_in_fp32_for_bf16_states():
    table = rotary_table(rope_angles(patch_coordinates(4, 4, "separate"), rope_periods(16, 100.0)), 1)
    states = torch.randn(2, 17, 2, 16).bfloat16()
    rotated = apply_rotary(states, table)
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated, apply_rotary(states.float(), table).bfloat16())


def test_casting_a_model_does_not_round_its_tables():
    embedding = Dinov3RotaryEmbedding(Dinov3Config())
    cos = embedding(3, 5, torch.device("cpu")).cos
    assert embedding.bfloat16()(3, 5, torch.device("cpu")).cos is cos and cos.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        rope_dinov3._cached_table.cache_clear()
        assert torch.equal(embedding(3, 5, torch.device("cpu")).cos, cos)


def test_table_made_in_inference_mode_serves_training():
    rope_dinov3._cached_table.cache_clear()
    embedding = Dinov3RotaryEmbedding(Dinov3Config())
    with torch.inference_mode():
        table = embedding(2, 2, torch.device("cpu"))
    states = torch.randn(1, 9, 6, 64, requires_grad=True)
    apply_rotary(states, table).sum().backward()
    assert states.grad.abs().sum() > 0


def test_each_augmented_call_is_a_new_draw():
    embedding, augmentation = Dinov3RotaryEmbedding(Dinov3Config()), RopeAugmentation(rescale=2.0)
    first, second = (embedding(2, 2, torch.device("cpu"), augmentation).cos for _ in range(2))
    assert not torch.equal(first, second)


def test_mixed_precision_wrappers_do_not_find_the_tables():
    table = Dinov3RotaryEmbedding(Dinov3Config())(2, 2, torch.device("cpu"))
    arguments = {"position_embeddings": (table,)}
    assert not any(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves(arguments))
