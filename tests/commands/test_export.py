"""`dinov3 export` from the bundled checkpoint: what it writes, says and refuses."""

import argparse
import json
import sys

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, DINOv3ViTImageProcessor

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining, Dinov3ImageProcessor, Dinov3Model, tiny_checkpoint
from dinov3_hf.checkpoints import export, load_meta
from dinov3_hf.checkpoints.processors import find_processor
from dinov3_hf.commands.export import add_arguments, agreement, run
from dinov3_hf.errors import Failed


def call(*argv):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in argv]))


def test_transformers_layout_needs_this_package_no_more(tmp_path, capsys):
    assert call(tiny_checkpoint(), "--output-dir", tmp_path / "new") == 0
    shown = capsys.readouterr().out
    assert "omitted: nothing" in shown and "model.safetensors (1.88 MB)" in shown
    assert "checked: transformers' DINOv3ViTModel gives the same tokens" in shown
    assert AutoModel.from_pretrained(tmp_path / "new").config.patch_size == 8
    assert AutoImageProcessor.from_pretrained(tmp_path / "new").size["height"] == 48


def test_meta_layout_comes_back_bit_equal(tmp_path, capsys):
    assert call(tiny_checkpoint(), "--layout", "meta", "--output-dir", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "checked: load_meta" in shown and "preprocessing: none" in shown
    again = load_meta(tmp_path / "model.pth").state_dict()
    assert all(
        torch.equal(again[k], v) for k, v in Dinov3Model.from_pretrained(tiny_checkpoint()).state_dict().items()
    )
    assert call(tmp_path / "model.pth", "--output-dir", tmp_path / "back") == 0


def test_timm_layout_carries_the_processor_along(tmp_path, capsys):
    pytest.importorskip("timm")
    model = Dinov3Model.from_pretrained(tiny_checkpoint())
    model.save_pretrained(tmp_path / "ours")
    Dinov3ImageProcessor(size={"height": 40, "width": 56}, image_mean=[0.4, 0.3, 0.2]).save_pretrained(
        tmp_path / "ours"
    )
    assert call(tmp_path / "ours", "--layout", "timm", "--output-dir", tmp_path / "timm") == 0
    shown = capsys.readouterr().out
    assert "omitted: mask_token" in shown and "checked: timm gives the same tokens" in shown
    found = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]
    assert found["mean"] == [0.4, 0.3, 0.2] and found["input_size"] == [3, 40, 56]
    processor = find_processor(str(tmp_path / "timm"))
    assert list(processor.image_mean) == [0.4, 0.3, 0.2] and dict(processor.size) == {"height": 40, "width": 56}
    assert call(tmp_path / "ours", "--output-dir", tmp_path / "reference") == 0
    processor = AutoImageProcessor.from_pretrained(tmp_path / "reference")
    assert isinstance(processor, DINOv3ViTImageProcessor) and list(processor.image_mean) == [0.4, 0.3, 0.2]
    assert not list((tmp_path / "reference").glob("*.py"))


def test_onnx_layout_is_checked_by_onnxruntime(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    export(Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32)), tmp_path / "model")
    assert call(tmp_path / "model", "--layout", "onnx", "--output-dir", tmp_path / "onnx") == 0
    shown = capsys.readouterr().out
    assert "omitted: mask_token" in shown and "checked: onnxruntime gives the same tokens" in shown
    assert {file.name for file in (tmp_path / "onnx").iterdir()} == {"model.onnx", "preprocessor_config.json"}


def test_heads_that_a_layout_loses_are_named(tmp_path, capsys):
    few = {f"{head}_head_{name}": 4 for head in ("dino", "ibot") for name in ("num_prototypes", "hidden_size")}
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = Dinov3ForPreTraining(Dinov3Config(**sizes, **few, patch_size=8, image_size=32))
    export(model, tmp_path / "model")
    assert call(tmp_path / "model", "--layout", "timm", "--output-dir", tmp_path / "timm") == 0
    assert "omitted: mask_token, dino_head, ibot_head" in capsys.readouterr().out
    assert call(tmp_path / "model", "--output-dir", tmp_path / "again") == 0
    shown = capsys.readouterr().out
    assert "omitted: nothing" in shown and "heads.safetensors" in shown


def test_a_result_that_differs_is_refused(tmp_path, monkeypatch):
    model = Dinov3Model.from_pretrained(tiny_checkpoint()).eval()
    export(model, tmp_path, layout="meta")
    difference, reader = agreement(model, tmp_path, "meta")
    assert difference == 0 and reader == "load_meta"
    with torch.no_grad():
        model.norm.bias[0] += 0.5
    assert agreement(model, tmp_path, "meta")[0] > 0.05
    monkeypatch.setattr("dinov3_hf.commands.export.agreement", lambda *_: (0.05, "load_meta"))
    with pytest.raises(Failed, match="what load_meta reads from .* differs by 0.05, accepted: at most 0.0001"):
        call(tiny_checkpoint(), "--layout", "meta", "--output-dir", tmp_path / "new")


def test_without_its_reader_a_layout_is_written_and_not_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert call(tiny_checkpoint(), "--layout", "timm", "--output-dir", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "not checked: timm is not installed" in shown and "checked: timm" not in shown.replace("not checked", "")


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        ([], ValueError, "model: missing, accepted: a directory, a hub id"),
        (["{tiny}"], ValueError, "output_dir: missing, accepted: a folder to write to"),
        (
            ["{tiny}", "--layout", "onx", "--output-dir", "x"],
            ValueError,
            "layout: got 'onx', accepted: transformers, meta",
        ),
        (
            ["{tiny}", "--output-dir", "{full}"],
            ValueError,
            "accepted: a folder without files, or --overwrite",
        ),
        (
            ["{tiny}", "--output-dir", "{full}/file"],
            ValueError,
            "file is a file, accepted: a folder that can be made or written to",
        ),
        (
            ["{full}", "--overwrite", "--output-dir", "{full}"],
            ValueError,
            "accepted: another folder than the model's own",
        ),
        (["{full}/absent", "--output-dir", "{full}/new"], ValueError, "model: no config.json in"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(argv, error, message, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(error) as caught:
        call(*(word.format(tiny=tiny_checkpoint(), full=tmp_path) for word in argv))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_overwrite_writes_beside_what_is_there(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert call(tiny_checkpoint(), "--layout", "meta", "--overwrite", "--output-dir", tmp_path) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"file", "model.pth"}
