"""A second, deliberately naive DINOv3 training step: the yardstick for the real objective and loop.

Written from the description of the method alone, it shares no code with the package: every image is forwarded by
itself through a functional ViT over a dict of tensors, losses loop over pairs, images, patches and prototypes, and
optimiser, clipping, schedules and moving averages are spelled out. In float64 it tells rounding from disagreement.
"""

import itertools
import math
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor


Tensors = dict[str, Tensor]


@dataclass
class Schedule:
    """From step `first`: warm-up from `start` towards `peak`, cosine from it to `end` with both ends, then `end`."""

    start: float
    peak: float
    end: float
    warmup: int = 0
    cosine: int = 0
    first: int = 0

    def at(self, step: int) -> float:
        step -= self.first
        if step < 0:
            return self.start
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        step -= self.warmup
        if step < self.cosine:
            progress = step / (self.cosine - 1) if self.cosine > 1 else 0.0
            return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * progress)) / 2
        return self.end


@dataclass
class Settings:
    """Everything that a step depends on, apart from tensors; the defaults are those of the paper."""

    heads: int
    learning_rate: Schedule
    weight_decay: Schedule
    momentum: Schedule
    teacher_temperature: Schedule
    local_weight: Schedule
    gram_weight: Schedule
    norm_eps: float = 1e-5
    rope_theta: float = 100.0
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    student_temperature: float = 0.1
    ignore_diagonal: bool = True
    sinkhorn_iterations: int = 3
    koleo_topk: int = 1
    gram: str | None = None  # who gives its targets: "gram_teacher", "ema_teacher" or nobody
    gram_normalize: bool = True
    gram_per_image: bool = True
    gram_clamp: str | None = None  # "both" | "teacher"
    gram_load_step: int | None = None  # the Gram teacher becomes a copy of the EMA teacher before this step
    gram_first_update: int | None = None
    gram_update_frequency: int = 1
    gram_max_updates: int | None = None
    freeze_last_layer_steps: int = 0
    layer_decay: float = 1.0
    patch_embed_lr_mult: float = 1.0
    clip: float = 3.0
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8


def linear(x: Tensor, params: Tensors, name: str) -> Tensor:
    y = x @ params[name + ".weight"].T
    return y + params[name + ".bias"] if name + ".bias" in params else y


def layer_norm(x: Tensor, params: Tensors, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * params[name + ".weight"] + params[name + ".bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def unit(x: Tensor, eps: float) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt().clamp(min=eps)


@cache
def angles(patch: int, grid: tuple[int, int], size: int, theta: float) -> tuple[list[float], list[float]]:
    """Cosines and sines of one patch: half of the angles follow its row, half its column."""
    row, column = divmod(patch, grid[1])
    turns = []
    for index, length in ((row, grid[0]), (column, grid[1])):
        coordinate = (index + 0.5) / length * 2 - 1
        turns += [2 * math.pi * coordinate / theta ** (4 * k / size) for k in range(size // 4)]
    return [math.cos(turn) for turn in turns], [math.sin(turn) for turn in turns]


def rotate(x: Tensor, patch: int, grid: tuple[int, int], theta: float) -> Tensor:
    """RoPE on the queries or keys [heads, d] of one patch: dimension i turns with i + d/2."""
    cos, sin = (x.new_tensor(table) for table in angles(patch, grid, x.shape[1], theta))
    first, second = x.chunk(2, dim=1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=1)


def attention(x: Tensor, params: Tensors, grid: tuple[int, int], settings: Settings) -> Tensor:
    prefix, outputs = len(x) - grid[0] * grid[1], []

    def positioned(y: Tensor) -> Tensor:
        patches = [rotate(row, patch, grid, settings.rope_theta) for patch, row in enumerate(y[prefix:])]
        return torch.stack([*y[:prefix], *patches])

    q, k, v = (linear(x, params, f"attention.{letter}_proj").reshape(len(x), settings.heads, -1) for letter in "qkv")
    q, k = positioned(q), positioned(k)
    for number in range(settings.heads):
        scores = q[:, number] @ k[:, number].T / math.sqrt(q.shape[2])
        weights = (scores - scores.detach().max(1, keepdim=True).values).exp()
        outputs.append(weights / weights.sum(1, keepdim=True) @ v[:, number])
    return linear(torch.cat(outputs, dim=1), params, "attention.o_proj")


def backbone(
    params: Tensors, image: Tensor, settings: Settings, mask: Tensor | None = None, local: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised cls [D], registers [R,D] and patches [P,D] of ONE image [3,H,W]; mask [P] bool."""
    kernel = params["embeddings.patch_embeddings.weight"]
    side = kernel.shape[-1]
    grid = image.shape[1] // side, image.shape[2] // side
    tokens = [params["embeddings.cls_token"][0, 0], *params["embeddings.register_tokens"][0]]
    prefix = len(tokens)
    for patch in range(grid[0] * grid[1]):
        row, column = divmod(patch, grid[1])
        pixels = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        if mask is not None and mask[patch]:
            tokens.append(params["embeddings.mask_token"].flatten())
        else:
            tokens.append(kernel.flatten(1) @ pixels.flatten() + params["embeddings.patch_embeddings.bias"])
    x, block, eps = torch.stack(tokens), 0, settings.norm_eps
    while layer := part(params, f"layer.{block}."):
        y = attention(layer_norm(x, layer, "norm1", eps), layer, grid, settings)
        x = x + layer.get("layer_scale1.lambda1", 1) * y
        y = layer_norm(x, layer, "norm2", eps)
        if "mlp.gate_proj.weight" in layer:
            gate = linear(y, layer, "mlp.gate_proj")
            y = gate / (1 + (-gate).exp()) * linear(y, layer, "mlp.up_proj")
        else:
            y = gelu(linear(y, layer, "mlp.up_proj"))
        x = x + layer.get("layer_scale2.lambda1", 1) * linear(y, layer, "mlp.down_proj")
        block += 1
    cls_norm = "local_cls_norm" if local and "local_cls_norm.weight" in params else "norm"
    first = layer_norm(x[:prefix], params, cls_norm, eps)
    return first[0], first[1:], layer_norm(x[prefix:], params, "norm", eps)


def head(params: Tensors, x: Tensor) -> Tensor:
    """Prototype scores [K] of one feature [D]."""
    layers = sorted(int(name.split(".")[1]) for name in params if name.startswith("mlp.") and name.endswith(".weight"))
    x = linear(x, params, f"mlp.{layers[0]}")
    for layer in layers[1:]:
        x = linear(gelu(x), params, f"mlp.{layer}")
    return params["last_layer.weight"] @ unit(x, 1e-12)


def part(params: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in params.items() if name.startswith(prefix)}


def sinkhorn(logits: list[Tensor], temperature: float, iterations: int = 3) -> list[list[float]]:
    """One assignment row per sample, each summing to 1; plain Python numbers."""
    if not logits:
        return []
    table = [[float(value) / temperature for value in row] for row in logits]
    largest = max(max(row) for row in table)
    table = [[math.exp(value - largest) for value in row] for row in table]
    for _ in range(iterations):
        for k in range(len(table[0])):
            total = sum(row[k] for row in table)
            for row in table:
                row[k] /= total
        for row in table:
            total = sum(row)
            row[:] = [value / total for value in row]
    return table


def cross_entropy(logits: Tensor, target: list[float], temperature: float) -> Tensor:
    scores = logits / temperature
    shift = scores.detach().max()
    log_sum = shift + (scores - shift).exp().sum().log()
    return sum(probability * (log_sum - score) for probability, score in zip(target, scores, strict=True))


def image_loss(student: list, teacher: list, temperature: float, ignore_diagonal: bool) -> Tensor:
    """Mean over images and (student crop, teacher crop) pairs; student [S][B] of [K], teacher [T][B][K]."""
    pairs = [(s, t) for s in range(len(student)) for t in range(len(teacher)) if s != t or not ignore_diagonal]
    losses = [
        cross_entropy(logits, target, temperature)
        for s, t in pairs
        for logits, target in zip(student[s], teacher[t], strict=True)
    ]
    return sum(losses) / max(len(losses), 1)


def koleo(features: list[Tensor], topk: int = 1) -> Tensor:
    points = [unit(feature, 1e-8) for feature in features]
    loss = features[0].new_zeros(())
    for i, point in enumerate(points):
        others = [(float(point.detach() @ other.detach()), j) for j, other in enumerate(points) if j != i]
        for _, j in sorted(others, reverse=True)[:topk]:
            distance = (point - points[j] + 1e-8).square().sum().sqrt()
            loss = loss - (distance + 1e-8).log()
    return loss / (len(points) * topk)


def resize_bicubic(patches: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Cubic convolution (a = -0.75) of a token map [P,D], pixel centres aligned, borders repeated, no antialiasing."""

    def taps(index: int, size: int, new_size: int) -> list[tuple[int, float]]:
        position, a, found = (index + 0.5) * size / new_size - 0.5, -0.75, []
        for source in range(math.floor(position) - 1, math.floor(position) + 3):
            x = abs(position - source)
            weight = (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
            found.append((min(max(source, 0), size - 1), weight))
        return found

    resized = torch.zeros(*target, patches.shape[1], dtype=patches.dtype)
    for i, j in itertools.product(range(target[0]), range(target[1])):
        for row, row_weight in taps(i, grid[0], target[0]):
            for column, column_weight in taps(j, grid[1], target[1]):
                resized[i, j] += row_weight * column_weight * patches[row * grid[1] + column]
    return resized.flatten(0, 1)


def gram(student: list[Tensor], teacher: list[Tensor], normalize=True, per_image=True, clamp=None) -> Tensor:
    """Mean squared difference of patch similarities; one [P,D] per crop; all in one set if not per image."""
    if not per_image:
        student, teacher = [torch.cat(student)], [torch.cat(teacher)]
    total, count = student[0].new_zeros(()), 0
    for x, y in zip(student, teacher, strict=True):
        if normalize:
            x, y = unit(x, 1e-12), unit(y, 1e-12)
        for i, j in itertools.product(range(len(x)), repeat=2):
            ours, theirs = x[i] @ x[j], y[i] @ y[j]
            theirs = theirs if clamp is None else theirs.clamp(min=0)
            ours = ours.clamp(min=0) if clamp == "both" else ours
            total, count = total + (ours - theirs) ** 2, count + 1
    return total / count


def objective(
    student: Tensors, teacher: Tensors, gram_teacher: Tensors | None, batch: Tensors, step: int, settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss and its unweighted terms; crops [crops,B,3,H,W], masks [G,B,P]; `gram_teacher` is a bare backbone."""
    crops, masks, local = batch["global_crops"], batch["masks"], batch.get("local_crops", [])
    num_global, num_images, num_local = len(crops), crops.shape[1], len(local)
    temperature, tau, metrics = settings.teacher_temperature.at(step), settings.student_temperature, {}

    def forward(params: Tensors, image: Tensor, mask: Tensor | None = None, local: bool = False):
        return backbone(part(params, "dinov3."), image, settings, mask, local)[::2]  # cls [D], patches [P,D]

    where = [tuple(index) for index in masks.nonzero().tolist()]
    with torch.no_grad():
        seen = [[forward(teacher, image) for image in crop] for crop in crops]
        dino_head, ibot_head = part(teacher, "dino_head."), part(teacher, "ibot_head.")
        cls_logits = [head(dino_head, cls) for crop in seen for cls, _ in crop]
        patch_logits = [head(ibot_head, seen[g][b][1][p]) for g, b, p in where]
    rows = sinkhorn(cls_logits, temperature, settings.sinkhorn_iterations)
    image_targets = [rows[i * num_images : (i + 1) * num_images] for i in range(num_global)]
    patch_targets = sinkhorn(patch_logits, temperature, settings.sinkhorn_iterations)

    ours = [[forward(student, crops[g, b], masks[g, b]) for b in range(num_images)] for g in range(num_global)]
    near = [[forward(student, image, local=True)[0] for image in crop] for crop in local]
    dino_head, ibot_head = part(student, "dino_head."), part(student, "ibot_head.")
    global_logits = [[head(dino_head, cls) for cls, _ in crop] for crop in ours]
    local_logits = [[head(dino_head, cls) for cls in crop] for crop in near]

    metrics["dino_global"] = image_loss(global_logits, image_targets, tau, settings.ignore_diagonal)
    metrics["dino_local"] = crops.new_zeros(()) + image_loss(local_logits, image_targets, tau, ignore_diagonal=False)
    metrics["koleo"] = sum(koleo([cls for cls, _ in crop], settings.koleo_topk) for crop in ours) / num_global
    metrics["ibot"] = crops.new_zeros(())
    for (g, b, p), target in zip(where, patch_targets, strict=True):
        entropy = cross_entropy(head(ibot_head, ours[g][b][1][p]), target, tau)
        metrics["ibot"] = metrics["ibot"] + entropy / int(masks[g, b].sum()) / (num_global * num_images)

    global_pairs = num_global * (num_global - 1) if settings.ignore_diagonal else num_global**2
    local_pairs = num_global * num_local
    local_share = local_pairs / (global_pairs + local_pairs)
    image = settings.local_weight.at(step) * local_share * metrics["dino_local"]
    image = image + (1 - local_share) * metrics["dino_global"]
    loss = settings.dino_weight * image + settings.ibot_weight * metrics["ibot"]
    loss = loss + settings.koleo_weight * num_global * metrics["koleo"]

    if settings.gram is not None:
        if settings.gram == "ema_teacher":
            targets = [patches for crop in seen for _, patches in crop]
        else:
            targets = gram_targets(gram_teacher, batch.get("gram_crops", crops), crops, settings)
        tokens, how = [patches for crop in ours for _, patches in crop], settings
        metrics["gram"] = gram(tokens, targets, how.gram_normalize, how.gram_per_image, how.gram_clamp)
        loss = loss + settings.gram_weight.at(step) * metrics["gram"]
    return loss, metrics


@torch.no_grad()
def gram_targets(params: Tensors, gram_crops: Tensor, crops: Tensor, settings: Settings) -> list[Tensor]:
    """Patches of the Gram teacher's own crops, one [P,D] a crop, brought to the student's grid."""
    side = params["embeddings.patch_embeddings.weight"].shape[-1]
    grid, target = ((size[-2] // side, size[-1] // side) for size in (gram_crops.shape, crops.shape))
    seen = [backbone(params, image, settings)[2] for crop in gram_crops for image in crop]
    return [resize_bicubic(patches, grid, target) if grid != target else patches for patches in seen]


def lr_multiplier(name: str, depth: int, settings: Settings) -> float:
    if not name.startswith("dinov3."):
        return 1.0
    _, group, number, *_ = name.split(".")
    layer = {"embeddings": 0, "layer": int(number) + 1 if number.isdigit() else None}.get(group, depth + 1)
    multiplier = settings.layer_decay ** (depth + 1 - layer)
    return multiplier * settings.patch_embed_lr_mult if "patch_embeddings" in name else multiplier


def is_decayed(name: str) -> bool:
    return not (name.endswith(".bias") or "norm" in name or "layer_scale" in name)


def clip(grads: Tensors, largest: float) -> Tensors:
    """Each of the three networks by its own norm."""
    clipped = {}
    for prefix in ("dinov3.", "dino_head.", "ibot_head."):
        names = [name for name in grads if name.startswith(prefix)]
        norm = math.sqrt(sum(float(grads[name].double().square().sum()) for name in names))
        for name in names:
            clipped[name] = grads[name] * (largest / (norm + 1e-6) if norm > largest else 1.0)
    return clipped


@dataclass
class State:
    """All that a run carries from one step to the next, and what the last step measured."""

    student: Tensors
    teacher: Tensors
    gram_teacher: Tensors | None = None
    gram_updates: int = 0
    step: int = 0
    first_moment: Tensors = field(default_factory=dict)
    second_moment: Tensors = field(default_factory=dict)
    loss: float = math.nan
    metrics: dict[str, float] = field(default_factory=dict)
    gradients: Tensors = field(default_factory=dict)  # before clipping


def train_step(state: State, batch: Tensors, settings: Settings) -> State:
    """Gram load, rates, gradients, clipping, AdamW, moving average, Gram refresh, in this order."""
    step = state.step
    if step == settings.gram_load_step:
        state.gram_teacher = part(state.teacher, "dinov3.")
    params = {name: tensor.detach().clone().requires_grad_() for name, tensor in state.student.items()}
    loss, metrics = objective(params, state.teacher, state.gram_teacher, batch, step, settings)
    state.loss, state.metrics = loss.item(), {name: value.item() for name, value in metrics.items()}
    found = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
    state.gradients = dict(zip(params, found, strict=True))

    depth = len({name.split(".")[2] for name in params if name.startswith("dinov3.layer.")})
    beta1, beta2 = settings.betas
    for name, grad in clip(state.gradients, settings.clip).items():
        rate = settings.learning_rate.at(step) * lr_multiplier(name, depth, settings)
        if name.endswith("last_layer.weight") and step < settings.freeze_last_layer_steps:
            rate = 0.0
        decay = settings.weight_decay.at(step) if is_decayed(name) else 0.0
        state.first_moment[name] = beta1 * state.first_moment.get(name, 0.0) + (1 - beta1) * grad
        state.second_moment[name] = beta2 * state.second_moment.get(name, 0.0) + (1 - beta2) * grad**2
        mean = state.first_moment[name] / (1 - beta1 ** (step + 1))
        variance = state.second_moment[name] / (1 - beta2 ** (step + 1))
        update = decay * state.student[name] + mean / (variance.sqrt() + settings.adam_eps)
        state.student[name] = state.student[name] - rate * update

    momentum = settings.momentum.at(step)
    for name, tensor in state.student.items():
        state.teacher[name] = momentum * state.teacher[name] + (1 - momentum) * tensor

    due = settings.gram_first_update is not None and step + 1 >= settings.gram_first_update
    left = settings.gram_max_updates is None or state.gram_updates < settings.gram_max_updates
    if due and left and (step + 1) % settings.gram_update_frequency == 0:
        state.gram_teacher = part(state.teacher, "dinov3.")
        state.gram_updates += 1
    state.step += 1
    return state
