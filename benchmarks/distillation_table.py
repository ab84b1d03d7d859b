"""Is a small network better if distilled than if pretrained from scratch, for the same compute?

Students of the bundled checkpoint are distilled together on rendered scenes (recipe distill_tiny_cpu); each is also
pretrained alone (recipe tiny_cpu) for the number of steps that costs the same FLOPs, with the teacher's forward pass
counted in full for every student. Measures k-NN on scenes and on CIFAR-10 (Parquet files in the folder cifar10 inside
--data) and prints one Markdown table; --docs FILE replaces the table in that file. Finished runs in --output-dir are
reused.

    python benchmarks/distillation_table.py --data FOLDER --docs docs/distillation.md
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dinov3_hf import tiny_checkpoint
from dinov3_hf.cli import main as dinov3
from dinov3_hf.evaluation.results import markdown, replace_table
from dinov3_hf.evaluation.run import evaluate
from dinov3_hf.evaluation.tasks import EvaluateRecipe
from dinov3_hf.recipe import build_recipe
from dinov3_hf.training.arguments import PretrainRecipe
from dinov3_hf.training.batches.collate import MASKS
from dinov3_hf.training.distill_arguments import DistillRecipe, parse_student
from dinov3_hf.training.distillation import Distillation
from dinov3_hf.training.initialization import build_student
from dinov3_hf.training.schedules import Schedules
from dinov3_hf.training.self_distillation import SelfDistillation
from dinov3_hf.training.students import load_teacher, new_student, student_config


# One student has half of the teacher's blocks, the other half of its width.
SHAPES = {
    "shallow": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384},
    "narrow": {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 192},
}
SHARED = {"patch_size": 8, "num_register_tokens": 4, "layerscale_value": 0.1}
IMAGES = 8


def entry(name: str) -> str:
    return f"{name}=vits16:" + ",".join(f"{field}={value}" for field, value in (SHAPES[name] | SHARED).items())


def flops(objective: torch.nn.Module, batch: dict, values: dict) -> int:
    """Return the FLOPs of the forward and backward pass of a batch."""
    with FlopCounterMode(display=False) as counter:
        objective.train()(batch, values).loss.backward()
    return counter.get_total_flops()


def flops_distilled(name: str) -> int:
    recipe = build_recipe(DistillRecipe, "distill_tiny_cpu", students=[entry(name)])
    arguments, crops = recipe.distillation, recipe.crops
    teacher, heads = load_teacher(arguments)
    student = new_student(
        name, student_config(parse_student(entry(name)), arguments, crops, heads), arguments, teacher, heads, 0
    )
    side, size = crops.global_crop_size, SHARED["patch_size"]
    batch = {
        "global_crops": torch.randn(2, IMAGES, 3, side, side),
        f"{MASKS}{size}": torch.ones(2, IMAGES, (side // size) ** 2, dtype=torch.bool),
    }
    objective = Distillation(teacher, {name: student}, recipe.objective, arguments.feature_loss)
    return flops(objective, batch, Schedules(recipe.optimization, IMAGES).values_at(0))


def flops_pretrained(name: str) -> int:
    recipe = build_recipe(PretrainRecipe, "tiny_cpu", **SHAPES[name])
    crops, (student, _) = recipe.crops, build_student(recipe.model, recipe.crops)
    masks = torch.rand(2, IMAGES, (crops.global_crop_size // SHARED["patch_size"]) ** 2) < 0.15
    batch = {
        "global_crops": torch.randn(2, IMAGES, 3, *[crops.global_crop_size] * 2),
        "local_crops": torch.randn(crops.local_crops, IMAGES, 3, *[crops.local_crop_size] * 2),
        "masks": masks,
    }
    return flops(
        SelfDistillation(student, recipe.objective), batch, Schedules(recipe.optimization, IMAGES).values_at(0)
    )


def train(verb: str, output: Path, flags: list[str]) -> None:
    """Run a command of the package to the end, resuming an interrupted run; skip it if it is finished."""
    if not (output / "model").exists() and dinov3([verb, *flags, "--resume", "--output-dir", str(output)]):
        raise SystemExit(f"dinov3 {verb} did not finish: {output}")


def measure(model: Path | str, data: Path | None, output: Path, quick: bool) -> list[dict]:
    """Return the k-NN metrics of a model, with baselines, on scenes and CIFAR-10."""
    # Enough images to resolve differences of two per cent.
    counts: dict[str, Any] = {"num_train": 200, "num_test": 100} if quick else {"num_train": 5000, "num_test": 5000}
    metrics = []
    for name, source in (("scenes", None), ("cifar10", data)):
        if name == "scenes" or source is not None:
            settings = {} if source is None else {"data": str(source / name)}
            record = evaluate(
                build_recipe(
                    EvaluateRecipe,
                    model=str(model),
                    task=["knn"],
                    k=[10],
                    image_size=48,
                    resize_size=48,
                    output_dir=str(output / name),
                    cache_dir=str(output / "features"),
                    update_card=False,
                    overwrite=True,
                    **settings | counts,
                )
            )
            metrics.append(record["results"][0].metrics[0])
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that contains cifar10; without it only scenes are measured")
    parser.add_argument("--steps", type=int, default=1500, help="steps of the distillation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="measure on few images, only to check that the script runs"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/distillation_table"))
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    output, names = arguments.output_dir, list(SHAPES)
    common = ["--seed", str(arguments.seed)]

    def times(steps: int) -> list[str]:
        """Return the flags for a run of `steps` steps: a twentieth is warm-up, as in the recipes; few checkpoints."""
        every = max(1, steps // 3)
        lengths = {
            "steps": steps,
            "lr-warmup-steps": steps // 20,
            "log-every": every,
            "save-every": every,
            "probe-every": every,
        }
        return [text for flag, value in lengths.items() for text in (f"--{flag}", str(value))]

    train(
        "distill",
        output / "distilled",
        ["--config", "distill_tiny_cpu", "--students", *map(entry, names), *times(arguments.steps), *common],
    )
    table: list[tuple[str, ...]] = [
        ("network", "parameters", "steps", "GFLOP an image and step", "k-NN, scenes", "k-NN, CIFAR-10")
    ]

    def row(name: str, folder: Path | str, steps: str, cost: str) -> None:
        from dinov3_hf import Dinov3Model

        count = sum(parameter.numel() for parameter in Dinov3Model.from_pretrained(folder).parameters())
        metrics = measure(
            folder, arguments.data, output / "measured" / name.replace(" ", "_").replace(",", ""), arguments.quick
        )
        cells = [f"{one['model']:.3f} (random init {one['random_init']:.3f})" for one in metrics]
        table.append((name, f"{count:,}", steps, cost, *cells, *[""] * (2 - len(cells))))

    row("the teacher", tiny_checkpoint(), "", "")
    for name in names:
        distilled, pretrained = flops_distilled(name) / IMAGES, flops_pretrained(name) / IMAGES
        steps = round(arguments.steps * distilled / pretrained)
        shape = [
            text for field, value in SHAPES[name].items() for text in (f"--{field.replace('_', '-')}", str(value))
        ]
        train("pretrain", output / f"pretrained_{name}", ["--config", "tiny_cpu", *shape, *times(steps), *common])
        row(
            f"{name}, distilled",
            output / "distilled" / "model" / name,
            f"{arguments.steps:,}",
            f"{distilled / 1e9:.3f}",
        )
        row(
            f"{name}, pretrained alone",
            output / f"pretrained_{name}" / "model",
            f"{steps:,}",
            f"{pretrained / 1e9:.3f}",
        )
    text = markdown(table)
    print(text)
    if arguments.docs:
        replace_table(arguments.docs, "benchmarks/distillation_table.py", text)


if __name__ == "__main__":
    main()
