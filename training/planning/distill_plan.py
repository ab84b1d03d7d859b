"""How many processes each student should have: times measured here, and sizes with which all step together."""

import functools
import statistics
import time
from dataclasses import dataclass

import torch

from dinov3_hf.errors import Refused

from ..arguments import CropArguments
from ..batches.collate import MASKS
from ..distill_arguments import DistillRecipe
from ..engine.loop import build_optimizer, clip_gradients, set_rates
from ..engine.sharding import compute_precision
from ..param_groups import parameter_groups
from ..schedules import Schedules
from ..students import load_teacher, load_weights, new_student, student_config


STEPS = 3


@dataclass
class DistillPlan:
    """Seconds of one pass over `batch_size` images: of the teacher, and of each student's whole step."""

    processes: int
    batch_size: int
    teacher: float
    students: dict[str, float]
    group_sizes: list[int] | None

    def step(self, name: str, size: int) -> float:
        """Return a student's seconds of a step when `size` processes share the global batch, without the teacher's."""
        return self.students[name] * self.processes / size


def apportion(costs: list[float], processes: int, global_batch: int) -> list[int] | None:
    """Return a number of processes for each student so that the slowest is as fast as can be.

    A student of cost c on g processes takes c / g; the sizes sum to `processes`, and each divides the global batch.
    None where no sizes do.
    """
    sizes = [size for size in range(1, processes + 1) if global_batch % size == 0]

    @functools.cache
    def best(first: int, left: int) -> tuple[float, tuple[int, ...]] | None:
        """Slowest time of the students from `first` on, and their sizes, on `left` processes."""
        if first == len(costs):
            return (0.0, ()) if left == 0 else None
        found = None
        for size in sizes:
            # Those after it need a process each.
            rest = best(first + 1, left - size) if size <= left - (len(costs) - first - 1) else None
            if rest is not None:
                slowest = max(costs[first] / size, rest[0])
                found = min(found or (slowest, (size, *rest[1])), (slowest, (size, *rest[1])))
        return found

    chosen = best(0, processes)
    return None if chosen is None else list(chosen[1])


def make_plan(recipe: DistillRecipe, processes: int) -> DistillPlan:
    """Measure a few steps on this machine's first device; raises `Refused` for fewer processes than students."""
    from ..distillation import Distillation, masks_of

    arguments, crops, optimization = recipe.distillation, recipe.crops, recipe.optimization
    specs = arguments.specs()
    if processes < 1:
        raise Refused(f"processes: got {processes}, accepted: a whole number of at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = compute_precision(recipe.run.mixed_precision)
    teacher, heads = load_teacher(arguments)
    feature_loss = None if heads is not None else arguments.feature_loss
    objective = Distillation(teacher, {}, recipe.objective, feature_loss).to(device)
    values = Schedules(optimization, optimization.batch_size * processes).values_at(optimization.steps - 1)
    configs = {spec.name: student_config(spec, arguments, crops, heads) for spec in specs}
    batch = make_batch(
        crops, optimization.batch_size, {config.patch_size for config in configs.values()}, heads is not None
    )
    batch = {name: value.to(device) for name, value in batch.items()}
    look = (batch["global_crops"], masks_of(batch), values["teacher_temperature"])
    with torch.autocast(device, torch.bfloat16, enabled=precision != "no"):
        teacher_seconds, targets = measure(lambda: objective.targets(*look)), objective.targets(*look)
    seconds = {}
    for spec in specs:
        student = new_student(spec.name, configs[spec.name], arguments, teacher, heads, recipe.run.seed)
        load_weights(student, spec)
        if recipe.run.activation_checkpointing:
            student.activation_checkpointing_enable()
        alone = Distillation(teacher, {spec.name: student}, recipe.objective, feature_loss).to(device).train()
        optimizer = build_optimizer(parameter_groups(student, 0.9, 1.0), optimization.adam_betas)
        set_rates(optimizer, values)

        def step(alone=alone, optimizer=optimizer) -> None:
            with torch.autocast(device, torch.bfloat16, enabled=precision != "no"):
                loss = alone.student_losses(batch, values, *targets).loss
            loss.backward()
            clip_gradients(alone.networks(), optimization.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            alone.after_step(0, values)

        seconds[spec.name] = measure(step)
    sizes = None
    if len(specs) <= processes:
        sizes = apportion(list(seconds.values()), processes, optimization.batch_size * processes)
    return DistillPlan(processes, optimization.batch_size, teacher_seconds, seconds, sizes)


def make_batch(crops: CropArguments, images: int, patch_sizes: set[int], masked: bool) -> dict[str, torch.Tensor]:
    """Return a batch of noise of the recipe's shapes, as many patches masked as on average."""
    side = crops.sizes(None)[0][0]
    batch = {"global_crops": torch.randn(2, images, 3, side, side)}
    if crops.local_crops:
        local = crops.sizes(None)[0][1]
        batch["local_crops"] = torch.randn(crops.local_crops, images, 3, local, local)
    share = crops.mask_probability * sum(crops.mask_ratio) / 2 if masked else 1.0
    for size in patch_sizes:
        batch[MASKS + str(size)] = torch.rand(2, images, (side // size) ** 2) < share
    return batch


def measure(run) -> float:
    """Return the median seconds of a run, the first one, which warms up, left out."""
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def format_plan(plan: DistillPlan) -> str:
    """Write a plan as aligned text: what was measured, and what follows from it."""
    total = sum(plan.students.values())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    lines = [f"measured on {device}, {plan.batch_size} images a pass, median of {STEPS} steps", ""]
    lines += [f"{'teacher':24}{plan.teacher:10.3f} s"]
    sizes = plan.group_sizes or [None] * len(plan.students)
    for (name, seconds), size in zip(plan.students.items(), sizes, strict=True):
        then = "" if size is None else f"   on {size} of {plan.processes} processes {plan.step(name, size):10.3f} s"
        lines.append(f"{name:24}{seconds:10.3f} s{then}")
    lines += [
        "",
        f"every process trains all: {plan.teacher + total:.3f} s a step; the networks of all students in each",
    ]
    if plan.group_sizes is None:
        images = plan.processes * plan.batch_size
        return "\n".join(
            [*lines, f"groups: no sizes that divide {images} images give each student a process of its own"]
        )
    images = [plan.processes * plan.batch_size // size for size in plan.group_sizes]
    steps = [plan.step(name, size) for name, size in zip(plan.students, plan.group_sizes, strict=True)]
    busy = sum(step * size for step, size in zip(steps, plan.group_sizes, strict=True)) / max(steps) / plan.processes
    return "\n".join(
        [
            *lines,
            f"group_sizes: {plan.group_sizes}: {plan.teacher + max(steps):.3f} s a step, processes busy {busy:.0%} of "
            "the students' time; one student's networks in each",
            f"images of a process in a student's pass: {images}",
            "not counted: reading images, and sums over processes; a pass of more images than measured is taken to cost "
            "in proportion",
        ]
    )
