"""How much does pretraining improve a fine-tuned classifier, segmenter and depth estimator?

Every row compares `finetune` on real images with a pretrained backbone and with the same backbone with random weights
(the baseline), with the same head, steps and seed. Finished runs in --output-dir are reused. Prints a Markdown table;
--docs FILE replaces the table in that file.

    python benchmarks/finetuning_table.py --data FOLDER --output-dir outputs/finetuning --docs docs/results.md

FOLDER contains uc_merced, camvid and rgbd7scenes as Parquet files.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dinov3_hf import tiny_checkpoint
from dinov3_hf.cli import OneLineParser
from dinov3_hf.commands.finetune import load_splits
from dinov3_hf.evaluation.results import markdown, replace_table
from dinov3_hf.finetuning.arguments import FinetuneRecipe
from dinov3_hf.finetuning.run import finetune


METHODS = ("frozen", "lora", "full")
# By data set: fields of the recipe, and settings of the head, narrower than transformers' defaults (sized for GPUs).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "uc_merced": ({"task": "classification", "data": "uc_merced", "image_size": 64, "batch_size": 32}, {}),
    "camvid": (
        {
            "task": "segmentation",
            "data": "camvid",
            "mask_column": "label",
            "ignore_index": 11,
            "image_size": 128,
            "batch_size": 16,
        },
        {"hidden_size": 64},
    ),
    "rgbd7scenes": (
        {"task": "depth", "data": "rgbd7scenes", "image_size": 96, "batch_size": 16},
        {"neck_hidden_sizes": [32, 32, 64, 64], "fusion_hidden_size": 32},
    ),
}


def recipe_of(fields: dict) -> FinetuneRecipe:
    recipe = FinetuneRecipe()
    for group in (recipe.task, recipe.data, recipe.optimization, recipe.output):
        for name in set(vars(group)) & set(fields):
            setattr(group, name, fields[name])
    return recipe.validate()


def run(case: str, method: str, random_init: bool, arguments: argparse.Namespace) -> dict:
    """Return the result of one run; a finished run is read from its folder."""
    folder = arguments.output_dir / f"{case}-{method}{'-random-init' if random_init else ''}"
    file = folder / "result.json"
    if not file.exists():
        fields, head = CASES[case]
        fields = fields | {
            "data": str(arguments.data / fields["data"]),
            "model": arguments.model,
            "method": method,
            "random_init": random_init,
            "epochs": arguments.epochs,
            "num_workers": 0,
            # Training the whole backbone needs a smaller rate than training a head or adapters.
            "lr": 5e-4 if method == "full" else 1e-3,
            "output_dir": str(folder),
            "overwrite": True,
        }
        recipe = recipe_of(fields)
        file.write_text(json.dumps(finetune(recipe, *load_splits(recipe), head).as_dict(), indent=2) + "\n")
    return json.loads(file.read_text())


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that contains the data sets")
    parser.add_argument("--model", default=tiny_checkpoint(), help="[default: the bundled checkpoint]")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/finetuning"))
    parser.add_argument("--docs", type=Path, help="file whose table is replaced")
    arguments = parser.parse_args()
    lines = [("data", "method", "metric", "pretrained", "random init", "constant", "trained parameters", "seconds")]
    for case in arguments.cases:
        for method in arguments.methods:
            trained, baseline = (run(case, method, random_init, arguments) for random_init in (False, True))
            metric, other = trained["metrics"][0], baseline["metrics"][0]
            values = (metric["model"], other["random_init"], metric["chance"])
            shown = (f"{value:.3f}" for value in values)
            title = metric["metric"] + (" (m), lower is better" if metric.get("lower_is_better") else "")
            lines.append(
                (
                    case,
                    method,
                    title,
                    *shown,
                    f"{trained['trainable_parameters']:,}",
                    f"{trained['seconds']:.0f}",
                )
            )
    table = markdown(lines)
    print(table)
    if arguments.docs:
        replace_table(arguments.docs, "benchmarks/finetuning_table.py", table)


if __name__ == "__main__":
    main()
