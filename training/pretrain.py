"""Pretrain a DINOv3: the main of `dinov3 pretrain`, read from top to bottom.

A student sees two global crops (some of their patches masked) and several local ones; its teacher, a moving average
of the student, sees the global crops whole. The student learns to give the teacher's prototypes for the image
(DINO), for each masked patch (iBOT), while KoLeo spreads the batch (DINOv3, section 3).
"""

import json
import shutil
import sys
from pathlib import Path

from dinov3_hf.provenance import versions
from dinov3_hf.recipe import RECIPE_FILE, check_run_folder, write_recipe

from .arguments import CropArguments, DataArguments, PretrainRecipe


# A resumed run must be the same run: only these fields may differ from the recipe it was started with.
FREE_ON_RESUME = {
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
    # Of a distillation: each student has its own part of a checkpoint.
    *("students", "group_sizes"),
}


def prepare_output(recipe: PretrainRecipe) -> Path:
    """Refuse, clear or reuse the output folder, and write down the recipe, the versions and the state of git."""
    output_dir = Path(recipe.run.output_dir)
    resumed = check_run_folder(output_dir, recipe, FREE_ON_RESUME)
    if not resumed and (output_dir / RECIPE_FILE).is_file():
        for name in ("checkpoints", "model"):
            shutil.rmtree(output_dir / name, ignore_errors=True)
        (output_dir / "metrics.jsonl").unlink(missing_ok=True)
    write_recipe(output_dir, recipe)
    (output_dir / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")
    return output_dir


def open_sources(data: DataArguments) -> list:
    """Open every source of images, undecoded and without other columns."""
    from dinov3_hf.data.streams import load_source

    options = {"streaming": data.streaming, "image_column": data.image_column, "num_images": data.num_images}
    return [load_source(source, data.split, columns=[], **options) for source in data.data]


def probe_source(data) -> str | None:
    """Return where held-out rows come from: as the recipe says, the scenes when training on scenes, else nowhere."""
    return data.probe_data or ("scenes" if data.data[0].split(":")[0] == "scenes" else None)


def build_probe(data: DataArguments, crops: CropArguments):
    """Open the held-out images that the teacher is measured on, None where the recipe names none."""
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


def pretrain(recipe: PretrainRecipe):
    """Run a recipe; everything that can be refused is refused before the first step. Returns a `RunResult`."""
    import torch
    from transformers import DINOv3ViTImageProcessor

    from .collate import TrainingBatches, make_loader
    from .health import CollapseAlarm
    from .initialization import build_gram_teacher, build_student
    from .loop import train
    from .model_card import write_model_card
    from .param_groups import parameter_groups
    from .schedules import Schedules
    from .self_distillation import SelfDistillation
    from .sharding import build_accelerator

    model, data, crops, optimization, run = recipe.model, recipe.data, recipe.crops, recipe.optimization, recipe.run
    rows = open_sources(data)
    accelerator = build_accelerator(run)
    torch.manual_seed(run.seed)
    student, heads_are_new = build_student(model, crops)
    objective = SelfDistillation(student, recipe.objective, build_gram_teacher(recipe.gram, student), recipe.gram)
    patch_size = student.config.patch_size
    rank, processes = accelerator.process_index, accelerator.num_processes
    global_batch = optimization.batch_size * optimization.gradient_accumulation_steps * processes
    group, in_one_pass = recipe.objective.koleo_group_size, optimization.batch_size * processes
    if group is not None and (group % optimization.batch_size or in_one_pass % group):
        raise ValueError(
            f"koleo_group_size: got {group}, accepted: a multiple of batch_size ({optimization.batch_size}) that divides the "
            f"images of all processes ({in_one_pass})"
        )
    head_warmup = optimization.head_warmup_steps
    if head_warmup is None:
        head_warmup = optimization.steps // 10 if model.init_from and heads_are_new else 0
    schedules = Schedules(optimization, global_batch, recipe.gram, head_warmup)

    def build_groups() -> list[dict]:
        return parameter_groups(student, optimization.layerwise_decay, optimization.patch_embed_lr_mult)

    def build_loader(step: int, epoch: int):
        first, batch_size = step * optimization.gradient_accumulation_steps, optimization.batch_size
        batches = TrainingBatches(
            rows, data, crops, batch_size, run.seed, patch_size, rank, processes, recipe.gram, first, epoch
        )
        return make_loader(batches, data.num_workers)

    build_loader(0, 0)  # a crop size that does not fit is refused before anything is written
    probe = build_probe(data, crops)
    alarm = CollapseAlarm(student.config.dino_head_num_prototypes, 2 * global_batch, optimization.lr_warmup_steps)
    output_dir = prepare_output(recipe) if accelerator.is_main_process else Path(run.output_dir)
    accelerator.wait_for_everyone()
    accelerator.print(
        f"student: {sum(p.numel() for p in student.parameters()):,} parameters with heads; {optimization.steps} steps of "
        f"{global_batch} images; peak learning rate {schedules.values['lr'].max():.3g} after lr_scaling"
        + (f"; the heads are new and learn alone for {head_warmup} steps" if head_warmup else "")
    )
    side, mean, std = crops.global_crop_size, crops.image_mean, crops.image_std
    processor = DINOv3ViTImageProcessor(size={"height": side, "width": side}, image_mean=mean, image_std=std)

    def export(directory: Path, state: dict, metrics: dict) -> None:
        objective.export(directory)
        if accelerator.is_main_process:
            processor.save_pretrained(directory)
            write_model_card(directory, recipe.as_flat_dict(), state, metrics, versions())

    result = train(
        objective,
        build_groups,
        build_loader,
        schedules,
        accelerator,
        optimization,
        run,
        recipe.as_flat_dict(),
        export,
        None if probe is None else lambda: probe(objective.teacher),
        alarm,
    )
    accelerator.print(
        f"{result.steps} steps; {result.images_read} images read, {result.bad_images} of them could not be decoded"
    )
    if result.finished:
        accelerator.print(f"model: {output_dir / 'model'}")
    accelerator.end_training()
    return result


if __name__ == "__main__":
    from dinov3_hf.cli import main

    sys.exit(main(["pretrain", *sys.argv[1:]]))
