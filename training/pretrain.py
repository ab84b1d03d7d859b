"""Pretrain a DINOv3: the main of `dinov3 pretrain`, read from top to bottom.

A student sees two global crops (some of their patches masked) and several local ones; its teacher, a moving average
of the student, sees the global crops whole. The student learns to give the teacher's prototypes for the image
(DINO), for each masked patch (iBOT), while KoLeo spreads the batch (DINOv3, section 3).
"""

from pathlib import Path

from dinov3_hf.errors import Refused
from dinov3_hf.provenance import versions

from .arguments import PretrainRecipe
from .run import build_probe, check_output_folder, crop_processor, finish, open_sources, prepare_output


def pretrain(recipe: PretrainRecipe):
    """Run a recipe; everything that can be refused is refused before the first step. Returns a `RunResult`."""
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
    output_dir = prepare_output(recipe, accelerator, objective)
    accelerator.print(
        f"student: {sum(p.numel() for p in student.parameters()):,} parameters with heads; {optimization.steps} steps of "
        f"{global_batch} images; peak learning rate {schedules.values['lr'].max():.3g} after lr_scaling"
        + (f"; the heads are new and learn alone for {head_warmup} steps" if head_warmup else "")
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
