"""Health of a run: metrics of collapse, a small online probe of the teacher, and alarms with advice."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cosine_similarity

from dinov3_hf.data.columns import check_column, undecoded
from dinov3_hf.data.pixels import decode_image
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.errors import Refused
from dinov3_hf.pipelines.neighbours import knn_classify


if TYPE_CHECKING:
    import datasets

RANKME_EPSILON = 1e-7
NEIGHBOURS, BATCH_SIZE = 10, 64

# Thresholds of the alarms, chosen between healthy and failed small runs. On the plateau the image loss is within 0.1 %
# of ln K, while healthy runs are some percent below it. After a collapse to one prototype it is below 0.1 % of ln K,
# and RankMe is 3 to 4, while healthy runs have 7 to 13.
PLATEAU_SHARE, ZERO_SHARE = 0.99, 0.01
USED_SHARE, MIN_USED = 0.05, 2
MIN_RANKME = 4
# Minus the mean log distance to the nearest neighbour: 8 is a distance of 3e-4. Equal features give 16 to 18.
MAX_KOLEO = 8
COSINE_RISE = 0.2
# A minimal absolute fall as well: 0.02 is the sampling error of a probe of 500 images.
KNN_FALL_SHARE, KNN_FALL = 0.1, 0.02
# Number of consecutive lines of metrics that must show a symptom, because a single one may be noise.
LINES_IN_A_ROW = 2
# Minimum number of steps after the warm-up before the plateau, RankMe and cosine alarms are active.
MIN_SETTLING_STEPS = 200
LOSS_PARTS = ("dino_global", "dino_local", "ibot", "koleo", "gram")


@torch.no_grad()
def prototype_usage(assignments: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Return the share of prototypes in use: exp(entropy of the mean assignment) / K, from 1 / K to 1, in fp32.

    `assignments` [N, K] are the student's softmax at its own temperature over the image logits of the global crops,
    every row summing to 1. Do not use the teacher's targets, which Sinkhorn-Knopp spreads over all prototypes
    equally, or the teacher's plain softmax, whose offsets between prototypes no loss limits because Sinkhorn-Knopp
    removes them. N images use at most about N prototypes. With a process group, the mean is taken over the rows of all
    its processes.
    """
    assignments = assignments.float()
    total = torch.cat([assignments.sum(dim=0), assignments.new_full((1,), len(assignments))])
    if group is not None:
        dist.all_reduce(total, group=group)
    return torch.special.entr(total[:-1] / total[-1]).sum().exp() / assignments.shape[1]


@torch.no_grad()
def assignment_entropy(assignments: torch.Tensor) -> torch.Tensor:
    """Return the mean entropy of the rows of `assignments` [N, K], K at least 2, divided by ln K, in fp32.

    0: every image is assigned to one prototype; 1: every image is assigned to all prototypes equally, the plateau at
    the start of a run, on which `prototype_usage` is 1 too. The input is that of `prototype_usage`; the teacher's
    targets are also valid, because Sinkhorn-Knopp balances prototypes, not rows.
    """
    return torch.special.entr(assignments.float()).sum(dim=1).mean() / math.log(assignments.shape[1])


@torch.no_grad()
def rankme(features: torch.Tensor) -> torch.Tensor:
    """Return the effective rank of `features` [N, D], from 1 to min(N, D), in fp32 (Garrido et al. 2023, equation 1).

    RankMe is the exponential of the entropy of the singular values divided by their sum; nan for features that are not
    finite.
    """
    features = features.float()
    if not features.isfinite().all():
        return features.new_tensor(torch.nan)
    values = torch.linalg.svdvals(features)
    return torch.special.entr(values / values.sum() + RANKME_EPSILON).sum().exp()


@torch.no_grad()
def cls_patch_cosine(cls_tokens: torch.Tensor, patch_tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean cosine similarity of class tokens [B, D] and patch tokens [B, P, D] of the same image, in fp32.

    It rises as dense features degrade in a long training (DINOv3, figure 5).
    """
    return cosine_similarity(cls_tokens.float()[:, None], patch_tokens.float(), dim=-1).mean()


class OnlineProbe:
    """A small fixed set of held-out images, decoded once, on which the teacher is evaluated during training.

    `rows` is a `datasets.Dataset` (a fixed random subset is used) or an `IterableDataset` (the first rows are used).
    At most `num_train` + `num_test` images are read; those that cannot be decoded are skipped. The shorter side of the
    images is resized to 256 / 224 of `image_size` and the centre is cropped; `mean` and `std` are on the 0..1 scale.
    Without a `label_column`, k-NN is omitted. Raises `Refused` if fewer than 10 train images or no test image can be
    decoded, or if all images have the same class.
    """

    def __init__(
        self,
        rows: "datasets.Dataset | datasets.IterableDataset",
        image_column: str,
        label_column: str | None,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        num_train: int,
        num_test: int,
    ):
        self.preprocessing = Preprocessing(image_size, round(image_size * 256 / 224), tuple(mean), tuple(std))
        images, values = [], []
        for row in _choose(rows, image_column, label_column, num_train + num_test):
            try:
                images.append(self.preprocessing.image(decode_image(row[image_column])))
            except (OSError, ValueError):
                continue
            values.append(row[label_column] if label_column else 0)
        # Skipped images shorten both parts in proportion.
        self.num_train = len(images) * num_train // (num_train + num_test)
        if self.num_train < NEIGHBOURS or self.num_train == len(images):
            raise Refused(
                f"probe_data: got {self.num_train} train and {len(images) - self.num_train} test images that could be "
                f"decoded, accepted: at least {NEIGHBOURS} and 1"
            )
        # A stream may be sorted by class, so the images are shuffled before they are split.
        order = np.random.default_rng(0).permutation(len(images)).tolist()
        self.images = torch.stack([images[index] for index in order])
        self.labels, self.num_classes = None, 0
        if label_column:
            classes = _classes(values, label_column)
            self.labels = torch.tensor([classes[values[index]] for index in order])
            self.num_classes = len(classes)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return knn (top-1 accuracy with k = 10, 0..1), rankme and cls_patch_cosine of a model, e.g. the EMA teacher.

        `model` is a backbone, or a network with heads (`Dinov3ForPreTraining`, a student of distillation), which a
        sharded run must call as a whole, on every process. The model is evaluated in eval mode without gradients;
        afterwards its mode and torch's random state are restored.
        """
        parameter = next(model.parameters())
        modes = {module: module.training for module in model.modules()}
        devices = [parameter.device] if parameter.device.type == "cuda" else []
        features, cosine = [], 0.0
        with torch.random.fork_rng(devices):
            model.eval()
            try:
                for images in self.images.split(BATCH_SIZE):
                    pixel_values = self.preprocessing.normalize(images.to(parameter.device)).to(parameter.dtype)
                    cls_tokens, patch_tokens = _features(model, pixel_values)
                    features.append(cls_tokens.float())
                    cosine += cls_patch_cosine(cls_tokens, patch_tokens).item() * len(images)
            finally:
                for module, mode in modes.items():
                    module.training = mode
        features = torch.cat(features)
        metrics = {"rankme": rankme(features).item(), "cls_patch_cosine": cosine / len(features)}
        if self.labels is None:
            return metrics
        labels, count = self.labels.to(features.device), self.num_train
        # Without this, autocast would compute the similarities in half precision.
        with torch.autocast(features.device.type, enabled=False):
            predictions = knn_classify(
                features[:count], labels[:count], features[count:], NEIGHBOURS, self.num_classes
            )
        return {"knn": (predictions == labels[count:]).double().mean().item()} | metrics


def _features(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class tokens [B, D] and patch tokens [B, P, D] of images [B, 3, S, S]."""
    if hasattr(model, "dino_head"):
        output = model(pixel_values[None])
        return output.cls_tokens[0], output.patch_tokens[0]
    output = model(pixel_values)
    return output.pooler_output, output.patch_tokens


def _choose(
    rows: "datasets.Dataset | datasets.IterableDataset", image_column: str, label_column: str | None, count: int
) -> Iterator[dict]:
    """Yield at most `count` rows, undecoded: a fixed random subset of a `Dataset`, or the first rows of a stream."""
    from datasets import Dataset

    columns = [image_column, *([label_column] if label_column else [])]
    for name, field in zip(columns, ("image_column", "label_column"), strict=False):
        if rows.column_names is not None:
            check_column(rows, name, field)
    rows = rows.select_columns(columns)
    rows = undecoded(rows) if rows.features else rows
    if isinstance(rows, Dataset):
        chosen = np.random.default_rng(0).permutation(len(rows))[:count]
        rows = rows.select(sorted(chosen.tolist()))
    yield from itertools.islice(rows, count)


def _classes(values: list, label_column: str) -> dict:
    """Return the index of each class; raises `Refused` for rows without a label and for a single class."""
    if not all(isinstance(value, int | str) for value in values):
        raise Refused(
            f"label_column: {label_column!r} is not one class a row, accepted: a column of ClassLabel, int or text"
        )
    names = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    if len(names) < 2:
        raise Refused(
            f"label_column: all {len(values)} probe images have {label_column} {names[0]!r}, accepted: rows of at "
            "least two classes (a stream that is sorted by class has to be shuffled, or read without streaming)"
        )
    return {name: index for index, name in enumerate(names)}


class CollapseAlarm:
    """Detect collapse and other failures of a run, and report each kind once, in a sentence with advice.

    `num_prototypes` is K of the image head; `num_rows` is the number of the student's global crops in a step over all
    processes, which limits how many prototypes a batch can use; `warmup_steps` are those of the learning rate. After a
    resume, `check` must first be called with the earlier lines of metrics.
    """

    def __init__(self, num_prototypes: int, num_rows: int, warmup_steps: int):
        self.plateau, self.reach = math.log(num_prototypes), min(num_prototypes, num_rows)
        self.num_prototypes, self.warmup_steps = num_prototypes, warmup_steps
        self.settled_at = warmup_steps + max(warmup_steps, MIN_SETTLING_STEPS)
        self.told: dict[str, str] = {}
        self.in_a_row: dict[str, int] = {}
        self.least_cosine = math.inf
        self.first_knn: float | None = None

    def check(self, line: dict) -> list[str]:
        """Return the new alarms after one line of metrics.

        Uses step, the parts of the loss, prototype_usage, rankme, cls_patch_cosine and knn, if the line contains them;
        None stands for a value that was not finite.
        """
        alarms = []
        for kind, wrong, sentence in self._symptoms(line):
            self.in_a_row[kind] = self.in_a_row.get(kind, 0) + 1 if wrong else 0
            if self.in_a_row[kind] >= (1 if kind == "non_finite" else LINES_IN_A_ROW) and kind not in self.told:
                self.told[kind] = f"step {line['step']}: {sentence}"
                alarms.append(self.told[kind])
        return alarms

    def _symptoms(self, line: dict) -> Iterator[tuple[str, bool, str]]:
        """Yield each kind of failure that this line can show, whether it shows it, and the sentence to report."""
        warm, settled = line["step"] > self.warmup_steps, line["step"] > self.settled_at
        values = {
            name: value for name, value in line.items() if isinstance(value, int | float) and math.isfinite(value)
        }
        broken = [name for name in LOSS_PARTS if name in line and name not in values]
        yield (
            "non_finite",
            bool(broken),
            f"{', '.join(broken)} not finite; try a lower lr or clip_grad_norm, or mixed_precision no",
        )
        if (loss := values.get("dino_global")) is not None:
            yield (
                "zero_loss",
                loss < ZERO_SHARE * self.plateau,
                f"the image loss is {loss:.2g}, almost 0: all images are assigned to the same prototypes; try a lower "
                "lr, a higher momentum, a higher teacher_temperature or a higher koleo_weight, from an earlier "
                "checkpoint",
            )
            yield (
                "plateau",
                settled and loss > PLATEAU_SHARE * self.plateau,
                f"the image loss is {loss:.3f}, still ln K = {self.plateau:.3f} long after the warm-up: "
                "every image is assigned to all prototypes equally; try fewer prototypes (dino_head_num_prototypes, "
                f"now {self.num_prototypes}) or a larger batch, a lower momentum (0.9, rising to momentum_end), a "
                "larger head_initializer_range or layerscale_value (0.1 both), or a lower teacher_temperature",
            )
        if (koleo := values.get("koleo")) is not None:
            yield (
                "koleo",
                warm and koleo > MAX_KOLEO,
                f"koleo is {koleo:.1f}: nearest neighbours in a batch have the same features; try a lower lr or a "
                "higher koleo_weight, and look for repeated images in the data",
            )
        if (usage := values.get("prototype_usage")) is not None:
            used = usage * self.num_prototypes
            yield (
                "prototypes",
                warm and used < max(MIN_USED, USED_SHARE * self.reach),
                f"{used:.1f} prototypes are in use, of {self.reach} that a batch could use: the features collapse; "
                "try a lower lr, a higher momentum, a higher koleo_weight or a longer freeze_last_layer_steps",
            )
        if (rank := values.get("rankme")) is not None:
            yield (
                "rankme",
                settled and rank < MIN_RANKME,
                f"RankMe is {rank:.1f}: the features span only about that many dimensions; try a higher "
                "koleo_weight, a lower lr or a larger batch",
            )
        if (cosine := values.get("cls_patch_cosine")) is not None:
            # In the first steps from random weights it varies too much.
            self.least_cosine = min(self.least_cosine, cosine) if settled else math.inf
            yield (
                "cosine",
                cosine - self.least_cosine > COSINE_RISE,
                f"the cosine of class and patch tokens has risen from {self.least_cosine:.2f} to {cosine:.2f}: "
                "dense features may be degrading; compare patch k-NN with an earlier checkpoint (dinov3 evaluate "
                "--task patch-knn), and try Gram anchoring (gram_teacher) from a checkpoint before the rise",
            )
        if (knn := values.get("knn")) is not None:
            if self.first_knn is None:
                self.first_knn = knn
            fall = self.first_knn - knn
            yield (
                "knn",
                warm and fall > max(KNN_FALL_SHARE * self.first_knn, KNN_FALL),
                f"k-NN has fallen from {self.first_knn:.3f} at the start to {knn:.3f}; try a lower lr, a warm-up of "
                "the heads alone before the backbone is trained, or LoRA",
            )
