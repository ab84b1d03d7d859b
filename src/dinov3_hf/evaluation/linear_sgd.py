"""A linear probe trained by SGD at many learning rates at once (DINOv3, section 6.2.1; DINOv2, appendix B.3)."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..data.ahead import StepReader
from ..data.columns import undecoded
from ..data.crops import central_crop, fitting_crop
from ..data.pixels import decode_image
from ..errors import Refused
from ..visualization.charts import curve_picture
from .bench import Bench
from .linear import FEATURES
from .probe import step_generator, train_probe
from .result import Result
from .robustness import ClassificationData


if TYPE_CHECKING:
    from datasets import Dataset

# For a batch of 256.
LEARNING_RATES = tuple(factor * 10.0**exponent for exponent in range(-5, -1) for factor in (1, 2, 5)) + (0.1,)
MOMENTUM = 0.9
KIND = "cls+mean"
# Range of the share of the area that a random crop covers, and how many crops are tried to find one that fits.
CROP_AREA, CROP_TRIES = (0.08, 1.0), 10

# From a step's number to the features of every encoder [B,D], and to one number per image [B]: its index or its class.
Inputs = Callable[[int], dict[str, torch.Tensor]]
Choice = Callable[[int], torch.Tensor]


def evaluate_linear_sgd(
    bench: Bench,
    train: "Dataset",
    test: "Dataset",
    image_column: str = "image",
    label_column: str = "label",
    out_of_distribution: "dict[str, Dataset] | None" = None,
    steps: int = 12500,
    batch_size: int = 1024,
    augment: bool = False,
) -> Result:
    """Measure a linear probe trained by SGD; baselines are the randomly initialised network and raw pixels.

    With `augment` the networks run at every step on randomly cropped and flipped images; otherwise features of the
    centre crops are computed once. An interrupted training resumes from the bench's folder. `out_of_distribution`
    holds further test sets by name, measured with the same classifiers.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise Refused(f"{name}: got {value}, accepted: a whole number of at least 1")
    data = ClassificationData.open(
        bench, "linear-sgd", train, test, out_of_distribution or {}, KIND, image_column, label_column
    )
    # Only classes that occur in train can be predicted.
    classes, targets = data.train.labels[data.fit].unique(return_inverse=True)
    rates = [rate * batch_size / 256 for rate in LEARNING_RATES]
    heads = nn.ModuleDict(
        {
            name: grid_of_heads(tokens.shape[1], len(classes), len(rates), bench.seed)
            for name, tokens in data.train.features.items()
        }
    ).to(bench.device)
    chosen_at = partial(rows_of_step, num_rows=len(data.fit), batch_size=batch_size, seed=bench.seed)
    if augment:
        inputs_at = augmented_inputs(bench, train, image_column, data, chosen_at, steps)
    else:
        inputs_at = cached_inputs(bench, data, chosen_at)
    train_grid(
        heads,
        inputs_at,
        lambda step: targets[chosen_at(step)].to(bench.device),
        rates,
        steps,
        bench.checkpoint(
            "linear-sgd", train._fingerprint, image_column, label_column, steps, batch_size, augment, rates
        ),
        bench.progress,
    )

    @torch.inference_mode()
    def answers(name: str, tokens: torch.Tensor) -> torch.Tensor:
        """Return the classes [N,G] that the G heads of an encoder predict for features [N,D]."""
        parts = tokens.split(batch_size)
        predicted = [
            heads[name](part.to(bench.device)).unflatten(1, (len(rates), -1)).argmax(2).cpu() for part in parts
        ]
        return classes[torch.cat(predicted)]

    labels, best, curves = data.train.labels[data.held], {}, {}
    for name, tokens in data.train.features.items():
        hits = answers(name, tokens[data.held]) == labels[:, None]
        curves[name] = hits.double().mean(0).tolist()
        # Of equally good rates the first: the smallest.
        best[name] = max(range(len(rates)), key=curves[name].__getitem__)
    protocol = {
        "features": FEATURES[KIND],
        "classifier": f"linear layers, cross-entropy, SGD with momentum {MOMENTUM}, no weight decay, cosine to zero",
        "train_images": "random resized crops and flips, the networks run at every step"
        if augment
        else "centre crops, whose features are computed once",
        "steps": steps,
        "batch_size": batch_size,
        "epochs": steps * batch_size / len(data.fit),
        "learning_rate": {name: LEARNING_RATES[index] for name, index in best.items()},
        "learning_rates": f"{', '.join(f'{rate:g}' for rate in LEARNING_RATES)}, times batch_size / 256",
        "learning_rate_chosen_by": "accuracy on the centre crops of a tenth of train, stratified; the heads are "
        "trained on the rest, and not again",
        "learning_rate_at_an_end_of_the_grid": [n for n, index in best.items() if index in (0, len(rates) - 1)],
    }
    series = {name: list(zip(LEARNING_RATES, curve, strict=True)) for name, curve in curves.items()}
    chart = curve_picture("linear-sgd: top-1 on the held-out tenth of train", series, "learning rate", log_x=True)
    return data.result(
        bench,
        lambda name, tokens: answers(name, tokens)[:, best[name]],
        protocol,
        {"learning rate": chart},
    )


def grid_of_heads(width: int, num_classes: int, num_rates: int, seed: int) -> nn.Linear:
    """Build G (`num_rates`) equal linear layers to K (`num_classes`) logits as one layer from [N,D] to [N,G*K]."""
    head = nn.utils.skip_init(nn.Linear, width, num_rates * num_classes)
    weight = 0.01 * torch.randn(num_classes, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(weight.repeat(num_rates, 1))
        head.bias.zero_()
    return head


def train_grid(
    heads: nn.ModuleDict,
    inputs_at: Inputs,
    labels_at: Choice,
    rates: Sequence[float],
    steps: int,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> None:
    """Train the heads of all encoders in place, on the same batches; see `train_probe`."""

    def loss_at(step: int) -> torch.Tensor:
        labels = labels_at(step)
        return sum(grid_loss(heads[name](features), labels, rates) for name, features in inputs_at(step).items())

    # The learning rates are factors of the loss (see `grid_loss`); the schedule decays from 1 to zero.
    optimizer = torch.optim.SGD(heads.parameters(), lr=1.0, momentum=MOMENTUM)
    train_probe(
        heads,
        loss_at,
        optimizer,
        steps,
        checkpoint=checkpoint,
        warmup_share=0.0,
        description="linear-sgd: heads",
        progress=progress,
    )


def grid_loss(logits: torch.Tensor, labels: torch.Tensor, rates: Sequence[float]) -> torch.Tensor:
    """Return the sum of every head's mean cross-entropy times its learning rate; logits [B,G*K], labels [B].

    SGD with momentum and without weight decay is linear in the gradient: training at rate 1 on a loss multiplied by a
    head's rate moves the head exactly as training it alone at that rate.
    """
    logits = logits.unflatten(1, (len(rates), -1)).transpose(1, 2)
    losses = nn.functional.cross_entropy(logits, labels[:, None].expand(-1, len(rates)), reduction="none")
    return losses.mean(0) @ losses.new_tensor(rates)


def rows_of_step(step: int, num_rows: int, batch_size: int, seed: int) -> torch.Tensor:
    """Return the rows [B] of a step: batches run through epochs, each in an order drawn by seed."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_rows
    return torch.cat(
        [
            _permutation(num_rows, seed, epoch)[positions[epochs == epoch] % num_rows]
            for epoch in epochs.unique().tolist()
        ]
    )


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> torch.Tensor:
    # Negative numbers, because numbers from 0 on are used for the steps.
    return torch.randperm(num_rows, generator=step_generator(seed, -1 - epoch))


def cached_inputs(bench: Bench, data: ClassificationData, chosen_at: Choice) -> Inputs:
    """Return the function from a step's number to the stored features of its centre crops."""

    def inputs_at(step: int) -> dict[str, torch.Tensor]:
        places = data.fit[chosen_at(step)]
        return {name: tokens[places].to(bench.device) for name, tokens in data.train.features.items()}

    return inputs_at


def augmented_inputs(
    bench: Bench, train: "Dataset", image_column: str, data: ClassificationData, chosen_at: Choice, steps: int
) -> Inputs:
    """Return the function from a step's number to features of random crops, half of them flipped."""
    rows = undecoded(train.select_columns([image_column]))
    row_of = torch.tensor(data.train.rows)[data.fit]
    extractors, view = bench.extractors(KIND), bench.preprocessing

    def crop(value: dict | None, numbers: list[list[float]], flip: float) -> torch.Tensor:
        image = decode_image(value)
        height, width = image.shape[-2:]
        box = crop_box(height, width, numbers)
        size = [view.image_size, view.image_size]
        image = F.resized_crop(image, *box, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return image.flip(-1) if flip < 0.5 else image

    def crops_of(step: int) -> list[tuple[dict | None, list[list[float]], float]]:
        chosen, generator = row_of[chosen_at(step)], step_generator(bench.seed, step)
        numbers = torch.rand(len(chosen), CROP_TRIES, 4, generator=generator, dtype=torch.float64)
        flips = torch.rand(len(chosen), generator=generator)
        return list(zip(rows[chosen.tolist()][image_column], numbers.tolist(), flips.tolist(), strict=True))

    images_at = StepReader(crop, crops_of, steps)

    def inputs_at(step: int) -> dict[str, torch.Tensor]:
        parts_of: dict[str, list[torch.Tensor]] = {name: [] for name in extractors}
        for part in torch.stack(images_at(step)).split(bench.batch_size):
            pixels = view.normalize(part.to(bench.device))
            for name, extractor in extractors.items():
                parts_of[name].append(extractor.function(pixels))
        # Concatenated outside of inference mode, because autograd rejects tensors made inside of it.
        return {name: torch.cat(parts) for name, parts in parts_of.items()}

    return inputs_at


def crop_box(height: int, width: int, numbers: Sequence[Sequence[float]]) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the first random crop that fits, of those given by numbers [10,4] in 0..1.

    If none fits, return the largest centre crop whose aspect ratio is in range.
    """
    for area, ratio, y, x in numbers:
        if size := fitting_crop(height, width, CROP_AREA, [(area, ratio)]):
            return int(y * (height - size[0] + 1)), int(x * (width - size[1] + 1)), *size
    return central_crop(height, width)
