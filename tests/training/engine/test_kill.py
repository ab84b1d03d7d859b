"""A run killed at any moment and started again is the same run: the same losses, weights and images, to the bit."""

import json
import multiprocessing as mp
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file


STEPS, BATCH, IMAGES, SAVE_EVERY = 60, 4, 96, 7
FLAGS = [
    *("pretrain --config tiny_cpu --hidden-size 32 --num-hidden-layers 2 --num-attention-heads 2").split(),
    *("--intermediate-size 64 --dino-head-num-prototypes 16 --ibot-head-num-prototypes 16").split(),
    *(f"--global-crop-size 32 --local-crop-size 16 --local-crops 2 --batch-size {BATCH} --steps {STEPS}").split(),
    *(f"--lr-warmup-steps 5 --log-every 1 --probe-every 1 --save-every {SAVE_EVERY} --num-workers 0").split(),
    *("--shuffle-block 8 --drop-path-rate 0.2 --pos-embed-rescale 1.5 --pos-embed-shift 0.1").split(),
    *("--gram-teacher ema_copy --gram-start-step 20 --gram-update-every 15 --gram-first-update 30").split(),
    *("--gram-crop-size 40 --milestone-every 21").split(),
]


def train(folder, output, seen):
    """Run to the end in a process of its own, writing down which image filled which place of which step."""
    from dinov3_hf.cli import main
    from dinov3_hf.training.batches import collate

    torch.set_num_threads(1)
    names, decode, make = [], collate.decode_image, collate.TrainingBatches.make_batch

    def decode_image(value):
        names.append(os.path.basename(value["path"]))
        return decode(value)

    def batch(self, images, places, step):
        with open(seen, "a") as file:
            file.write(json.dumps([step, names]) + "\n")
        names.clear()
        return make(self, images, places, step)

    collate.decode_image, collate.TrainingBatches.make_batch = decode_image, batch
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
    os._exit(main([*FLAGS, "--resume", "--data", str(folder), "--output-dir", str(output)]))


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


def read(output):
    losses = [(line["step"], line["loss"]) for line in map(json.loads, lines_of(output / "metrics.jsonl"))]
    files = {name: load_file(output / "model" / f"{name}.safetensors") for name in ("model", "heads")}
    (tensors,) = (output / "checkpoints" / f"step_{STEPS:08d}" / "tensors").glob("*.safetensors")
    return losses, files | {"state": load_file(tensors)}


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    folder, rng = tmp_path / "images", random.Random(0)
    folder.mkdir()
    for index in range(IMAGES):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["dinov3_hf.training.pretrain", "dinov3_hf.training.engine.loop", "datasets"])

    def start(name):
        process = context.Process(target=train, args=(folder, tmp_path / name, tmp_path / f"{name}.seen"))
        process.start()
        return process

    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0
    moments = []
    process = start("cut")
    # Steps near the end are spared: the run must not finish before it is killed.
    for target in sorted(rng.randint(0, STEPS - 2 * SAVE_EVERY) for _ in range(20)):
        # A moment anywhere: between two steps, inside one, while a checkpoint is written, or before the first step.
        while len(lines_of(tmp_path / "cut" / "metrics.jsonl")) < target and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        moments.append(len(lines_of(tmp_path / "cut" / "metrics.jsonl")))
        process = start("cut")
    process.join()
    print(f"killed {len(moments)} times, after {moments} logged steps")
    assert process.exitcode == 0 and len(moments) == 20
    (losses, files), (expected, wanted) = read(tmp_path / "cut"), read(tmp_path / "whole")
    assert len(expected) == STEPS and losses == expected
    for name, tensors in wanted.items():
        assert tensors.keys() == files[name].keys()
        assert all(torch.equal(tensor, files[name][key]) for key, tensor in tensors.items()), name
    # What a step that was lost had read is read again: the last reading of each step is the one that was applied.
    seen = dict(json.loads(line) for line in lines_of(tmp_path / "cut.seen"))
    order = [image for step in range(STEPS) for image in seen[step]]
    assert order == [name for line in lines_of(tmp_path / "whole.seen") for name in json.loads(line)[1]]
    for epoch in range(STEPS * BATCH // IMAGES):
        assert len(set(order[epoch * IMAGES : (epoch + 1) * IMAGES])) == IMAGES
    # Milestones outlive the newest two.
    kept = sorted(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir())
    assert kept == ["step_00000021", "step_00000042", "step_00000056", "step_00000060"]
