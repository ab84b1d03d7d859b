"""The traced program and the ONNX graph against the model, at sizes they were not traced with."""

import copy
import sys

import pytest
import torch

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.checkpoints import export
from dinov3_hf.checkpoints.onnx import OUTPUTS, trace


SHAPES = [(1, 3, 32, 32), (3, 3, 16, 16), (2, 3, 24, 80), (1, 3, 136, 40)]


def make(**fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = Dinov3Model(Dinov3Config(**{**sizes, "patch_size": 8, "image_size": 32, **fields})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    pytest.importorskip("onnxscript")
    return export(model, tmp_path_factory.mktemp("onnx"), layout="onnx")


def run(directory, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == ["pixel_values"]
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert tuple(x.name for x in session.get_outputs()) == OUTPUTS
    return [torch.from_numpy(x) for x in session.run(None, {"pixel_values": images.numpy()})]


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 8, 24)], ids=str)
@torch.inference_mode()
def test_onnxruntime_gives_the_same_outputs_for_any_batch_and_size(directory, model, shape):
    images = torch.randn(shape)
    expected = model(images)
    for name, found in zip(OUTPUTS, run(directory, images), strict=True):
        torch.testing.assert_close(found, getattr(expected, name), atol=1e-4, rtol=0, msg=name)


@pytest.mark.slow
def test_graph_is_one_file_unless_the_weights_are_too_large_for_it(directory, model, tmp_path, monkeypatch):
    assert [file.name for file in directory.iterdir()] == ["model.onnx"]
    monkeypatch.setattr("dinov3_hf.checkpoints.onnx._MAX_BYTES_IN_GRAPH", 0)
    export(copy.deepcopy(model).bfloat16(), tmp_path, layout="onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    found = run(tmp_path, torch.zeros(1, 3, 16, 24))
    assert found[0].shape == (1, 1 + 4 + 6, 24) and found[0].dtype == torch.float32


@pytest.mark.parametrize(
    "fields",
    [
        {},
        pytest.param({"rope_normalize_coords": "max", "use_gated_mlp": True}, marks=pytest.mark.slow),
        pytest.param({"rope_min_period": 0.5, "rope_max_period": 20.0}, marks=pytest.mark.slow),
    ],
    ids=["plain", "longer side", "period bounds"],
)
@torch.inference_mode()
def test_traced_program_reloads_and_takes_any_batch_and_size(fields, tmp_path):
    model = make(**fields)
    torch.export.save(trace(model), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for shape in SHAPES:
        images = torch.randn(shape)
        expected = model(images)
        for name, found in zip(OUTPUTS, program(images), strict=True):
            torch.testing.assert_close(found, getattr(expected, name), atol=1e-5, rtol=0)


def test_what_is_missing_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"layout: onnx needs onnxscript: pip install 'dinov3-hf\[onnx\]'"):
        export(model, tmp_path / "new", layout="onnx")
    assert not (tmp_path / "new").exists()
