import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor, AutoModel, DINOv3ConvNextModel, DINOv3ViTImageProcessor

from dinov3_hf import (
    Dinov3ConvNextBackbone,
    Dinov3ConvNextConfig,
    Dinov3ConvNextForImageClassification,
    Dinov3ConvNextModel,
)
from dinov3_hf.checkpoints import export, load_meta, load_model
from dinov3_hf.cli import main


SMALL = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1], "image_size": 96}
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def make(model_class=Dinov3ConvNextModel, **fields):
    torch.manual_seed(0)
    model = model_class(Dinov3ConvNextConfig(**{**SMALL, **fields})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def meta_state(**fields):
    """A ConvNeXt in Meta's layout, its names written out by hand."""
    config, state = Dinov3ConvNextConfig(**{**SMALL, **fields}), {}

    def add(name, *shape):
        state[name] = torch.randn(shape, generator=torch.Generator().manual_seed(len(state))) * 0.3

    widths = [config.num_channels, *config.hidden_sizes]
    for index, depth in enumerate(config.depths):
        before, width = widths[index : index + 2]
        kernel, conv, norm = (4, 0, 1) if index == 0 else (2, 1, 0)
        for kind in ("weight", "bias"):
            add(f"downsample_layers.{index}.{conv}.{kind}", width, *(before, kernel, kernel)[: 3 * (kind == "weight")])
            add(f"downsample_layers.{index}.{norm}.{kind}", width if index == 0 else before)
        for block in range(depth):
            name = f"stages.{index}.{block}"
            add(f"{name}.gamma", width)
            for part, shape in {
                "dwconv": (width, 1, 7, 7),
                "norm": (width,),
                "pwconv1": (4 * width, width),
                "pwconv2": (width, 4 * width),
            }.items():
                add(f"{name}.{part}.weight", *shape)
                add(f"{name}.{part}.bias", shape[0])
    for kind in ("weight", "bias"):
        add(f"norm.{kind}", widths[-1])
        state[f"norms.{len(config.depths) - 1}.{kind}"] = state[f"norm.{kind}"]
    return state


def meta_forward(state, images, depths):
    """The network of a state dict in Meta's layout, from its definition: class token and patches [B,1+P,D]."""

    def layer_norm(maps, name):
        tokens = maps.permute(0, 2, 3, 1)
        norm = nn.functional.layer_norm(tokens, tokens.shape[-1:], *parameters(name), eps=1e-6)
        return norm.permute(0, 3, 1, 2)

    def parameters(name):
        return state[f"{name}.weight"], state[f"{name}.bias"]

    maps = images
    for index, depth in enumerate(depths):
        name = f"downsample_layers.{index}"
        if index == 0:
            maps = layer_norm(nn.functional.conv2d(maps, *parameters(f"{name}.0"), stride=4), f"{name}.1")
        else:
            maps = nn.functional.conv2d(layer_norm(maps, f"{name}.0"), *parameters(f"{name}.1"), stride=2)
        for block in range(depth):
            name = f"stages.{index}.{block}"
            branch = nn.functional.conv2d(maps, *parameters(f"{name}.dwconv"), padding=3, groups=maps.shape[1])
            branch = layer_norm(branch, f"{name}.norm").permute(0, 2, 3, 1)
            branch = nn.functional.gelu(nn.functional.linear(branch, *parameters(f"{name}.pwconv1")))
            branch = nn.functional.linear(branch, *parameters(f"{name}.pwconv2")) * state[f"{name}.gamma"]
            maps = maps + branch.permute(0, 3, 1, 2)
    tokens = torch.cat([maps.mean((2, 3))[:, None], maps.flatten(2).transpose(1, 2)], 1)
    return nn.functional.layer_norm(tokens, tokens.shape[-1:], *parameters("norm"), eps=1e-6)


def assert_same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


# transformers layout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"num_channels": 4, "hidden_sizes": [8, 16], "depths": [1, 2]}])
def test_transformers_and_we_read_an_export_bit_equal(fields, tmp_path):
    model = make(drop_path_rate=0.2, **fields)
    assert export(model, tmp_path) == tmp_path
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    reference, info = DINOv3ConvNextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same(Dinov3ConvNextModel.from_pretrained(tmp_path), model)
    assert_same(load_model(str(tmp_path)), model)
    images = torch.randn(1, model.config.num_channels, 64, 96)
    with torch.no_grad():
        expected = model(images).last_hidden_state
        torch.testing.assert_close(reference.eval()(images).last_hidden_state, expected, atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "dinov3_convnext" and config["architectures"] == ["DINOv3ConvNextModel"]
    assert config["drop_path_rate"] == 0 and "auto_map" not in config
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, DINOv3ViTImageProcessor)
    assert processor(Image.new("L", (40, 30)), return_tensors="pt").pixel_values.shape == (1, 3, 96, 96)


def test_export_needs_this_package_no_more(tmp_path):
    model = make()
    export(model, tmp_path)
    save_file({"images": IMAGES}, tmp_path / "images.safetensors")
    script = """
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dinov3_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from safetensors.torch import load_file, save_file
from transformers import AutoModel
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder)
assert type(model).__name__ == "DINOv3ConvNextModel", type(model)
with torch.no_grad():
    tokens = model(load_file(f"{folder}/images.safetensors")["images"]).last_hidden_state
save_file({"tokens": tokens}, f"{folder}/tokens.safetensors")
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    with torch.no_grad():
        expected = model(IMAGES).last_hidden_state
    torch.testing.assert_close(load_file(tmp_path / "tokens.safetensors")["tokens"], expected, atol=1e-5, rtol=0)


def test_both_key_generations_load(tmp_path):
    model = make()
    export(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    second = {f"model.{name}" if name.startswith("stages.") else name: tensor for name, tensor in tensors.items()}
    assert "model.stages.0.layers.0.gamma" in second
    save_file(second, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for model_class, missing in (
        (Dinov3ConvNextModel, set()),
        (Dinov3ConvNextBackbone, set()),
        (Dinov3ConvNextForImageClassification, {"classifier.weight", "classifier.bias"}),
    ):
        loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == missing and not info["unexpected_keys"]
        assert torch.equal(
            getattr(loaded, "dinov3", loaded).stages[1].layers[1].gamma, model.stages[1].layers[1].gamma
        )
    assert_same(loaded.dinov3, model)
    loaded.save_pretrained(tmp_path / "again")
    assert "dinov3.stages.0.layers.0.gamma" in load_file(tmp_path / "again" / "model.safetensors")


def test_a_classifier_is_saved_next_to_its_export(tmp_path):
    model = make(Dinov3ConvNextForImageClassification, num_labels=3)
    export(model, tmp_path)
    assert set(load_file(tmp_path / "heads.safetensors")) == {"classifier.weight", "classifier.bias"}
    assert_same(load_model(str(tmp_path)), model.dinov3)
    export(model.dinov3, tmp_path)
    assert not (tmp_path / "heads.safetensors").exists()


def test_bf16_weights_stay_bf16_and_are_loaded_in_fp32(tmp_path):
    export(make().bfloat16(), tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert load_model(str(tmp_path)).dtype == torch.float32


# Meta's layout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"num_channels": 1, "hidden_sizes": [8, 16], "depths": [2, 11]}])
def test_meta_checkpoint_gives_the_network_it_defines(fields):
    state = meta_state(**fields)
    model = load_meta(state)
    config = Dinov3ConvNextConfig(**{**SMALL, **fields})
    for name in ("hidden_sizes", "depths", "num_channels"):
        assert getattr(model.config, name) == getattr(config, name)
    images = torch.randn(2, config.num_channels, 64, 96)
    with torch.no_grad():
        expected = meta_forward(state, images, config.depths)
        torch.testing.assert_close(model(images).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_meta_round_trips_are_bit_equal(tmp_path):
    state = meta_state()
    export(load_meta(state), tmp_path, layout="meta")
    written = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(written) == set(state)
    for name, tensor in state.items():
        assert torch.equal(written[name], tensor), name
    model = make()
    export(model, tmp_path, layout="meta")
    assert_same(load_meta(tmp_path / "model.pth"), model)
    assert_same(load_model(str(tmp_path / "model.pth")), model)
    once = {name: tensor for name, tensor in state.items() if not name.startswith("norms.")}
    assert_same(load_meta({"model": once}), load_meta(state))


def test_other_architectures_and_contradictions_give_one_line():
    state = meta_state()
    without = {name: tensor for name, tensor in state.items() if name != "stages.1.1.norm.bias"}
    cases = [
        (without, {}, "no 'stages.1.1.norm.bias'"),
        ({**state, "head.weight": torch.ones(1)}, {}, "it also holds head.weight"),
        ({**state, "norms.3.bias": state["norm.bias"] + 1}, {}, "its two final norms differ in bias"),
        ({k: v for k, v in state.items() if not k.startswith("stages.2.")}, {}, "depths: got [1, 2, 0, 1]"),
        ({k: v for k, v in state.items() if k != "norm.bias"}, {}, "no 'norm.bias'"),
        ({**state, "stages.0.0.dwconv.weight": torch.ones(8, 1, 3, 3)}, {}, "size mismatch"),
        (state, {"depths": [1, 1, 1, 1]}, "depths=[1, 1, 1, 1] contradicts the checkpoint, which has [1, 2, 1, 1]"),
    ]
    for source, overrides, message in cases:
        with pytest.raises(ValueError) as error:
            load_meta(source, **overrides)
        assert message in str(error.value) and "\n" not in str(error.value)
    assert load_meta(state, drop_path_rate=0.1).config.drop_path_rate == 0.1


# What a layout cannot hold ------------------------------------------------------------------------------------------


def test_export_refuses_what_a_layout_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="layout: got 'timm', accepted: transformers, meta or onnx for a ConvNeXt"):
        export(make(), tmp_path / "out", layout="timm")
    with pytest.raises(ValueError, match="Meta's layout cannot hold classifier"):
        export(make(Dinov3ConvNextForImageClassification), tmp_path / "out", layout="meta")
    with pytest.raises(TypeError, match="needs a whole Dinov3 model of this package, got Dinov3ConvNextBackbone"):
        export(make(Dinov3ConvNextBackbone), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnx_gives_the_same_tokens_for_images_of_other_sizes(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make()
    export(model, tmp_path, layout="onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for images in (IMAGES, IMAGES[:1, :, :, :64]):
        (tokens,) = session.run(["last_hidden_state"], {"pixel_values": images.numpy()})
        with torch.no_grad():
            expected = model(images).last_hidden_state
        torch.testing.assert_close(torch.from_numpy(tokens), expected, atol=2e-5, rtol=0)


# The verbs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["transformers", "meta"])
def test_dinov3_export_reads_both_layouts_and_checks_what_it_wrote(layout, tmp_path, capsys):
    export(make(), tmp_path / "source", layout)
    source = tmp_path / "source" / ("model.pth" if layout == "meta" else "")
    for target, reader in (("transformers", "transformers' DINOv3ConvNextModel"), ("meta", "load_meta")):
        assert main(["export", str(source), "--layout", target, "--output-dir", str(tmp_path / target)]) == 0
        shown = capsys.readouterr().out
        assert f"checked: {reader} gives the same tokens" in shown and "omitted: nothing" in shown


def test_dinov3_evaluate_measures_it_and_refuses_tasks_by_layer(tmp_path, capsys):
    export(make(), tmp_path / "model")
    flags = ["--num-train", "24", "--num-test", "12", "--k", "3", "--output-dir", str(tmp_path)]
    assert main(["evaluate", str(tmp_path / "model"), "--task", "knn", "patch-knn", *flags]) == 0
    knn, patches = json.loads((tmp_path / "results.json").read_text())["results"]
    assert knn["protocol"]["preprocessing"]["image_size"] == 96
    for metric in knn["metrics"] + patches["metrics"]:
        assert all(0 <= metric[name] <= 1 for name in ("model", "random_init", "raw_pixels", "chance"))
    flags = ["--num-test", "12", "--output-dir", str(tmp_path), "--overwrite"]
    assert main(["evaluate", str(tmp_path / "model"), "--task", "outliers", *flags]) == 2
    assert "task: got outliers, accepted: another one" in capsys.readouterr().err


def test_what_needs_a_vision_transformer_says_so(tmp_path, capsys):
    folder = str(export(make(), tmp_path / "convnext"))
    for command in (
        ["finetune", folder, "--output-dir", str(tmp_path / "finetuned")],
        ["pretrain", "--config", "tiny_cpu", "--init-from", folder, "--output-dir", str(tmp_path / "pretrained")],
        ["align", "--config", "tiny_cpu", "--backbone", folder, "--output-dir", str(tmp_path / "aligned")],
    ):
        assert main(command) == 2
        assert "accepted: a vision transformer" in capsys.readouterr().err
