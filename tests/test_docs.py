"""What docs/how_to.md prints is what runs, from top to bottom."""

import re
import shlex
from pathlib import Path

import pytest

from dinov3_hf import tiny_checkpoint
from dinov3_hf.cli import main


PAGE = (Path(__file__).parents[1] / "docs" / "how_to.md").read_text()
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


def test_pages_link_to_pages_that_are_there():
    docs = Path(__file__).parents[1] / "docs"
    for page in [*docs.glob("*.md"), docs.parent / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
