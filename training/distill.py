"""Distil one teacher into several students: the main function of `dinov3 distill`.

The teacher is frozen and processes the two global crops of every image once. Each student learns to reproduce the
teacher's output, independently of the other students (DINOv3, section 5.2). A moving average of each student is
evaluated and exported.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dinov3_hf.provenance import versions

from .arguments import CropArguments
from .distill_arguments import DistillRecipe
from .run import build_probe, check_output_folder, crop_processor, finish, open_sources, prepare_output


if TYPE_CHECKING:
    from torchdata.stateful_dataloader import StatefulDataLoader

    from dinov3_hf.models.configuration_dinov3 import Dinov3Config
    from dinov3_hf.models.configuration_dinov3_convnext import Dinov3ConvNextConfig

    from .engine.loop import RunResult
    from .health import CollapseAlarm, OnlineProbe


class StudentAlarms:
    """One collapse alarm per student; each reads only the metrics of its student."""

    def __init__(self, alarms: dict[str, "CollapseAlarm"]):
        self.alarms = alarms

    def check(self, line: dict) -> list[str]:
        return [
            f"{name}: {sentence}"
            for name, alarm in self.alarms.items()
            for sentence in alarm.check({"step": line["step"]} | of_student(name, line))
        ]


def of_student(name: str, metrics: dict) -> dict:
    """Return the metrics of one student, without the `NAME/` prefix."""
    return {key.removeprefix(f"{name}/"): value for key, value in metrics.items() if key.startswith(f"{name}/")}


def check_crops(
    crops: CropArguments,
    teacher_patch: int,
    students: dict[str, "Dinov3Config | Dinov3ConvNextConfig"],
    is_full: bool,
) -> None:
    """Raise `Refused` for crops that do not fit the networks' patch sizes, and for local crops in headless mode."""
    from dinov3_hf.recipe import require

    crops.check_patches(teacher_patch, None)
    for name, config in students.items():
        size = config.patch_size
        for global_size, local_size, _ in crops.sizes(None):
            accepted = f"a multiple of the patch size of {name} ({size})"
            require(global_size % size == 0, "global_crop_size", global_size, accepted)
            require(
                local_size >= size or not crops.local_crops, "local_crop_size", local_size, f"at least {size} ({name})"
            )
    accepted = "0 in headless mode, in which teacher and student receive the same crops"
    require(is_full or not crops.local_crops, "local_crops", crops.local_crops, accepted)


def check_batches(recipe: DistillRecipe, processes: int) -> list[list[int]] | None:
    """Return the ranks of each student's processes, None without groups; raises `Refused` for an uneven split."""
    from dinov3_hf.recipe import require

    from .batches.row_exchange import ranks_of

    sizes, batch = recipe.distillation.group_sizes, recipe.optimization.batch_size * processes
    good = not sizes or sum(sizes) == processes
    require(good, "group_sizes", sizes, f"sizes whose sum is the number of processes ({processes})")
    for size in sizes or [processes]:
        require(batch % size == 0, "group_sizes", size, f"a size that divides the images of all processes ({batch})")
        rows, limit = batch // size, recipe.objective.koleo_group_size
        good = limit is None or (limit % rows == 0 and batch % limit == 0)
        accepted = f"a multiple of the images of a process ({rows}) that divides those of all ({batch})"
        require(good, "koleo_group_size", limit, accepted)
    return ranks_of(sizes) if sizes else None


def distill(recipe: DistillRecipe) -> "RunResult":
    """Train as the recipe says; raises `Refused` for a recipe that cannot be run, before the first step."""
    import torch

    from .batches.collate import DistillationBatches, make_loader
    from .distillation import Distillation
    from .engine.loop import train
    from .engine.sharding import build_accelerator
    from .health import CollapseAlarm
    from .model_card import write_model_card
    from .param_groups import parameter_groups
    from .schedules import Schedules
    from .students import HeadedNetwork, load_teacher, load_weights, new_student, student_config

    distillation, data, crops = recipe.distillation, recipe.data, recipe.crops
    optimization, run, specs = recipe.optimization, recipe.run, recipe.distillation.specs()
    check_output_folder(recipe)
    rows = open_sources(data)
    accelerator = build_accelerator(run)
    rank, processes = accelerator.process_index, accelerator.num_processes
    groups = check_batches(recipe, processes)
    teacher, heads = load_teacher(distillation)
    configs = {spec.name: student_config(spec, distillation, crops, heads) for spec in specs}
    check_crops(crops, teacher.config.patch_size, configs, heads is not None)
    held = [spec for index, spec in enumerate(specs) if groups is None or rank in groups[index]]

    def build(name: str) -> HeadedNetwork:
        return new_student(name, configs[name], distillation, teacher, heads, run.seed)

    with torch.device("meta"):
        skeletons = {name: build(name) for name in configs}
    students = {spec.name: build(spec.name) for spec in held}
    for spec in held:
        load_weights(students[spec.name], spec)
    feature_loss = None if heads is not None else distillation.feature_loss
    objective = Distillation(teacher, students, recipe.objective, feature_loss, groups, skeletons)
    global_batch = optimization.batch_size * optimization.gradient_accumulation_steps * processes
    schedules = Schedules(optimization, global_batch, None, optimization.head_warmup_steps or 0)

    def build_groups() -> list[dict]:
        decay, patch_embedding = optimization.layerwise_decay, optimization.patch_embed_lr_mult
        return [group for net in students.values() for group in parameter_groups(net, decay, patch_embedding)]

    def build_loader(step: int, epoch: int) -> "StatefulDataLoader":
        first, patch_size = step * optimization.gradient_accumulation_steps, teacher.config.patch_size
        place = (rows, data, crops, optimization.batch_size, run.seed, patch_size, rank, processes, None, first, epoch)
        sizes = sorted({config.patch_size for config in configs.values()})
        return make_loader(DistillationBatches(*place, patch_sizes=sizes, masked=heads is not None), data.num_workers)

    probe = build_probe(data, crops)

    def measure(probe: "OnlineProbe") -> dict[str, float]:
        return {f"{name}/{key}": value for name in students for key, value in probe(objective.ema(name)).items()}

    prototypes = heads.dino_head_num_prototypes if heads is not None else teacher.config.hidden_size
    alarm_of = (prototypes, 2 * global_batch, optimization.lr_warmup_steps)
    alarms = StudentAlarms({name: CollapseAlarm(*alarm_of) for name in configs})
    output_dir = prepare_output(recipe, accelerator, objective)
    for index, (name, skeleton) in enumerate(skeletons.items()):
        where = "" if groups is None else f" on {len(groups[index])} processes"
        accelerator.print(
            f"student {name}: {sum(p.numel() for p in skeleton.parameters()):,} parameters with heads{where}"
        )
    accelerator.print(
        f"teacher: {sum(p.numel() for p in teacher.parameters()):,} parameters; the targets are "
        f"{'its prototypes' if heads else 'its features'}; {optimization.steps} steps of {global_batch} images; "
        f"peak learning rate {schedules.values['lr'].max():.3g} after lr_scaling"
    )
    processor = crop_processor(crops)
    shown = recipe.as_flat_dict() | {"students": [f"{spec.name}={Path(spec.source).name}" for spec in specs]}

    def export(directory: Path, state: dict, metrics: dict) -> None:
        for spec, folder in zip(specs, objective.export(directory), strict=True):
            if accelerator.is_main_process:
                processor.save_pretrained(folder)
                card = shown | {"init_from": spec.source if spec.has_weights else None}
                about = state | {
                    "alarms": [text for text in state.get("alarms", []) if text.startswith(f"{spec.name}:")]
                }
                name = distillation.teacher or "dinov3_hf.tiny_checkpoint()"
                write_model_card(folder, card, about, of_student(spec.name, metrics), versions(), name)

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
        None if probe is None else lambda: measure(probe),
        alarms,
    )
    return finish(accelerator, result, [output_dir / "model" / name for name in configs])
