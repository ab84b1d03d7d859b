"""What README prints is what runs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3_hf.cli import main
from dinov3_hf.recipe import folder_of
from dinov3_hf.training.arguments import PretrainRecipe


README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- (\w+) -->\s*```\w+\n(.*?)```", README, re.S))
SMALL = "--steps 2 --lr-warmup-steps 1 --batch-size 4 --hidden-size 24 --num-hidden-layers 1 --num-workers 0".split()


def command(start):
    """Return the arguments of the first README line that starts so."""
    line = next(line for line in README.splitlines() if line.startswith(start))
    return shlex.split(line)[1:]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that looks like the reader's: images in it, and a model where the quickstart leaves one."""
    folder = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    for index in range(20):
        place = folder / "path" / "to" / "images" / f"{index}.jpg"
        labelled = folder / "path" / "to" / "labelled_images" / "ab"[index % 2] / f"{index}.jpg"
        for file in (place, labelled):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file)
    return folder


def test_training_and_measuring_commands_run(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    assert main([*command("dinov3 pretrain"), *SMALL]) == 0
    assert (workplace / "outputs" / "mine" / "model" / "config.json").exists()
    assert main([*command("dinov3 evaluate"), "--k", "3"]) == 0


def test_inference_example_runs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    assert (
        main(["pretrain", "--config", "tiny_cpu", *SMALL, "--num-images", "16", "--output-dir", "outputs/quickstart"])
        == 0
    )
    capsys.readouterr()
    exec(compile(BLOCKS["inference"], "README.md", "exec"), {})
    assert capsys.readouterr().out.split() == "torch.Size([1, 24]) torch.Size([1, 36, 24])".split()
    assert len([line for line in BLOCKS["inference"].splitlines() if line.strip()]) <= 12


def test_quickstart_writes_its_report(tmp_path, capsys):
    recipe = tmp_path / "small.yaml"
    small = {flag.lstrip("-").replace("-", "_"): value for flag, value in zip(SMALL[::2], SMALL[1::2], strict=True)}
    lines = (folder_of(PretrainRecipe) / "tiny_cpu.yaml").read_text().splitlines()
    kept = [line for line in lines if line.partition(":")[0] not in small]
    recipe.write_text("\n".join([*kept, *(f"{name}: {value}" for name, value in small.items())]))
    flags = ["--recipe", str(recipe), "--output-dir", str(tmp_path / "out"), "--num-train", "40", "--num-test", "20"]
    flags += ["--text-steps", "3"]
    assert main(["quickstart", *flags]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "raw pixels" in page and "random init" in page and page.count("data:image/png") >= 36
    assert "Open-vocabulary segmentation" in page and "zero-shot segmentation: mIoU" in page
    assert not re.search(r"(src|href)=.https?:", page)
    shown = capsys.readouterr().out
    assert (tmp_path / "out" / "results.json").exists() and "report:" in shown
    for name, model in (("dense_features", "model"), ("open_vocabulary_segmentation", "text/model")):
        command = f"dinov3 demo {name} --model {tmp_path / 'out' / model}"
        assert command in shown and command in page and (tmp_path / "out" / model / "config.json").exists()


def test_ci_runs_the_readmes_test_command():
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    assert 'dict(blocks)["tests"]' in script and "make quality" in script
    assert "pytest" in BLOCKS["tests"] and "dinov3 quickstart" in BLOCKS["quickstart"]
