"""Choice of the number of processes for each student, from step times measured on this machine."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
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
    """Seconds for `batch_size` images: one pass of the teacher, and a complete step of each student."""

    processes: int
    batch_size: int
    teacher: float
    students: dict[str, float]
    group_sizes: list[int] | None

    def step(self, name: str, size: int) -> float:
        """Return the seconds of a student's step, without the teacher, if `size` processes share the global batch."""
        return self.students[name] * self.processes / size


def apportion(costs: list[float], processes: int, global_batch: int) -> list[int] | None:
    """Return the number of processes for each student that minimises the time of the slowest student.

    A student of cost c on g processes takes c / g. The sizes add up to `processes`, and each divides the global batch;
    None if there are no such sizes.
    """
    sizes = [size for size in range(1, processes + 1) if global_batch % size == 0]

    @functools.cache
    def best(first: int, left: int) -> tuple[float, tuple[int, ...]] | None:
        """Return the time of the slowest student from `first` on, and their sizes, with `left` processes."""
        if first == len(costs):
            return (0.0, ()) if left == 0 else None
        fastest = None
        for size in sizes:
            # Each of the following students needs at least one process.
            rest = best(first + 1, left - size) if size <= left - (len(costs) - first - 1) else None
            if rest is not None:
                slowest = max(costs[first] / size, rest[0])
                fastest = min(fastest or (slowest, (size, *rest[1])), (slowest, (size, *rest[1])))
        return fastest

    chosen = best(0, processes)
    return None if chosen is None else list(chosen[1])


def make_plan(recipe: DistillRecipe, processes: int) -> DistillPlan:
    """Time a few steps on this machine's first device and choose group sizes, None if there are none.

    Raises `Refused` for less than one process.
    """
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

        def step(alone: Distillation = alone, optimizer: torch.optim.AdamW = optimizer) -> None:
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
    """Return a batch of noise with the recipe's shapes and its average number of masked patches."""
    side = crops.sizes(None)[0][0]
    batch = {"global_crops": torch.randn(2, images, 3, side, side)}
    if crops.local_crops:
        local = crops.sizes(None)[0][1]
        batch["local_crops"] = torch.randn(crops.local_crops, images, 3, local, local)
    share = crops.mask_probability * sum(crops.mask_ratio) / 2 if masked else 1.0
    for size in patch_sizes:
        batch[MASKS + str(size)] = torch.rand(2, images, (side // size) ** 2) < share
    return batch


def measure(run: Callable[[], object]) -> float:
    """Return the median seconds of several calls of `run`, after one call to warm up."""
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def format_plan(plan: DistillPlan) -> str:
    """Return a plan as aligned text: the measured times and the proposed group sizes."""
    total = sum(plan.students.values())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    lines = [f"measured on {device}, {plan.batch_size} images a pass, median of {STEPS} steps", ""]
    lines += [f"{'teacher':24}{plan.teacher:10.3f} s"]
    sizes: Sequence[int | None] = plan.group_sizes or [None] * len(plan.students)
    for (name, seconds), size in zip(plan.students.items(), sizes, strict=True):
        then = "" if size is None else f"   on {size} of {plan.processes} processes {plan.step(name, size):10.3f} s"
        lines.append(f"{name:24}{seconds:10.3f} s{then}")
    images = plan.processes * plan.batch_size
    lines += [
        "",
        f"every process trains all: {plan.teacher + total:.3f} s a step; each has the networks of all students",
    ]
    if plan.group_sizes is None:
        return "\n".join(
            [*lines, f"groups: no sizes that divide {images} images give each student a process of its own"]
        )
    shares = [images // size for size in plan.group_sizes]
    steps = [plan.step(name, size) for name, size in zip(plan.students, plan.group_sizes, strict=True)]
    busy = sum(step * size for step, size in zip(steps, plan.group_sizes, strict=True)) / max(steps) / plan.processes
    return "\n".join(
        [
            *lines,
            f"group_sizes: {plan.group_sizes}: {plan.teacher + max(steps):.3f} s a step, processes busy {busy:.0%} of "
            "the students' time; each process has the networks of one student",
            f"images per process in each student's pass: {shares}",
            "not counted: reading images, and sums over processes; the time of a pass is assumed proportional to its "
            "number of images",
        ]
    )
