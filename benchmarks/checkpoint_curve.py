"""How do features improve during training? Measures every checkpoint of a run, and the baselines once.

python benchmarks/checkpoint_curve.py outputs/mine --data scenes --task knn patch-knn
"""

import argparse
import json
from pathlib import Path

from dinov3_hf.evaluation.run import evaluate
from dinov3_hf.evaluation.tasks import EvaluateRecipe
from dinov3_hf.recipe import build_recipe
from dinov3_hf.training.engine.monitor import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="output folder of dinov3 pretrain")
    parser.add_argument("--task", nargs="+", default=["knn", "patch-knn"])
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--num-train", type=int, default=2000)
    parser.add_argument("--num-test", type=int, default=500)
    parser.add_argument("--resize-size", type=int, help="default: as dinov3 evaluate")
    arguments = parser.parse_args()
    losses = {line["step"]: line["loss"] for line in read_metrics(arguments.run / "metrics.jsonl")}
    records, metrics = [], None
    for index, folder in enumerate(sorted(arguments.run.glob("checkpoints/step_*"))):
        step = int(folder.name.removeprefix("step_"))
        settings = build_recipe(
            EvaluateRecipe,
            model=str(folder / "model"),
            task=arguments.task,
            data=arguments.data,
            num_train=arguments.num_train,
            num_test=arguments.num_test,
            resize_size=arguments.resize_size,
            k=[10],
            cache_dir=str(arguments.run / "features"),
            baselines=index == 0,  # they do not depend on the checkpoint
        )
        measured = [metric for result in evaluate(settings)["results"] for metric in result.metrics]
        if metrics is None:
            metrics = [metric["metric"] for metric in measured]
            print("| step | loss | " + " | ".join(metrics) + " |\n|" + "---|" * (2 + len(metrics)))
            for baseline in ("chance", "raw_pixels", "random_init"):
                values = " | ".join(f"{metric[baseline]:.4f}" for metric in measured)
                print(f"| {baseline.replace('_', ' ')} | | {values} |")
        print(
            f"| {step} | {losses[step]:.3f} | " + " | ".join(f"{m['model']:.4f}" for m in measured) + " |", flush=True
        )
        records.append({"step": step, "metrics": measured})
    (arguments.run / "curve.json").write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
