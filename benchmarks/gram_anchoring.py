"""Does Gram anchoring keep dense features from degrading? Trains with and without it from one checkpoint.

Both arms train without the patch loss and KoLeo and with a large weight of small local crops. This raises the cosine
of class and patch tokens, the sign of the paper's dense degradation (DINOv3, section 4.1). The Gram teacher is the
starting checkpoint.

python benchmarks/gram_anchoring.py outputs/gram --steps 600 --seeds 0 1 2
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from dinov3_hf import Dinov3Model
from dinov3_hf.data.pixels import decode_image
from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.run import evaluate
from dinov3_hf.evaluation.tasks import EvaluateRecipe
from dinov3_hf.recipe import build_recipe


FAILURE = {
    "ibot-weight": 0,
    "koleo-weight": 0,
    "momentum": 0.99,
    "lr": 4e-3,
    "lr-end": 4e-3,
    "lr-warmup-steps": 10,
    "local-crop-size": 16,
    "local-crops": 6,
    "local-crop-scale": "0.05 0.2",
    "local-weight": 8,
}
ANCHOR = {"gram-teacher": "checkpoint", "gram-weight": 2, "gram-crop-size": 64}
METRICS = ("patch mIoU", "cls-patch cosine", "cls k-NN")


def pretrain(output: Path, **flags: object) -> None:
    """Run `dinov3 pretrain --config tiny_cpu` with flags, unless `output` holds a finished run."""
    if (output / "model").is_dir():
        return
    command = [sys.executable, "-m", "dinov3_hf.cli", "pretrain", "--config", "tiny_cpu", "--resume"]
    for name, value in {"output-dir": output, **flags}.items():
        command += [f"--{name}", *str(value).split()]
    subprocess.run(command, check=True)


def measure(folder: Path, images: torch.Tensor) -> dict[str, float]:
    """Return patch k-NN mIoU on crowded scenes, the mean cosine of class and patch tokens there, and cls k-NN."""
    model = Dinov3Model.from_pretrained(folder).eval()
    with torch.inference_mode():
        output = model(images)
    cosine = cosine_similarity(output.pooler_output[:, None], output.patch_tokens, dim=-1).mean().item()
    values = {}
    for task, count in (("patch-knn", 500), ("knn", 2000)):
        settings = build_recipe(
            EvaluateRecipe,
            model=str(folder),
            task=[task],
            data="scenes",
            num_train=count,
            num_test=500,
            k=[10],
            baselines=False,
        )
        values[task] = evaluate(settings)["results"][0].metrics[0]["model"]
    return dict(zip(METRICS, (values["patch-knn"], cosine, values["knn"]), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--base-steps", type=int, default=600, help="steps of the checkpoint both arms start from")
    parser.add_argument("--steps", type=int, default=600, help="steps of each arm")
    parser.add_argument("--points", type=int, default=3, help="checkpoints measured in each arm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    base = arguments.output / "base"
    pretrain(base, steps=arguments.base_steps)
    every = arguments.steps // arguments.points
    rows = load_scenes("test", 500, subset="crowded")
    preprocessing = Preprocessing(64, 64)
    images = torch.stack([preprocessing.normalize(preprocessing.image(decode_image(row))) for row in rows["image"]])
    records: list[dict[str, Any]] = [{"arm": "start", "seed": 0, "step": 0, **measure(base / "model", images)}]
    for seed in arguments.seeds:
        for arm, flags in (("without", {}), ("with", ANCHOR | {"gram-checkpoint": base / "model"})):
            run = arguments.output / f"{arm}_{seed}"
            own = {"init-from": base / "model", "seed": seed, "steps": arguments.steps, "save-every": every}
            pretrain(run, **FAILURE, **flags, **own, **{"keep-checkpoints": arguments.points, "probe-every": every})
            for folder in sorted(run.glob("checkpoints/step_*")):
                step = int(folder.name.removeprefix("step_"))
                records.append({"arm": arm, "seed": seed, "step": step, **measure(folder / "model", images)})
                print(records[-1], flush=True)
    (arguments.output / "gram_anchoring.json").write_text(json.dumps(records, indent=2) + "\n")
    print("| arm | step | " + " | ".join(METRICS) + " |\n|" + "---|" * (2 + len(METRICS)))
    for arm, step in dict.fromkeys((record["arm"], record["step"]) for record in records):
        cells = []
        for name in METRICS:
            values = [record[name] for record in records if (record["arm"], record["step"]) == (arm, step)]
            cells.append(f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})")
        print(f"| {arm} | {step} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
