"""timm's layout against timm itself, and back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.checkpoints import export
from dinov3_hf.checkpoints.timm import load_timm, timm_config
from dinov3_hf.checkpoints.weights import omitted, summarise
from dinov3_hf.models.configuration_dinov3 import SIZES


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
    "image_size": 32,
    "num_register_tokens": 2,
    "rope_theta": 50.0,
}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
VARIANTS = {
    "plain": {},
    "gated": GATED,
    # 56 * (61 / 56) is 60.99... in floating point.
    "ratio that rounding leaves short": {"hidden_size": 56, "intermediate_size": 61},
    "gated, odd size": {**GATED, "hidden_size": 56, "intermediate_size": 61},
    "no qkv bias": {"query_bias": False, "value_bias": False},
    "untied": {"untie_global_and_local_cls_norm": True},
    "no registers": {"num_register_tokens": 0},
    "no layer scale": {"layerscale_value": None},
}


def make(model_class=Dinov3Model, **fields):
    torch.manual_seed(0)
    model = model_class(Dinov3Config(**{**SMALL, **fields})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_timm_builds_the_model_from_the_directory_alone(variant, tmp_path):
    timm = pytest.importorskip("timm")
    model = make(**VARIANTS[variant])
    export(model, tmp_path, layout="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert set(theirs.state_dict()) == set(load_file(tmp_path / "model.safetensors"))
    for height, width in ((32, 32), (24, 56)):
        images = torch.randn(2, 3, height, width)
        expected = model(images)
        torch.testing.assert_close(theirs.forward_features(images), expected.last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs(images), expected.pooler_output, atol=1e-5, rtol=0)
    data = timm.data.resolve_model_data_config(theirs)
    assert data["input_size"] == (3, 32, 32) and data["crop_pct"] == 1.0 and data["interpolation"] == "bilinear"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_comes_back_bit_equal_but_those_omitted(variant, tmp_path):
    model = make(**VARIANTS[variant])
    export(model, tmp_path, layout="timm")
    again, ours = load_timm(tmp_path), model.state_dict()
    kept = set(ours) - set(omitted(ours))
    assert set(ours) - kept <= {"embeddings.mask_token", "local_cls_norm.weight", "local_cls_norm.bias"}
    assert kept | {"embeddings.mask_token"} == set(again.state_dict())
    for name in kept:
        assert torch.equal(again.state_dict()[name], ours[name]), name
    assert not again.embeddings.mask_token.any()
    images = torch.randn(1, 3, 24, 40)
    with torch.inference_mode():
        assert torch.equal(again(images).last_hidden_state, model(images).last_hidden_state)
    assert again.config.image_size == 32


def test_bf16_weights_stay_bf16(tmp_path):
    export(make().bfloat16(), tmp_path, layout="timm")
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert load_timm(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_are_timms_own_architectures(size):
    timm = pytest.importorskip("timm")
    config = timm_config(Dinov3Config.from_size(size))
    few = {"depth": 1, "num_classes": 0}
    with torch.device("meta"):
        plain = timm.create_model(config["architecture"], **few).state_dict()
        ours = timm.create_model(config["architecture"], **{**config["model_args"], **few}).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in plain.items()}
    full = timm.get_pretrained_cfg(config["architecture"])
    assert full is not None and full.architecture == config["architecture"]


def test_a_directory_without_arguments_is_of_its_published_size(tmp_path):
    """As timm's own repositories are: the architecture's name tells the heads."""
    model = make(hidden_size=384, num_attention_heads=6, patch_size=16, num_register_tokens=4, rope_theta=100.0)
    export(model, tmp_path, layout="timm")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["model_args"]
    file.write_text(json.dumps(config))
    again, images = load_timm(tmp_path), torch.randn(1, 3, 48, 32)
    assert again.config.num_attention_heads == 6 and again.config.rope_theta == 100
    with torch.inference_mode():
        assert torch.equal(again(images).last_hidden_state, model(images).last_hidden_state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_normalize_coords": "max"}, "rope_normalize_coords: got 'max', accepted: 'separate' in timm's layout"),
        ({"rope_min_period": 0.5, "rope_max_period": 20.0}, "rope_min_period: got 0.5, accepted: None"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps: got 1e-06, accepted: 1e-05"),
        ({"key_bias": True}, "key_bias: got True, accepted: False"),
        ({"query_bias": False}, "query_bias: got False, accepted: True"),
        ({"mlp_bias": False}, "mlp_bias: got False, accepted: True"),
        ({"hidden_act": "relu"}, "hidden_act: got 'relu', accepted: 'gelu'"),
    ],
)
def test_what_timm_cannot_build_is_refused(fields, message, tmp_path):
    with pytest.raises(ValueError) as error:
        export(make(**fields), tmp_path / "new", layout="timm")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_other_architectures_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50"}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="architecture: got 'resnet50', accepted: vit_small_patch16_dinov3, "):
        load_timm(tmp_path)


def test_heads_are_omitted(tmp_path):
    heads = {
        f"{head}_{name}": value
        for head in ("dino_head", "ibot_head")
        for name, value in {"num_prototypes": 8, "hidden_size": 8, "bottleneck_size": 4, "num_layers": 2}.items()
    }
    model = make(Dinov3ForPreTraining, **heads)
    export(model, tmp_path, layout="timm")
    assert summarise(omitted(model.state_dict())) == "mask_token, dino_head, ibot_head"
    written = load_file(tmp_path / "model.safetensors")
    assert not [name for name in written if "head" in name]
    assert torch.equal(written["blocks.1.gamma_2"], model.dinov3.layer[1].layer_scale2.lambda1)
