"""Learning-rate and weight-decay multipliers, by parameter name."""

import pytest

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.training.param_groups import parameter_groups


@pytest.fixture(scope="module")
def model():
    sizes = {
        f"{head}_head_{part}": 8
        for head in ("dino", "ibot")
        for part in ("num_prototypes", "hidden_size", "bottleneck_size")
    }
    shape = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    return Dinov3ForPreTraining(Dinov3Config(**shape, **sizes, untie_global_and_local_cls_norm=True))


def by_name(model, *arguments):
    found = {}
    for group in parameter_groups(model, *arguments):
        assert len(group["names"]) == len(group["params"])
        for name in group["names"]:
            assert name not in found
            found[name] = (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
    return found


def test_every_parameter_is_in_one_group(model):
    assert set(by_name(model, 0.9, 0.2)) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "name, power, patch, decayed, last",
    [
        ("dinov3.embeddings.cls_token", 4, 1, 1, False),
        ("dinov3.embeddings.mask_token", 4, 1, 1, False),
        ("dinov3.embeddings.register_tokens", 4, 1, 1, False),
        ("dinov3.embeddings.patch_embeddings.weight", 4, 0.2, 1, False),
        ("dinov3.embeddings.patch_embeddings.bias", 4, 0.2, 0, False),
        ("dinov3.layer.0.attention.q_proj.weight", 3, 1, 1, False),
        ("dinov3.layer.1.attention.q_proj.bias", 2, 1, 0, False),
        ("dinov3.layer.2.mlp.up_proj.weight", 1, 1, 1, False),
        ("dinov3.layer.2.layer_scale1.lambda1", 1, 1, 0, False),
        ("dinov3.layer.2.norm1.weight", 1, 1, 0, False),
        ("dinov3.norm.weight", 0, 1, 0, False),
        ("dinov3.local_cls_norm.bias", 0, 1, 0, False),
        ("dino_head.mlp.0.weight", 0, 1, 1, False),
        ("dino_head.mlp.0.bias", 0, 1, 0, False),
        ("ibot_head.last_layer.weight", 0, 1, 1, True),
    ],
)
def test_multipliers(model, name, power, patch, decayed, last):
    assert by_name(model, 0.9, 0.2)[name] == (pytest.approx(0.9**power * patch), decayed, last)


def test_frozen_parameters_are_left_out_and_a_bare_backbone_works():
    backbone = Dinov3Model(
        Dinov3Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    )
    backbone.layer[0].requires_grad_(False)
    names = by_name(backbone, 0.5, 1.0)
    assert not any(name.startswith("layer.0.") for name in names)
    assert names["layer.1.mlp.up_proj.weight"][0] == 0.5 and names["embeddings.cls_token"][0] == 0.125
