"""Shared by pretraining, distillation and text alignment: data sources, output folder, online probe, processor."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dinov3_hf.provenance import versions
from dinov3_hf.recipe import RECIPE_FILE, check_run_folder, write_recipe

from .arguments import CropArguments, DataArguments, RunRecipe


if TYPE_CHECKING:
    import datasets
    from transformers import DINOv3ViTImageProcessor

    from .engine.loop import RunResult
    from .engine.sharding import Accelerator
    from .health import OnlineProbe
    from .objective import Objective


# The only fields that may differ from the original recipe when a run is resumed.
MAY_CHANGE = {
    *(
        "output_dir",
        "resume",
        "overwrite",
        "log_every",
        "save_every",
        "keep_checkpoints",
        "milestone_every",
        "report_to",
    ),
    *("probe_every", "activation_checkpointing", "num_workers", "batch_size", "gradient_accumulation_steps"),
    # Distillation: each student has its own part of a checkpoint.
    *("students", "group_sizes"),
}


class ProbedData(Protocol):
    """Data arguments with training sources and optional held-out data."""

    data: list[str]
    probe_data: str | None


def check_output_folder(recipe: RunRecipe) -> bool:
    """Return whether the output folder holds a run to resume.

    Raises `Refused` if it cannot be written to or holds another run.
    """
    return check_run_folder(Path(recipe.run.output_dir), recipe, MAY_CHANGE)


def prepare_output(recipe: RunRecipe, accelerator: "Accelerator", objective: "Objective") -> Path:
    """Clear or reuse the output folder, and write the recipe, library versions and git state into it.

    Every process checks the folder first (raising `Refused`); then the first process writes.
    """
    from .engine.checkpointing import check_parts

    output_dir = Path(recipe.run.output_dir)
    resumed = check_output_folder(recipe)
    if resumed:
        check_parts(output_dir, objective)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if not resumed and (output_dir / RECIPE_FILE).is_file():
            for name in ("checkpoints", "model"):
                shutil.rmtree(output_dir / name, ignore_errors=True)
            (output_dir / "metrics.jsonl").unlink(missing_ok=True)
        write_recipe(output_dir, recipe)
        (output_dir / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")
    accelerator.wait_for_everyone()
    return output_dir


def open_sources(data: DataArguments) -> list["datasets.Dataset | datasets.IterableDataset"]:
    """Open every data source with its image column only, images undecoded, and print what each was taken for."""
    from dinov3_hf.data.sources.account import print_account
    from dinov3_hf.data.streams import load_source

    options: dict[str, Any] = {
        "streaming": data.streaming,
        "image_column": data.image_column,
        "num_images": data.num_images,
    }
    sources = [load_source(source, data.split, columns=[], **options) for source in data.data]
    for source, rows in zip(data.data, sources, strict=True):
        print_account(source, data.split, rows, data.image_column)
    return sources


def probe_source(data: ProbedData) -> str | None:
    """Return the source of held-out rows: probe_data, else scenes when training on scenes, else None."""
    return data.probe_data or ("scenes" if data.data[0].split(":")[0] == "scenes" else None)


def build_probe(data: DataArguments, crops: CropArguments) -> "OnlineProbe | None":
    """Build the probe that evaluates the teacher on held-out images; None if the recipe has no held-out images."""
    from dinov3_hf.data.columns import find_image_column
    from dinov3_hf.data.streams import load_source

    from .health import OnlineProbe

    source = probe_source(data)
    if source is None:
        return None
    rows = load_source(source, data.probe_split, num_images=data.probe_images)
    names = list(rows.column_names or next(iter(rows)))
    label = data.probe_label_column or ("label" if "label" in names else None)
    size, bank = crops.global_crop_size, data.probe_images * 4 // 5
    column = find_image_column(rows, None)
    return OnlineProbe(rows, column, label, size, crops.image_mean, crops.image_std, bank, data.probe_images - bank)


def crop_processor(crops: CropArguments) -> "DINOv3ViTImageProcessor":
    """Return an image processor with the global crop size and the normalisation of these crops."""
    from transformers import DINOv3ViTImageProcessor

    size = {"height": crops.global_crop_size, "width": crops.global_crop_size}
    # Whoever uses it may have grey, palette or transparent images, which training converts too.
    return DINOv3ViTImageProcessor(
        size=size, image_mean=crops.image_mean, image_std=crops.image_std, do_convert_rgb=True
    )


def finish(
    accelerator: "Accelerator",
    result: "RunResult",
    models: Collection[Path],
    unit: str = "images",
    bad: str = "could not be decoded",
) -> "RunResult":
    """Print a summary of the run and the paths of its models, close the trackers, and return the result."""
    accelerator.print(f"{result.steps} steps; {result.images_read} {unit} read, {result.bad_images} of them {bad}")
    if result.finished:
        accelerator.print(f"model{'s' if len(models) > 1 else ''}: {', '.join(map(str, models))}")
    accelerator.end_training()
    return result
