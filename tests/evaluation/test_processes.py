"""`dinov3 evaluate` by two processes, and killed on its way, gives what one process gives undisturbed."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from dinov3_hf.cli import main

from ..processes import run_processes


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
    "image_size": 64,
    "layerscale_value": 0.1,
}
TASKS = ["knn", "linear", "segmentation"]
FLAGS = ["--task", *TASKS, "--num-train", "60", "--num-test", "30", "--k", "3", "--batch-size", "7", "--steps", "20"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    DINOv3ViTModel(DINOv3ViTConfig(**SIZES)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def expected(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert main(["evaluate", str(checkpoint), *FLAGS, "--output-dir", str(folder)]) == 0
    return metrics(folder)


def metrics(folder):
    results = json.loads((folder / "results.json").read_text())["results"]
    assert [result["task"] for result in results] == TASKS
    return [result["metrics"] for result in results]


def work(rank, argv, folder):
    with open(folder / f"{rank}.txt", "w") as file, contextlib.redirect_stdout(file):
        assert main(argv) == 0


def test_two_processes_give_the_metrics_of_one(checkpoint, expected, tmp_path):
    run_processes(work, ["evaluate", str(checkpoint), *FLAGS, "--output-dir", str(tmp_path / "out")], tmp_path)
    shown = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert [text.count("results:") for text in shown] == [1, 0]
    assert metrics(tmp_path / "out") == expected


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_gives_the_same(checkpoint, expected, tmp_path):
    command = [
        sys.executable,
        "-m",
        "dinov3_hf.cli",
        "evaluate",
        str(checkpoint),
        *FLAGS,
        "--output-dir",
        str(tmp_path),
    ]
    for seconds in (6, 8, 10, 12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if not (tmp_path / "results.json").exists():
        subprocess.run(command, check=True, capture_output=True)
    assert metrics(tmp_path) == expected
