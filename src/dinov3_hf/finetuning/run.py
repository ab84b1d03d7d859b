"""Fine-tuning of a head, adapters or all weights with `transformers.Trainer`."""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import DINOv3ViTImageProcessor, ImageProcessingMixin, PreTrainedModel

from ..checkpoints import load_backbone
from ..checkpoints.processors import image_side, processor_for
from ..data.columns import find_image_column, undecoded
from ..data.views import check_image_size
from ..errors import Refused
from ..evaluation.features import randomly_initialised
from ..evaluation.result import Result
from ..evaluation.results import no_metrics
from ..models.modeling_dinov3 import Dinov3Model
from ..recipe import check_run_folder, write_recipe
from .adapters import (
    add_adapters,
    export_merged,
    export_transformers_adapter,
    mark_trainable,
    merge,
    save_adapter,
)
from .arguments import FinetuneRecipe
from .classification import Classification
from .depth import Depth
from .detection import Detection
from .examples import View
from .segmentation import Segmentation
from .trainer import FinetuneTrainer, Task


if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel


# Fields that may differ between a run and the one that resumes it.
MAY_CHANGE = ("output_dir", "resume", "overwrite", "export", "num_workers")


def finetune(recipe: FinetuneRecipe, train: "Dataset", test: "Dataset", head_config: dict | None = None) -> Result:
    """Fine-tune on the rows `train`, save the model, and evaluate it on the rows `test`.

    Writes the folder `adapter` (lora, dora; loaded by `load_adapter`) or `model` (loaded by the model class) to
    output_dir, and a checkpoint per epoch; a resumed run gives the same metrics as one that was not interrupted.
    `head_config` are fields of a dense head's configuration (as `d_model`). Raises `Refused` for invalid settings or
    data.
    """
    from transformers import set_seed

    recipe.validate()
    output = Path(recipe.output.output_dir)
    settings = recipe.task
    assert settings.model is not None  # refused by `validate`
    checkpoint = find_checkpoint(recipe, output)
    backbone = load_backbone(settings.model)
    processor, view = preprocessing_of(recipe, backbone)
    check_image_size(view.size, backbone.config.patch_size)
    train, test = undecoded(train), undecoded(test)
    task = make_task(recipe, train, test, view)
    if settings.random_init:
        backbone = randomly_initialised(backbone, recipe.optimization.seed)
    set_seed(recipe.optimization.seed)
    model = build_model(recipe, task, backbone, head_config or {})
    start_folder(recipe, output, checkpoint)
    trainer = FinetuneTrainer(recipe, model, task, train, test)
    # Read now: training deletes this checkpoint when it writes the next one.
    begun, started = resumed_epoch(checkpoint), time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.monotonic() - started
    statistics = trainer.measure()
    has_adapters = settings.has_adapters
    folder = output / ("adapter" if has_adapters else "model")
    # The random-init baseline is not saved: its adapters only fit random weights that are not saved anywhere.
    if trainer.is_world_process_zero() and not settings.random_init:
        save_adapter(model, folder) if has_adapters else model.save_pretrained(folder)
        processor.save_pretrained(folder)
        export_as_asked(recipe, model, folder, processor)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    skipped = statistics.isnan().any(1)
    metrics = task.metrics(statistics[~skipped])
    if reasons := no_metrics(metrics):
        # The model is trained and saved: its metrics are told with this.
        print("; ".join(f"{title} tells nothing: {reason}" for title, reason in reasons.items()))
    for metric in metrics:
        metric["method"] = settings.method
        if settings.random_init:
            metric["random_init"] = metric.pop("model")
            # An interval is that of the model.
            metric.pop("interval", None)
    return Result(
        task=settings.task,
        protocol={
            "training": recipe.as_flat_dict(),
            "measured_on": "the last weights; no epoch is chosen by the test rows",
            "preprocessing": asdict(view),
        },
        skipped_images={"test": int(skipped.sum())},
        metrics=metrics,
        details={
            "trainable_parameters": trainable,
            "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
            "seconds": round(seconds, 1),
            "resumed_from_epoch": begun,
            "folder": None if settings.random_init else str(folder),
        },
    )


def build_model(
    recipe: FinetuneRecipe, task: Task, backbone: Dinov3Model, head_config: dict
) -> "PreTrainedModel | PeftModel":
    """Return the task's model on a backbone, with adapters, or with the weights frozen that are not trained."""
    settings = recipe.task
    assert settings.model is not None
    model = task.build(backbone, settings.model, head_config)
    if settings.has_adapters:
        is_dora = settings.method == "dora"
        return add_adapters(
            model, settings.rank, settings.alpha, settings.target_modules, is_dora, settings.train_tokens
        )
    mark_trainable(model, settings.method == "full", settings.train_tokens)
    return model


def make_task(recipe: FinetuneRecipe, train: "Dataset", test: "Dataset", view: View) -> Task:
    """Return the recipe's task for these rows; raises `Refused` for rows it cannot use."""
    for name, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise Refused(f"data: {name} has no rows, accepted: at least one image")
    if recipe.task.task != "classification":
        from .heads import DENSE_HEADS, check_head

        # Checked before the rows are, which takes long: all masks or boxes are read.
        head = check_head(recipe.task.task, recipe.task.head)
        if DENSE_HEADS[head].strides and view.size % 32:
            raise Refused(f"image_size: got {view.size}, accepted for {head}: multiples of 32")
    dense: dict[str, type[Segmentation | Depth | Detection]] = {
        "segmentation": Segmentation,
        "depth": Depth,
        "detection": Detection,
    }
    task: type[Task] = dense.get(recipe.task.task, Classification)
    return task(recipe, train, test, view, find_image_column(train, recipe.data.image_column))


def preprocessing_of(recipe: FinetuneRecipe, backbone: Dinov3Model) -> tuple[DINOv3ViTImageProcessor, View]:
    """Return the image processor to save with the model, and the same preprocessing for training and tests."""
    assert recipe.task.model is not None
    processor = processor_for(recipe.task.model, backbone.config.image_size)
    size = recipe.data.image_size or image_side(processor)
    kwargs = {"image_mean": processor.image_mean, "image_std": processor.image_std}
    saved = DINOv3ViTImageProcessor(size={"height": size, "width": size}, do_convert_rgb=True, **kwargs)
    return saved, View(size, tuple(processor.image_mean), tuple(processor.image_std))


def find_checkpoint(recipe: FinetuneRecipe, output: Path) -> str | None:
    """Return the checkpoint to resume from, `None` for a new run; raises the errors of `check_run_folder`."""
    from transformers.trainer_utils import get_last_checkpoint

    checkpoints = output / "checkpoints"
    is_resumed = check_run_folder(output, recipe, MAY_CHANGE) and checkpoints.is_dir()
    return get_last_checkpoint(str(checkpoints)) if is_resumed else None


def start_folder(recipe: FinetuneRecipe, output: Path, checkpoint: str | None) -> None:
    """Write the recipe into the folder of the run, and delete the checkpoints of an earlier run unless resuming."""
    if checkpoint is None and (output / "checkpoints").is_dir():
        shutil.rmtree(output / "checkpoints")
    write_recipe(output, recipe)


def resumed_epoch(checkpoint: str | None) -> float | None:
    """Return the epoch at which a checkpoint was written, `None` without a checkpoint."""
    if checkpoint is None:
        return None
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text())["epoch"]


def export_as_asked(
    recipe: FinetuneRecipe, model: "PreTrainedModel | PeftModel", folder: Path, processor: ImageProcessingMixin
) -> None:
    """Write the layouts that the field `export` lists, next to the folder of the model or adapter."""
    has_adapters = recipe.task.has_adapters
    if "merged" in recipe.output.export:
        export_merged(merge(model) if has_adapters else model, folder.parent / "merged", processor)
    if "transformers-adapter" in recipe.output.export:
        export_transformers_adapter(folder, folder.parent / "transformers-adapter")
        processor.save_pretrained(folder.parent / "transformers-adapter")
