import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, DINOv3ViTImageProcessor, DINOv3ViTModel

from dinov3_hf import Dinov3Backbone, Dinov3Config, Dinov3ForImageClassification, Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.checkpoints import export, load_meta, load_pretraining


GOLDEN = load_file(Path(__file__).parents[1] / "data" / "vit_a.safetensors")
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
    "num_register_tokens": 2,
    "rope_theta": 50.0,
}
TINY_HEADS = {
    "dino_head_num_prototypes": 24,
    "dino_head_hidden_size": 40,
    "dino_head_bottleneck_size": 16,
    "dino_head_num_layers": 2,
    "ibot_head_num_prototypes": 20,
    "ibot_head_bottleneck_size": 12,
    "ibot_head_hidden_size": 12,
    "ibot_head_num_layers": 1,
}
VARIANTS = {
    "plain": {},
    "gated": {"use_gated_mlp": True, "hidden_act": "silu"},
    "no qkv bias": {"query_bias": False, "value_bias": False},
    "key bias": {"key_bias": True},
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


def golden_state():
    return {name[3:]: tensor for name, tensor in GOLDEN.items() if name.startswith("sd/")}


def assert_same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


IMAGES = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))


# transformers layout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_and_we_read_an_export_bit_equal(variant, tmp_path):
    model = make(**VARIANTS[variant])
    assert export(model, tmp_path) == tmp_path
    reference, info = DINOv3ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        expected = model(IMAGES).last_hidden_state
        torch.testing.assert_close(reference(IMAGES).last_hidden_state, expected, atol=1e-5, rtol=0)
        again, info = Dinov3Model.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(again(IMAGES).last_hidden_state, expected)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if name in model.state_dict():
            assert torch.equal(tensor, model.state_dict()[name]), name
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "dinov3_vit" and config["architectures"] == ["DINOv3ViTModel"]
    assert config["pos_embed_shift"] is config["pos_embed_jitter"] is config["pos_embed_rescale"] is None
    assert not [name for name in config if "head_" in name or name == "auto_map" or "rope_normalize" in name]
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, DINOv3ViTImageProcessor)
    assert processor(Image.new("L", (40, 30)), return_tensors="pt").pixel_values.shape == (1, 3, 224, 224)


def test_export_needs_this_package_no_more(tmp_path):
    model = make()
    export(model, tmp_path)
    save_file({"images": IMAGES}, tmp_path / "images.safetensors")
    script = f"""
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dinov3_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from safetensors.torch import load_file, save_file
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path)!r})
with torch.no_grad():
    tokens = model(load_file({str(tmp_path / "images.safetensors")!r})["images"]).last_hidden_state
is_theirs = torch.tensor(type(model).__name__ == "DINOv3ViTModel")
save_file({{"tokens": tokens, "class": is_theirs}}, {str(tmp_path / "tokens.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    result = load_file(tmp_path / "tokens.safetensors")
    assert result["class"]
    with torch.no_grad():
        torch.testing.assert_close(result["tokens"], model(IMAGES).last_hidden_state, atol=1e-5, rtol=0)


def test_both_key_generations_load(tmp_path):
    model = make()
    export(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    second = {f"model.{name}" if name.startswith("layer.") else name: t for name, t in tensors.items()}
    assert "model.layer.0.norm1.weight" in second
    save_file(second, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for model_class, missing in (
        (Dinov3Model, set()),
        (Dinov3Backbone, set()),
        (Dinov3ForImageClassification, {"classifier.weight", "classifier.bias"}),
    ):
        loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == missing and not info["unexpected_keys"]
        assert_same(getattr(loaded, "dinov3", loaded), model)
    loaded.save_pretrained(tmp_path / "again")
    assert "dinov3.layer.0.norm1.weight" in load_file(tmp_path / "again" / "model.safetensors")


def test_bf16_weights_stay_bf16(tmp_path):
    export(make().bfloat16(), tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_normalize_coords": "max"}, "rope_normalize_coords='max'"),
        ({"rope_min_period": 0.5, "rope_max_period": 20.0}, "rope_min_period=0.5, rope_max_period=20.0"),
    ],
)
def test_export_refuses_what_transformers_cannot_represent(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(make(**fields), tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_export_refuses_unknown_layouts_and_models(tmp_path):
    with pytest.raises(ValueError, match="layout='onx' must be one of transformers, meta"):
        export(make(), tmp_path, layout="onx")
    with pytest.raises(TypeError, match="got Linear"):
        export(torch.nn.Linear(1, 1), tmp_path)


def test_export_of_a_pretraining_network_keeps_heads_and_local_norm(tmp_path):
    model = make(Dinov3ForPreTraining, **TINY_HEADS, untie_global_and_local_cls_norm=True)
    export(model, tmp_path)
    heads = load_file(tmp_path / "heads.safetensors")
    assert {name.split(".")[0] for name in heads} == {"dinov3", "dino_head", "ibot_head"}
    assert {name for name in heads if name.startswith("dinov3")} == {
        "dinov3.local_cls_norm.weight",
        "dinov3.local_cls_norm.bias",
    }
    reference, info = DINOv3ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same(load_pretraining(tmp_path), model)
    export(model.dinov3.from_pretrained(tmp_path), tmp_path)
    with pytest.raises(ValueError, match="has no heads.safetensors"):
        load_pretraining(tmp_path)


# Meta's layout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_round_trip_reads_sizes_and_options_off_the_tensors(variant, tmp_path):
    model = make(**VARIANTS[variant])
    export(model, tmp_path, layout="meta")
    loaded = load_meta(tmp_path / "model.pth")
    assert_same(loaded, model)
    assert loaded.config.rope_theta == 50.0 and loaded.config.num_attention_heads == 2
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES).last_hidden_state, model(IMAGES).last_hidden_state)


def test_meta_period_bounds_are_read(tmp_path):
    export(make(rope_min_period=0.5, rope_max_period=20.0), tmp_path, layout="meta")
    config = load_meta(tmp_path / "model.pth").config
    assert (config.rope_min_period, config.rope_max_period) == (0.5, 20.0)


def test_meta_training_checkpoint_gives_the_pretraining_network(tmp_path):
    model = make(Dinov3ForPreTraining, **TINY_HEADS)
    export(model, tmp_path, layout="meta")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert {"backbone.cls_token", "dino_head.mlp.2.bias", "ibot_head.mlp.bias"} <= set(state)
    save_file(state, tmp_path / "model.safetensors")
    assert_same(load_meta(tmp_path / "model.safetensors"), model)
    assert_same(load_meta({"teacher": state}), model)


def test_masked_key_bias_is_dropped_and_a_free_one_is_kept():
    state = golden_state()
    assert not load_meta(state).config.key_bias
    mask = "attn.qkv.bias_mask"
    unset = {name: torch.where(t == 0, torch.nan, t) if name.endswith(mask) else t for name, t in state.items()}
    assert not load_meta(unset).config.key_bias
    assert load_meta({name: t for name, t in state.items() if not name.endswith(mask)}).config.key_bias


def test_exported_golden_checkpoint_equals_the_original(tmp_path):
    state = golden_state()
    export(load_meta(state), tmp_path, layout="meta")
    written = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(written) == set(state)
    for name, tensor in state.items():
        masked = name.endswith("qkv.bias")
        expected = tensor * state[name + "_mask"] if masked else tensor
        torch.testing.assert_close(written[name], expected, msg=name)


def test_heads_without_periods_come_from_the_family_or_the_caller():
    state = {name: tensor for name, tensor in golden_state().items() if name != "rope_embed.periods"}
    with pytest.raises(ValueError, match="num_attention_heads cannot be told from hidden_size=64"):
        load_meta(state)
    assert load_meta(state, num_attention_heads=4, layer_norm_eps=1e-6).config.layer_norm_eps == 1e-6


def test_other_architectures_and_contradictions_give_one_line(tmp_path):
    state = golden_state()
    cases = [
        ({"stages.0.0.gamma": torch.ones(1)}, {}, "no 'cls_token'; it holds stages.0.0.gamma"),
        ({**state, "pos_embed": torch.ones(1)}, {}, "it also holds pos_embed"),
        ({k: v for k, v in state.items() if k != "blocks.1.norm2.bias"}, {}, "no 'blocks.1.norm2.bias'"),
        ({k.replace("fc1", "fc3"): v for k, v in state.items()}, {}, "no 'blocks.0.mlp.fc1.weight'"),
        (state, {"hidden_size": 128}, "hidden_size=128 contradicts the checkpoint, which has 64"),
        ({"backbone.x": torch.ones(1), "text.y": torch.ones(1)}, {}, "training checkpoint holds text"),
        ({f"backbone.{k}": v for k, v in state.items()}, {}, "no dino_head.mlp"),
        ({"model": [1]}, {}, "flat mapping of names to tensors"),
    ]
    for source, overrides, message in cases:
        with pytest.raises(ValueError) as error:
            load_meta(source, **overrides)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no checkpoint file"):
        load_meta(tmp_path / "absent.pth")
