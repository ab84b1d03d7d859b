"""A training step on fake tensors, to count memory over time and FLOPs."""

import contextlib
import functools
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle
from transformers.initialization import no_init_weights
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dinov3_hf.models import rope_dinov3
from dinov3_hf.models.layers_dinov3 import Dinov3Attention, Dinov3LayerScale
from dinov3_hf.models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3Model

from ..arguments import PretrainRecipe
from ..initialization import build_gram_teacher, build_student
from ..masking import mask_targets
from ..schedules import Schedules
from ..self_distillation import SelfDistillation


# Student and Gram teacher.
Networks = tuple[Dinov3ForPreTraining, Dinov3Model | None]
# Parts of memory that are allocated and freed within a step.
GRADIENTS, COPIES, ACTIVATIONS, LOSSES = "gradients", "bf16 weight copies", "activations", "heads and losses"
BATCH = "input batch"


class Rehearsal(TorchDispatchMode):
    """Record every operation of a step: bytes of the live storages, and FLOPs of matrix products, both by part.

    Weights are not counted. `num_masked` is used as the number of masked patches, which depends on the data.
    """

    def __init__(self, objective: nn.Module, batch: dict[str, torch.Tensor], num_masked: int):
        super().__init__()
        self.num_masked = num_masked
        self.weights = {_key(weight) for weight in [*objective.parameters(), *objective.buffers()]}
        self.part, self.owner, self.direction = LOSSES, "", "forward"
        self.live: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        # The part and the bytes of each storage.
        self.storages: dict[int, tuple[str, int]] = {}
        # Live bytes of each part after every allocation.
        self.timeline: list[dict[str, int]] = []
        for tensor in batch.values():
            self._count(tensor, BATCH)

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
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
        """Count the storage of a tensor, unless it is already counted, until it is freed."""
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key not in self.storages and key not in self.weights:
            self.storages[key] = (part, storage.nbytes())
            self.live[part] += storage.nbytes()
            weakref.finalize(storage, self._free, key).atexit = False
            self.timeline.append(dict(self.live))

    def _free(self, key: int) -> None:
        part, size = self.storages.pop(key)
        self.live[part] -= size

    def follow(self, objective: nn.Module) -> list[RemovableHandle]:
        """Add hooks that record when a backbone is entered and left and when a gradient is added; returns them."""
        hooks = []
        for name, module in objective.named_modules():
            if isinstance(module, Dinov3Model):
                enter = functools.partial(self._enter, name.split(".")[0])
                hooks.append(module.embeddings.register_forward_pre_hook(enter))
                hooks.append(module.norm.register_forward_hook(functools.partial(self._leave, enter)))
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        return hooks + [parameter.register_post_accumulate_grad_hook(self._note_gradient) for parameter in trained]

    def _enter(self, owner: str, *call: object) -> None:
        self.part, self.owner = ACTIVATIONS, owner

    def _leave(
        self, enter: Callable[..., None], module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
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
def fake_tensors() -> Iterator[None]:
    """Make every new tensor fake, skip weight initialisation, and clear caches of fake tensors at the end."""
    mode = FakeTensorMode()
    # Student and teacher, a deep copy of it, are used together, so they must share a mode.
    mode.__deepcopy__ = lambda memo: mode
    try:
        with warnings.catch_warnings(), no_init_weights(), mode:
            # Copying a fake module warns of fake pointers; KoLeo warns of one-image batches, as it does in training.
            warnings.simplefilter("ignore")
            yield
    finally:
        rope_dinov3._cached_table.cache_clear()


def cast_as_gpu(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """Forward pre-hook with the casts of norms and layer scales that autocast makes on a GPU but not on a CPU."""
    if not torch.is_autocast_enabled("cpu"):
        return None
    dtype = torch.float32
    if isinstance(module, Dinov3LayerScale):
        dtype = functools.reduce(torch.promote_types, [value.dtype for value in inputs], module.lambda1.dtype)
    return tuple(value.to(dtype) for value in inputs)


@torch.no_grad()
def replace_weights(network: nn.Module, make: Callable[[torch.Tensor], torch.Tensor], norms: bool = True) -> None:
    """Replace every weight of a network by `make(weight)`, those of LayerNorms only if `norms`."""
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if norms or not isinstance(module, nn.LayerNorm):
                setattr(module, name, nn.Parameter(make(weight), weight.requires_grad))


def build_networks(recipe: PretrainRecipe) -> Networks:
    """Build the recipe's student and Gram teacher."""
    student, _ = build_student(recipe.model, recipe.crops)
    return student, build_gram_teacher(recipe.gram, student)


class Stage:
    """The recipe's objective on fake tensors, set up to compute as on a GPU, and its kinds of training steps."""

    def __init__(self, recipe: PretrainRecipe, precision: str, networks: Networks):
        self.recipe, self.precision, (student, gram_teacher) = recipe, precision, networks
        self.objective = SelfDistillation(student, recipe.objective, gram_teacher, recipe.gram).train()
        # Fake tensors are on the CPU, where the model replaces "sdpa" by plain attention in bf16, but not other names.
        ALL_ATTENTION_FUNCTIONS.register("sdpa_of_gpu", ALL_ATTENTION_FUNCTIONS["sdpa"])
        for module in self.objective.modules():
            if isinstance(module, Dinov3Attention):
                module.config._attn_implementation = "sdpa_of_gpu"
            elif isinstance(module, nn.LayerNorm | Dinov3LayerScale):
                module.register_forward_pre_hook(cast_as_gpu)

    def situations(self) -> Iterator[tuple[dict[str, torch.Tensor], int, float]]:
        """Yield each kind of step: a batch of one process, the number of such a step, and its share of the run."""
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
        """Run forward and backward of a step as the loop does (the rest of a step works in place)."""
        objective, optimization, crops = self.objective, self.recipe.optimization, self.recipe.crops
        if checkpointing:
            # Only shapes matter, so random numbers need not be reproduced when a block is recomputed.
            objective.student.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        else:
            objective.student.activation_checkpointing_disable()
        num_global, images, patches = batch["masks"].shape
        rng = np.random.default_rng(0)
        masked = mask_targets(num_global * images, crops.mask_probability, crops.mask_ratio, patches, rng).sum()
        values = Schedules(optimization, images, self.recipe.gram).values_at(step)
        rehearsal = Rehearsal(objective, batch, int(masked))
        hooks = rehearsal.follow(objective)
        rope_dinov3._cached_table.cache_clear()
        with rehearsal:
            # In the second pass of an accumulation gradients exist already; further passes are like the second.
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
