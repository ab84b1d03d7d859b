"""Resources that a recipe needs, without allocating them: parameters, memory, FLOPs, GPU-hours, energy and CO2.

A step is run on fake tensors (meta tensors with shapes, dtypes and a device, but no data). The objective is the real
one, so everything that training allocates is counted from its allocation until it is freed.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dinov3_hf.errors import Refused

from ..arguments import PretrainRecipe
from .rehearsal import (
    ACTIVATIONS,
    BATCH,
    COPIES,
    GRADIENTS,
    LOSSES,
    Stage,
    build_networks,
    fake_tensors,
    replace_weights,
)


# Assumptions, printed with the results. Peak of one H100 SXM without sparsity: tensor cores in bf16, CUDA cores in
# fp32 (TF32 is off by default in torch).
PEAK_FLOPS = {"bf16": 989e12, "no": 67e12}
# Share of the peak that training reaches (model FLOPs utilisation).
UTILISATION = 0.4
# Power of a GPU, power usage effectiveness of the data centre, and carbon intensity of the grid (DINOv3, section 9).
WATTS, PUE, KG_CO2_PER_KWH = 700, 1.1, 0.385
GIB = 2**30


@dataclass
class Plan:
    """Resources of a run. Memory is the peak of one process during a step, in bytes; FLOPs are per image.

    `memory` maps "one process", or "ddp" and "fsdp2", to the bytes of each part; `other` is the same with activation
    checkpointing switched on if the recipe has it off, or off if it has it on. `prefetched` bytes are in host memory.
    """

    recipe: PretrainRecipe
    processes: int
    precision: str
    parameters: dict[str, int]
    memory: dict[str, dict[str, int]]
    other: dict[str, dict[str, int]]
    prefetched: int
    flops: dict[str, float]
    device: str
    device_memory: int

    @property
    def global_batch(self) -> int:
        optimization = self.recipe.optimization
        return optimization.batch_size * optimization.gradient_accumulation_steps * self.processes

    @property
    def images_per_second(self) -> float:
        return self.processes * UTILISATION * PEAK_FLOPS[self.precision] / sum(self.flops.values())

    @property
    def gpu_hours(self) -> float:
        images = self.recipe.optimization.steps * self.global_batch
        return images / self.images_per_second * self.processes / 3600


def fullest(timeline: list[dict[str, int]], gradient_share: float = 1.0) -> dict[str, int]:
    """Return the moment of a timeline with the most bytes; gradients are counted by `gradient_share`."""
    shares = {GRADIENTS: gradient_share, COPIES: 1, ACTIVATIONS: 1, LOSSES: 1, BATCH: 1}
    moments = ({part: round(moment.get(part, 0) * share) for part, share in shares.items()} for moment in timeline)
    return max(moments, key=lambda moment: sum(moment.values()))


def count_parameters(module: nn.Module | None, trained: bool = False) -> int:
    """Return the number of parameters of a module, 0 for None; with `trained`, only of trainable ones."""
    parameters = module.parameters() if module is not None else ()
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad or not trained)


def plan_memory(stage: Stage, processes: int, batch: dict, step: int, timeline: list) -> dict[bool, dict]:
    """Return `Plan.memory` with activation checkpointing off and on; `timeline` is that of the recipe's setting."""
    objective, chosen = stage.objective, stage.recipe.run.activation_checkpointing
    student, trained = count_parameters(objective.student), count_parameters(objective.student, trained=True)
    still = {
        "master weights": 4 * student,
        "AdamW moments": 8 * trained,
        "EMA teacher": 4 * count_parameters(objective.teacher),
        "Gram teacher": 4 * count_parameters(objective.gram_teacher),
    }
    timelines = {chosen: timeline, not chosen: stage.rehearse(batch, step, not chosen).timeline}
    if processes == 1:
        return {flag: {"one process": still | fullest(line)} for flag, line in timelines.items()}
    # DDP keeps a second copy of the gradients, in the buckets that are summed over processes.
    buckets, width = {"gradient buckets": 4 * trained}, 4
    memory = {flag: {"ddp": still | buckets | fullest(line)} for flag, line in timelines.items()}
    if stage.precision == "bf16":
        # FSDP2 gathers weights in bf16; autocast alone keeps fp32 weights and bf16 copies.
        width = 2
        replace_weights(objective, torch.Tensor.bfloat16, norms=False)
        timelines = {flag: stage.rehearse(batch, step, flag).timeline for flag in timelines}
    # FSDP2 shards block by block, then the rest. Not sharded at a time: the rest and its gradients, two blocks, and
    # the gradients of one block, also in fp32.
    layers = objective.student.dinov3.layer
    block, moving = (count_parameters(next(iter(layers), None), trained=only) for only in (False, True))
    rest = student + trained - len(layers) * (block + moving)
    gathered = {"gathered weights": width * (rest + 2 * block + moving) + 4 * moving}
    # Gradients are kept in fp32 and sharded when they are summed, at the end of an accumulation.
    shards = processes if stage.recipe.optimization.gradient_accumulation_steps == 1 else 1
    still = {part: size // processes for part, size in still.items()}
    for flag, line in timelines.items():
        memory[flag]["fsdp2"] = still | gathered | fullest(line, 4 / width / shards)
    return memory


def make_plan(recipe: PretrainRecipe, processes: int = 1, device_memory: float | None = None) -> Plan:
    """Plan a recipe on processes with `device_memory` GiB each, by default that of this CUDA device or of the RAM.

    Raises `Refused` for less than one process, or memory that is not above 0.
    """
    if processes < 1:
        raise Refused(f"processes: got {processes}, accepted: a whole number of at least 1")
    if device_memory is not None and not device_memory > 0:
        raise Refused(f"device_memory: got {device_memory}, accepted: GiB above 0")
    precision = recipe.run.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    # With fp8, weights and activations are stored as with bf16.
    precision = "bf16" if precision in ("bf16", "fp8") else "no"
    images = recipe.optimization.batch_size * min(2, recipe.optimization.gradient_accumulation_steps)
    chosen, most = recipe.run.activation_checkpointing, 0
    flops: dict[str, float] = defaultdict(float)
    hardest: tuple[dict, int, list] = {}, 0, []
    # Initial weights are loaded for their shapes; nothing else is allocated.
    networks = build_networks(recipe) if recipe.model.init_from or recipe.gram.gram_checkpoint else None
    with fake_tensors():
        for network in filter(None, networks or []):
            replace_weights(network, lambda weight: torch.empty(weight.shape))
        stage = Stage(recipe, precision, networks or build_networks(recipe))
        parameters = {name: count_parameters(network) for name, network in stage.objective.networks().items()}
        for batch, step, share in stage.situations():
            rehearsal = stage.rehearse(batch, step, chosen)
            for name, count in rehearsal.flops.items():
                flops[name] += count * share / images
            parts = fullest(rehearsal.timeline)
            if sum(parts.values()) > most:
                most, hardest = sum(parts.values()), (batch, step, rehearsal.timeline)
                # The loader reads two batches ahead for each worker.
                prefetched = max(1, 2 * recipe.data.num_workers) * parts[BATCH]
        memory = plan_memory(stage, processes, *hardest)
    device, available = "this machine's RAM", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device_memory is not None:
        device, available = "--device-memory", round(device_memory * GIB)
    elif torch.cuda.is_available():
        device, available = "this CUDA device", torch.cuda.get_device_properties(0).total_memory
    peaks = memory[chosen], memory[not chosen]
    return Plan(recipe, processes, precision, parameters, *peaks, prefetched, dict(flops), device, available)


def fit(plan: Plan, column: str) -> str:
    """Return a sentence that says whether a column of `Plan.memory` fits the device."""
    need, have = sum(plan.memory[column].values()) / GIB, plan.device_memory / GIB
    name, amounts = "" if plan.processes == 1 else f"{column} ", f"needs {need:.1f} of {have:.1f} GiB ({plan.device})"
    if need <= have:
        return f"{name}fits: {amounts}, CUDA context and fragmentation not counted"
    recompute = "" if plan.recipe.run.activation_checkpointing else ", activation checkpointing"
    more = "fsdp2" if column == "ddp" else "more processes"
    return f"{name}will not fit: {amounts}; try a smaller batch_size{recompute} or {more}"


def format_plan(plan: Plan) -> str:
    """Return a plan as aligned text, including its assumptions."""
    optimization, columns, flops = plan.recipe.optimization, list(plan.memory), sum(plan.flops.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {count / 1e6:,.2f} M" for name, count in plan.parameters.items())
    batch, accumulation = f"{optimization.batch_size} images", optimization.gradient_accumulation_steps
    batch += f" x {accumulation} accumulated" if accumulation > 1 else ""
    totals = [[sum(parts.values()) for parts in memory.values()] for memory in (plan.memory, plan.other)]
    unit, name = (GIB, "GiB") if max(totals[0]) >= GIB else (2**20, "MiB")
    switched = "without" if plan.recipe.run.activation_checkpointing else "with"

    def row(label: str, values: Sequence[float], scale: float) -> str:
        return f"  {label:34}" + "".join(f"{value / scale:16,.2f}" for value in values)

    lines = [
        f"parameters   {parts}; in total {sum(plan.parameters.values()) / 1e6:,.2f} M",
        f"a step       {batch} x {plan.processes} processes = {plan.global_batch:,} images",
        f"the run      {optimization.steps:,} steps, {optimization.steps * plan.global_batch:,} images",
        "",
        f"{f'peak {name} of a process':36}" + "".join(f"{column:>16}" for column in columns),
    ]
    for part in dict.fromkeys(part for parts in plan.memory.values() for part in parts):
        values = [plan.memory[column].get(part, 0) for column in columns]
        lines += [row(part, values, unit)] if any(values) or part == GRADIENTS else []
    lines += [row("total", totals[0], unit), row(f"total {switched} checkpointing", totals[1], unit)]
    lines += [row("prefetched batches, on the host", [plan.prefetched] * len(columns), unit), ""]
    lines += [fit(plan, column) for column in columns]
    lines += ["", f"{'matrix products':36}{'GFLOP an image':>16}{'TFLOP a step':>16}"]
    for part, count in [*sorted(plan.flops.items(), reverse=True), ("total", flops)]:
        lines.append(row(part.replace("_", " "), [count, count * plan.global_batch / 1e3], 1e9))
    kind, energy = {"bf16": "bf16", "no": "fp32"}[plan.precision], plan.gpu_hours * WATTS * PUE / 1e6
    lines += [
        "",
        f"assumed      H100, {PEAK_FLOPS[plan.precision] / 1e12:.0f} TFLOP/s peak in {kind}, {UTILISATION:.0%} of it "
        f"used; {WATTS} W, PUE {PUE}; {KG_CO2_PER_KWH} kg CO2eq per kWh",
        f"speed        {plan.images_per_second:,.0f} images/s, {plan.global_batch / plan.images_per_second:.3g} s "
        "a step",
        f"in total     {plan.gpu_hours:,.4g} GPU-hours, {energy:,.3g} MWh, {energy * KG_CO2_PER_KWH:,.3g} t CO2eq",
    ]
    return "\n".join(lines)
