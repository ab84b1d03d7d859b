"""What the pages of docs/ print is what runs: how_to.md from top to bottom."""

import re
import shlex
from pathlib import Path

import pytest

from dinov3_hf import tiny_checkpoint
from dinov3_hf.cli import main
from dinov3_hf.data.scenes import load_scenes


DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "how_to.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.S)


def test_every_snippet_runs_in_order(tmp_path, monkeypatch, capsys):
    for library in ("faiss", "timm", "onnx", "onnxruntime", "torchao", "peft"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    names, variables = {}, {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, f"how_to.md: {block.splitlines()[0]}", "exec"), names)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("MODEL="):
                assert line == 'MODEL=$(python -c "import dinov3_hf; print(dinov3_hf.tiny_checkpoint())")'
                variables["$MODEL"] = tiny_checkpoint()
            else:
                command, *rest = [variables.get(part, part) for part in shlex.split(line)]
                assert command == "dinov3" and main(rest) == 0, line
    # What the page says of its results.
    assert names["features"][0].shape == (1, 96) and names["maps"].shape == (1, 96, 25, 41)
    assert names["full"].shape == (1, 96, 200, 330)
    assert len(names["found"]["image"]) == 5 and list(names["scores"]) == sorted(names["scores"], reverse=True)
    assert names["logits"].shape == (4, 10)
    assert {segment["label"] for segment in names["segments"]} <= {"mug", "star", "wood"}
    assert names["tokens"].shape == names["model"](names["pixels"]).last_hidden_state.shape


def test_the_parts_of_the_demos_run_without_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, image in zip(("image.jpg", "other.jpg"), load_scenes("test", 2, image_size=128)["image"], strict=True):
        image.save(name)
    names = {}
    block = re.search(r"```python\n(.*?)```", (DOCS / "demos.md").read_text(), re.S).group(1)
    exec(compile(block, "demos.md", "exec"), names)
    assert names["picture"].shape == (64, 64, 3) and names["places"].shape == (1, 2)


def test_pages_link_to_pages_that_are_there():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_method_index_names_files_that_are_there():
    named = re.findall(r"`([\w/.-]+\.py)`", (DOCS / "method_index.md").read_text())
    assert len(named) > 50
    for name in named:
        assert (DOCS.parent / name).is_file(), name
