"""What a recipe will need, before a byte is allocated: parameters, memory, FLOPs, GPU-hours, energy and CO2.

A step is rehearsed on fake tensors (meta tensors that pretend to be on a device: shapes and dtypes, no data). The
objective is the real one, so whatever training allocates is counted from when it is allocated until it is freed.
"""

import contextlib
import functools
import os
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers.initialization import no_init_weights
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dinov3_hf.models import rope_dinov3
from dinov3_hf.models.layers_dinov3 import Dinov3Attention, Dinov3LayerScale
from dinov3_hf.models.modeling_dinov3 import Dinov3Model

from .arguments import PretrainRecipe
from .initialization import build_gram_teacher, build_student
from .masking import mask_targets
from .schedules import Schedules
from .self_distillation import SelfDistillation


# Assumptions, printed with the figures they lead to. Peak of one H100 SXM without sparsity: tensor cores in bf16, plain
# cores in fp32 (torch leaves TF32 off).
PEAK_FLOPS = {"bf16": 989e12, "no": 67e12}
# Share of that peak that training reaches (model FLOPs utilisation).
UTILISATION = 0.4
# Power of a GPU, what its machine room adds, and the grid's carbon intensity, as in DINOv3, section 9.
WATTS, PUE, KG_CO2_PER_KWH = 700, 1.1, 0.385
GIB = 2**30

# Parts of memory that come and go with a step.
GRADIENTS, COPIES, ACTIVATIONS, LOSSES = "gradients", "bf16 weight copies", "activations", "heads and losses"
BATCH = "input batch"


@dataclass
class Plan:
    """What a run needs. Memory is bytes of one process at the fullest moment of a step; FLOPs are per image.

    `memory` has one column of parts for each way to use the processes: "one process", or "ddp" and "fsdp2"; `other` is
    the same with activation checkpointing switched the other way. `prefetched` bytes lie in the host's memory.
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


class Rehearsal(TorchDispatchMode):
    """Watch every operation of a step: bytes that live storages hold, and FLOPs of matrix products, both by part.

    Weights are not counted; `num_masked` stands in for the number of masked patches, which only data could tell.
    """

    def __init__(self, objective: nn.Module, batch: dict[str, torch.Tensor], num_masked: int):
        super().__init__()
        self.num_masked = num_masked
        self.weights = {_key(weight) for weight in [*objective.parameters(), *objective.buffers()]}
        self.part, self.owner, self.direction = LOSSES, "", "forward"
        self.live, self.storages, self.flops = Counter(), {}, Counter()
        # Live bytes of each part, whenever something was allocated.
        self.timeline: list[dict[str, int]] = []
        for tensor in batch.values():
            self._count(tensor, BATCH)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if func is torch.ops.aten.nonzero.default:
            result = args[0].new_empty((self.num_masked, args[0].ndim), dtype=torch.int64)
        elif func is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool:
            result = args[0].new_empty((self.num_masked,))
        else:
            result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            self.flops[LOSSES if self.part == LOSSES else f"{self.owner} {self.direction}"] += count
        is_copy = func is torch.ops.aten._to_copy.default and _key(args[0]) in self.weights
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf, COPIES if is_copy else self.part)
        return result

    def _count(self, tensor: torch.Tensor, part: str) -> None:
        """Count a tensor's storage, if it is new, until it is freed."""
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key not in self.storages and key not in self.weights:
            self.storages[key] = (part, storage.nbytes())
            self.live[part] += storage.nbytes()
            weakref.finalize(storage, self._free, key).atexit = False
            self.timeline.append(dict(self.live))

    def _free(self, key: int) -> None:
        part, size = self.storages.pop(key)
        self.live[part] -= size

    def follow(self, objective: nn.Module) -> list:
        """Tell backbones from heads and losses by hooks at both ends of every backbone; returns the hooks."""
        hooks = []
        for name, module in objective.named_modules():
            if isinstance(module, Dinov3Model):
                enter = functools.partial(self._enter, name.split(".")[0])
                hooks.append(module.embeddings.register_forward_pre_hook(enter))
                hooks.append(module.norm.register_forward_hook(functools.partial(self._leave, enter)))
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        return hooks + [parameter.register_post_accumulate_grad_hook(self._note_gradient) for parameter in trained]

    def _enter(self, owner: str, *call) -> None:
        self.part, self.owner = ACTIVATIONS, owner

    def _leave(self, enter, module, inputs, output: torch.Tensor) -> None:
        self.part = LOSSES
        if output.requires_grad:
            output.register_hook(enter)

    def _note_gradient(self, parameter: nn.Parameter) -> None:
        part, size = self.storages[_key(parameter.grad)]
        self.storages[_key(parameter.grad)] = (GRADIENTS, size)
        self.live.update({GRADIENTS: size})
        self.live.subtract({part: size})


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def fake_tensors():
    """Make every new tensor a fake one, without weights to draw, and leave no fake tensor behind in a cache."""
    mode = FakeTensorMode()
    # A deep copy of the student is to meet the student, so they share a mode.
    mode.__deepcopy__ = lambda memo: mode
    try:
        with warnings.catch_warnings(), no_init_weights(), mode:
            # Copying a fake module warns of fake pointers; KoLeo warns of one-image batches, as training will.
            warnings.simplefilter("ignore")
            yield
    finally:
        rope_dinov3._cached_table.cache_clear()


def cast_as_gpu(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """Forward pre-hook: the casts of norms and layer scales that autocast makes on a GPU and not on a CPU."""
    if not torch.is_autocast_enabled("cpu"):
        return None
    dtype = torch.float32
    if isinstance(module, Dinov3LayerScale):
        dtype = functools.reduce(torch.promote_types, [value.dtype for value in inputs], module.lambda1.dtype)
    return tuple(value.to(dtype) for value in inputs)


@torch.no_grad()
def replace_weights(network: nn.Module, make: Callable[[torch.Tensor], torch.Tensor], norms: bool = True) -> None:
    """Replace every weight of a network, those of its norms only if asked."""
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if norms or not isinstance(module, nn.LayerNorm):
                setattr(module, name, nn.Parameter(make(weight), weight.requires_grad))


def build_networks(recipe: PretrainRecipe) -> list[nn.Module | None]:
    """Build the recipe's student and Gram teacher."""
    student, _ = build_student(recipe.model, recipe.crops)
    return [student, build_gram_teacher(recipe.gram, student)]


class Stage:
    """The recipe's objective on fake tensors, made to compute as it would on a GPU, and steps to rehearse with it."""

    def __init__(self, recipe: PretrainRecipe, precision: str, networks: list[nn.Module | None]):
        self.recipe, self.precision, (student, gram_teacher) = recipe, precision, networks
        self.objective = SelfDistillation(student, recipe.objective, gram_teacher, recipe.gram).train()
        # In bf16 the model gives a CPU, where fake tensors pretend to be, plain attention unless it has another name.
        ALL_ATTENTION_FUNCTIONS.register("sdpa_of_gpu", ALL_ATTENTION_FUNCTIONS["sdpa"])
        for module in self.objective.modules():
            if isinstance(module, Dinov3Attention):
                module.config._attn_implementation = "sdpa_of_gpu"
            elif isinstance(module, nn.LayerNorm | Dinov3LayerScale):
                module.register_forward_pre_hook(cast_as_gpu)

    def situations(self) -> Iterator[tuple[dict[str, torch.Tensor], int, float]]:
        """Yield each kind of step of the run: a batch of one process, a step of that kind, and its share of the run."""
        gram, crops, optimization = self.recipe.gram, self.recipe.crops, self.recipe.optimization
        images, patch = optimization.batch_size, self.objective.student.config.patch_size
        crops.check_patches(patch, gram.gram_crop_size)
        sets = crops.sizes(gram.gram_crop_size)
        shares = np.array(crops.crop_size_probabilities or [1.0] * len(sets))
        anchored = 0.0 if gram.gram_teacher == "none" else 1 - gram.gram_start_step / optimization.steps
        for (global_size, local_size, gram_size), share in zip(sets, shares / shares.sum(), strict=True):
            plain = {"global_crops": (2, global_size), "local_crops": (crops.local_crops, local_size)}
            own = {"gram_crops": (2, gram_size)} if self.objective.gram_teacher is not None and gram_size else {}
            for shapes, step, part in ((plain, 0, 1 - anchored), (plain | own, optimization.steps - 1, anchored)):
                if share * part:
                    batch = {k: torch.empty(n, images, 3, side, side) for k, (n, side) in shapes.items() if n}
                    batch["masks"] = torch.empty(2, images, (global_size // patch) ** 2, dtype=torch.bool)
                    yield batch, step, float(share * part)

    def rehearse(self, batch: dict[str, torch.Tensor], step: int, checkpointing: bool) -> Rehearsal:
        """Run forward and backward of a step as the loop does; clipping, AdamW and the moving average work in place."""
        objective, optimization, crops = self.objective, self.recipe.optimization, self.recipe.crops
        if checkpointing:
            # Only shapes count: what is random need not be the same when a block is run again.
            objective.student.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        else:
            objective.student.activation_checkpointing_disable()
        num_global, images, patches = batch["masks"].shape
        ratio, rng = tuple(crops.mask_ratio), np.random.default_rng(0)
        masked = mask_targets(num_global * images, crops.mask_probability, ratio, patches, rng).sum()
        values = Schedules(optimization, images, self.recipe.gram).values_at(step)
        rehearsal = Rehearsal(objective, batch, int(masked))
        hooks = rehearsal.follow(objective)
        rope_dinov3._cached_table.cache_clear()
        with rehearsal:
            # The second part of an accumulation meets the gradients of the first, and the others are like it.
            for _ in range(min(2, optimization.gradient_accumulation_steps)):
                rehearsal.direction = "forward"
                with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                    output = objective(batch, values)
                rehearsal.direction = "backward"
                output.loss.backward()
        for hook in hooks:
            hook.remove()
        objective.zero_grad(set_to_none=True)
        return rehearsal


def fullest(timeline: list[dict[str, int]], gradient_share: float = 1.0) -> dict[str, int]:
    """Return the moment of a timeline with the most bytes, where a process keeps a share of the gradients."""
    shares = {GRADIENTS: gradient_share, COPIES: 1, ACTIVATIONS: 1, LOSSES: 1, BATCH: 1}
    moments = ({part: round(moment.get(part, 0) * share) for part, share in shares.items()} for moment in timeline)
    return max(moments, key=lambda moment: sum(moment.values()))


def count_parameters(module: nn.Module | None, trained: bool = False) -> int:
    """Return how many numbers a module's parameters hold, 0 for None; those that are trained only if asked."""
    parameters = module.parameters() if module is not None else ()
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad or not trained)


def plan_memory(stage: Stage, processes: int, batch: dict, step: int, timeline: list) -> dict[bool, dict]:
    """Return memory's columns with activation checkpointing off and on; `timeline` is that of the recipe's own choice."""
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
    # DDP keeps the gradients once more, in the buckets that are summed over processes.
    buckets, width = {"gradient buckets": 4 * trained}, 4
    memory = {flag: {"ddp": still | buckets | fullest(line)} for flag, line in timelines.items()}
    if stage.precision == "bf16":
        # FSDP2 gathers weights in bf16, where autocast alone keeps fp32 weights and bf16 copies.
        width = 2
        replace_weights(objective, torch.Tensor.bfloat16, norms=False)
        timelines = {flag: stage.rehearse(batch, step, flag).timeline for flag in timelines}
    # It shards block by block, then the rest. Whole are: that rest, its gradients, two blocks, gradients of one in fp32 too.
    layers = objective.student.dinov3.layer
    block, moving = (count_parameters(next(iter(layers), None), trained=only) for only in (False, True))
    rest = student + trained - len(layers) * (block + moving)
    gathered = {"gathered weights": width * (rest + 2 * block + moving) + 4 * moving}
    # Gradients are kept in fp32, and become shards when they are summed, at the end of an accumulation.
    shards = processes if stage.recipe.optimization.gradient_accumulation_steps == 1 else 1
    still = {part: size // processes for part, size in still.items()}
    for flag, line in timelines.items():
        memory[flag]["fsdp2"] = still | gathered | fullest(line, 4 / width / shards)
    return memory


def make_plan(recipe: PretrainRecipe, processes: int = 1, device_memory: float | None = None) -> Plan:
    """Plan a recipe on processes with `device_memory` GiB each; without it, this machine's CUDA device's or its RAM.

    Raises ValueError for processes below 1 or memory not above 0.
    """
    if processes < 1:
        raise ValueError(f"processes: got {processes}, accepted: a whole number of at least 1")
    if device_memory is not None and not device_memory > 0:
        raise ValueError(f"device_memory: got {device_memory}, accepted: GiB above 0")
    precision = recipe.run.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    # fp8 keeps weights and activations as bf16 does.
    precision = "bf16" if precision in ("bf16", "fp8") else "no"
    images = recipe.optimization.batch_size * min(2, recipe.optimization.gradient_accumulation_steps)
    chosen, flops, most, hardest = recipe.run.activation_checkpointing, Counter(), 0, ()
    # Weights to go on from are read, to learn their shapes; nothing else is allocated.
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
    memory = (memory[chosen], memory[not chosen])
    return Plan(recipe, processes, precision, parameters, *memory, prefetched, dict(flops), device, available)


def fit(plan: Plan, column: str) -> str:
    """Say in a sentence whether a column of the memory fits the device."""
    need, have = sum(plan.memory[column].values()) / GIB, plan.device_memory / GIB
    name, amounts = "" if plan.processes == 1 else f"{column} ", f"needs {need:.1f} of {have:.1f} GiB ({plan.device})"
    if need <= have:
        return f"{name}fits: {amounts}, CUDA context and fragmentation not counted"
    recompute = "" if plan.recipe.run.activation_checkpointing else ", activation checkpointing"
    more = "fsdp2" if column == "ddp" else "more processes"
    return f"{name}will not fit: {amounts}; try a smaller batch_size{recompute} or {more}"


def format_plan(plan: Plan) -> str:
    """Write a plan as aligned text, its assumptions beside the figures."""
    optimization, columns, flops = plan.recipe.optimization, list(plan.memory), sum(plan.flops.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {count / 1e6:,.2f} M" for name, count in plan.parameters.items())
    batch, accumulation = f"{optimization.batch_size} images", optimization.gradient_accumulation_steps
    batch += f" x {accumulation} accumulated" if accumulation > 1 else ""
    totals = [[sum(parts.values()) for parts in memory.values()] for memory in (plan.memory, plan.other)]
    unit, name = (GIB, "GiB") if max(totals[0]) >= GIB else (2**20, "MiB")
    switched = "without" if plan.recipe.run.activation_checkpointing else "with"

    def row(label: str, values: list[float], scale: float) -> str:
        return f"  {label:34}" + "".join(f"{value / scale:16,.2f}" for value in values)

    lines = [
        f"parameters   {parts}; in total {sum(plan.parameters.values()) / 1e6:,.2f} M",
        f"a step       {batch} x {plan.processes} processes = {plan.global_batch:,} images",
        f"the run      {optimization.steps:,} steps, {optimization.steps * plan.global_batch:,} images",
        "",
        f"{f'{name} of a process at the fullest':36}" + "".join(f"{column:>16}" for column in columns),
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
        f"reached; {WATTS} W, PUE {PUE}; {KG_CO2_PER_KWH} kg CO2eq per kWh",
        f"speed        {plan.images_per_second:,.0f} images/s, {plan.global_batch / plan.images_per_second:.3g} s a step",
        f"in total     {plan.gpu_hours:,.4g} GPU-hours, {energy:,.3g} MWh, {energy * KG_CO2_PER_KWH:,.3g} t CO2eq",
    ]
    return "\n".join(lines)
