import json
import logging

import pytest
from transformers import AutoConfig, DINOv3ViTConfig

from dinov3_hf import Dinov3Config


@pytest.fixture
def warnings_seen(monkeypatch):
    """Warnings of the package, each kept once as `warning_once` does."""
    seen = []
    monkeypatch.setattr(logging.Logger, "warning_once", lambda self, message, *args: seen.append(message))
    return seen


@pytest.mark.parametrize("name", ["vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16"])
def test_every_size_has_the_published_head_dim_and_registers(name):
    config = Dinov3Config.from_size(name)
    assert config.hidden_size / config.num_attention_heads == (128 if name == "vit7b16" else 64)
    assert (config.patch_size, config.num_register_tokens, config.rope_theta) == (16, 4, 100.0)
    assert config.hidden_act == ("silu" if config.use_gated_mlp else "gelu")


def test_size_overrides_and_unknown_size():
    assert Dinov3Config.from_size("vitb16", num_hidden_layers=2).num_hidden_layers == 2
    with pytest.raises(ValueError, match="'vitx16' must be one of vits16, vits16plus"):
        Dinov3Config.from_size("vitx16")


def test_unknown_field_is_refused_with_the_nearest_name():
    with pytest.raises(TypeError, match=r"no field 'hiden_size' \(did you mean 'hidden_size'\?\)"):
        Dinov3Config(hiden_size=64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 60, "num_attention_heads": 6}, "head dim of 10; RoPE needs a multiple of 4"),
        ({"hidden_size": 65, "num_attention_heads": 4}, "hidden_size=65 must be a multiple of num_attention_heads=4"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be at least 0 and below 1"),
        ({"rope_normalize_coords": "mean"}, "rope_normalize_coords='mean' must be one of"),
        ({"rope_min_period": 1.0}, "give both with 0 < min < max, or neither"),
        ({"rope_min_period": 3.0, "rope_max_period": 2.0}, "rope_min_period=3.0, rope_max_period=2.0"),
        ({"rope_theta": 0.0}, "rope_theta=0.0 must be above 0"),
        ({"patch_size": 0}, "patch_size=0 must be at least 1"),
        ({"num_register_tokens": -1}, "num_register_tokens=-1 must be at least 0"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' must be 'default'"),
    ],
)
def test_bad_values_give_one_line_naming_field_and_value(fields, message):
    with pytest.raises(ValueError) as error:
        Dinov3Config(**fields)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_wrong_type_names_the_field():
    with pytest.raises(Exception, match="hidden_size"):
        Dinov3Config(hidden_size="wide")


def test_round_trip_keeps_every_field(tmp_path):
    config = Dinov3Config(
        rope_normalize_coords="max",
        rope_min_period=0.5,
        rope_max_period=20.0,
        layerscale_value=None,
        untie_global_and_local_cls_norm=True,
        dino_head_num_prototypes=64,
        out_indices=[3, 12],
        num_labels=5,
    )
    config.save_pretrained(tmp_path)
    for loaded in (Dinov3Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, Dinov3Config)
        assert loaded.to_diff_dict() == config.to_diff_dict()


def test_transformers_directory_is_read_with_one_warning_for_unknown_keys(tmp_path, warnings_seen):
    reference = DINOv3ViTConfig(num_register_tokens=2, rope_theta=50.0, pos_embed_shift=0.1, out_indices=[1, 2])
    reference.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "future_field": 1, "another_field": 2}))
    config = Dinov3Config.from_pretrained(tmp_path)
    assert (config.model_type, config.rope_theta, config.num_register_tokens) == ("dinov3_hf", 50.0, 2)
    assert config.out_indices == [1, 2]
    assert config.pos_embed_shift is config.pos_embed_jitter is config.pos_embed_rescale is None
    unknown = [message for message in warnings_seen if "ignores unknown fields" in message]
    assert unknown == ["Dinov3Config ignores unknown fields of the stored configuration: another_field, future_field"]
    assert any("pos_embed_shift=0.1, pos_embed_rescale=2.0 set to null" in message for message in warnings_seen)


def test_fields_absent_from_a_transformers_file_take_its_default(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_vit", "hidden_size": 384}))
    config = Dinov3Config.from_pretrained(tmp_path)
    assert config.num_register_tokens == DINOv3ViTConfig().num_register_tokens == 0


def test_transformers_rope_parameters_are_read(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "dinov3_vit", "rope_parameters": {"rope_type": "default", "rope_theta": 20.0}})
    )
    assert Dinov3Config.from_pretrained(tmp_path).rope_theta == 20.0
