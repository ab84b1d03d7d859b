import pytest
import torch

from dinov3_hf import Dinov3Config
from dinov3_hf.models import layers_dinov3
from dinov3_hf.models.layers_dinov3 import Dinov3Embeddings, Dinov3Layer, pack_crops, split_crops
from dinov3_hf.models.rope_dinov3 import Dinov3RotaryEmbedding


def make_layer(**fields):
    config = Dinov3Config(hidden_size=32, num_attention_heads=2, intermediate_size=64, num_register_tokens=1, **fields)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    layer = Dinov3Layer(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return layer, Dinov3RotaryEmbedding(config)(2, 2, torch.device("cpu"))


def test_packing_and_splitting_are_inverse():
    groups = [torch.randn(2, 5, 3), torch.randn(4, 2, 3)]
    packed = pack_crops(groups)
    assert packed.shape == (1, 18, 3)
    for group, part in zip(groups, split_crops(packed, ((2, 5), (4, 2))), strict=True):
        assert torch.equal(group, part)


@pytest.mark.parametrize("layerscale_value", [None, 0.5])
def test_packed_groups_equal_separate_calls(layerscale_value):
    layer, table = make_layer(layerscale_value=layerscale_value)
    groups = [torch.randn(2, 6, 32), torch.randn(3, 6, 32)]
    packed = layer(pack_crops(groups), (table, table), ((2, 6), (3, 6)))
    for group, part in zip(groups, split_crops(packed, ((2, 6), (3, 6))), strict=True):
        torch.testing.assert_close(part, layer(group, (table,), (group.shape[:2],)), atol=1e-5, rtol=0)


def test_drop_path_runs_branches_on_a_subset_and_rescales():
    layer, table = make_layer(drop_path_rate=0.4)
    rows = {"attention": 0, "mlp": 0}
    layer.attention.register_forward_pre_hook(lambda _, args: rows.__setitem__("attention", args[0].shape[0]))
    layer.mlp.register_forward_pre_hook(lambda _, args: rows.__setitem__("mlp", args[0].shape[0]))
    states = torch.randn(10, 6, 32)
    layer.train()(states, (table,), ((10, 6),))
    assert rows == {"attention": 6, "mlp": 6}, "int(10 * 0.6) rows of each branch"
    layer.eval()(states, (table,), ((10, 6),))
    assert rows == {"attention": 10, "mlp": 10}


def test_drop_path_keeps_the_expected_update():
    layer, table = make_layer(drop_path_rate=0.5)
    # Without an MLP update the block's update is linear in the attention branch.
    for parameter in layer.layer_scale2.parameters():
        torch.nn.init.zeros_(parameter)
    states = torch.randn(4, 6, 32)
    full = layer.eval()(states, (table,), ((4, 6),)) - states
    torch.manual_seed(1)
    updates = [layer.train()(states, (table,), ((4, 6),)) - states for _ in range(600)]
    changed = torch.stack([update.abs().amax((1, 2)) > 0 for update in updates])
    assert (changed.sum(1) == 2).all() and changed.float().mean(0).sub(0.5).abs().max() < 0.1
    for update, rows in zip(updates[:20], changed, strict=False):
        torch.testing.assert_close(update[rows], full[rows] * 2, atol=1e-4, rtol=1e-4)


def test_drop_path_draws_for_each_group_and_keeps_one_row_at_least():
    layer, table = make_layer(drop_path_rate=0.75)
    states = pack_crops([torch.randn(1, 6, 32), torch.randn(8, 6, 32)])
    update = layer.train()(states, (table, table), ((1, 6), (8, 6))) - states
    first, second = split_crops(update, ((1, 6), (8, 6)))
    assert first.abs().max() > 0
    assert 2 <= (second.abs().amax((1, 2)) > 0).sum() <= 4, "two rows of each branch"


def test_mask_token_gets_a_zero_gradient_without_a_mask():
    embeddings = Dinov3Embeddings(Dinov3Config(hidden_size=32, num_attention_heads=2))
    for parameter in embeddings.parameters():
        torch.nn.init.normal_(parameter)
    embeddings.train()(torch.randn(1, 3, 32, 32)).sum().backward()
    assert embeddings.mask_token.grad is not None and embeddings.mask_token.grad.abs().sum() == 0


def test_mask_replaces_patches_and_its_shape_is_checked():
    embeddings = Dinov3Embeddings(Dinov3Config(hidden_size=32, num_attention_heads=2))
    for parameter in embeddings.parameters():
        torch.nn.init.normal_(parameter)
    mask = torch.tensor([[True, False, False, True]])
    images = torch.randn(1, 3, 32, 32)
    masked, plain = embeddings(images, mask), embeddings(images)
    assert torch.equal(masked[:, 5:][mask], embeddings.mask_token[0].expand(2, -1))
    assert torch.equal(masked[:, 5:][~mask], plain[:, 5:][~mask]) and torch.equal(masked[:, :5], plain[:, :5])
    with pytest.raises(ValueError, match=r"bool_masked_pos of shape \(1, 3\) must be \(1, 4\)"):
        embeddings(images, mask[:, :3])


def test_bf16_attention_on_cpu_agrees_with_the_fused_kernel(monkeypatch):
    layer, table = make_layer()
    layer = layer.bfloat16()
    states = torch.randn(2, 6, 32).bfloat16()
    plain = layer(states, (table,), ((2, 6),))
    monkeypatch.setattr(layers_dinov3, "_MAX_PLAIN_TOKENS", 0)
    fused = layer(states, (table,), ((2, 6),))
    torch.testing.assert_close(plain, fused, atol=5e-2, rtol=2e-2)
