"""Pretrain a DINOv3 model: the main function of `dinov3 pretrain`.

The student receives two global crops, with some of their patches masked, and several local crops. The teacher, a
moving average of the student, receives the unmasked global crops. The student learns to predict the teacher's
prototype assignments for the image (DINO) and for each masked patch (iBOT); KoLeo spreads the features of a batch.
DINOv3, section 3.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dinov3_hf.errors import Refused
from dinov3_hf.provenance import versions

from .arguments import PretrainRecipe
from .run import build_probe, check_output_folder, crop_processor, finish, open_sources, prepare_output


if TYPE_CHECKING:
    from torchdata.stateful_dataloader import StatefulDataLoader

    from .engine.loop import RunResult


def pretrain(recipe: PretrainRecipe) -> "RunResult":
    """Train as the recipe says; raises `Refused` for a recipe that cannot be run, before the first step."""
    import torch

    from .batches.collate import TrainingBatches, make_loader
    from .engine.loop import train
    from .engine.sharding import build_accelerator
    from .health import CollapseAlarm
    from .initialization import build_gram_teacher, build_student
    from .model_card import write_model_card
    from .param_groups import parameter_groups
    from .schedules import Schedules
    from .self_distillation import SelfDistillation

    model, data, crops, optimization, run = recipe.model, recipe.data, recipe.crops, recipe.optimization, recipe.run
    check_output_folder(recipe)
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
        raise Refused(
            f"koleo_group_size: got {group}, accepted: a multiple of batch_size ({optimization.batch_size}) that "
            f"divides the images of all processes ({in_one_pass})"
        )
    head_warmup = optimization.head_warmup_steps
    if head_warmup is None:
        head_warmup = optimization.steps // 10 if model.init_from and heads_are_new else 0
    schedules = Schedules(optimization, global_batch, recipe.gram, head_warmup)

    def build_groups() -> list[dict]:
        return parameter_groups(student, optimization.layerwise_decay, optimization.patch_embed_lr_mult)

    def build_loader(step: int, epoch: int) -> "StatefulDataLoader":
        first, batch_size = step * optimization.gradient_accumulation_steps, optimization.batch_size
        batches = TrainingBatches(
            rows, data, crops, batch_size, run.seed, patch_size, rank, processes, recipe.gram, first, epoch
        )
        return make_loader(batches, data.num_workers)

    build_loader(0, 0)  # raises `Refused` for an invalid crop size, before anything is written
    probe = build_probe(data, crops)
    alarm = CollapseAlarm(student.config.dino_head_num_prototypes, 2 * global_batch, optimization.lr_warmup_steps)
    output_dir = prepare_output(recipe, accelerator, objective)
    accelerator.print(
        f"student: {sum(p.numel() for p in student.parameters()):,} parameters with heads; {optimization.steps} steps "
        f"of {global_batch} images; peak learning rate {schedules.values['lr'].max():.3g} after lr_scaling"
        + (f"; only the heads are trained in the first {head_warmup} steps" if head_warmup else "")
    )
    processor = crop_processor(crops)

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
    return finish(accelerator, result, [output_dir / "model"])
