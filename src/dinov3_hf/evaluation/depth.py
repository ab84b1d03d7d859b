"""Linear depth estimation on frozen patch tokens (DINOv3, section 6.1.2; the bins of AdaBins, Bhat et al. 2021)."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..data.depths import check_depth_column, in_metres, read_depth
from ..data.views import check_image_size
from ..errors import Refused
from ..visualization.depths import depths_picture
from .bench import Bench
from .dense_probe import (
    Crops,
    DenseSplit,
    HeadTraining,
    head_outputs,
    rows_to_draw,
    skipped,
    train_heads,
    upsample,
)
from .intervals import mean_interval, with_interval
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

PAPER_STEPS = 38_400
METRICS = {"RMSE (m)": True, "ARel": True, "delta1": False}  # and whether lower is better
# Weight of the mean in the loss: 0 leaves the scale free, 1 is the plain error of logarithms (AdaBins, section 3.3).
MEAN_WEIGHT = 0.15


def evaluate_depth(
    bench: Bench,
    train: "Dataset",
    test: "Dataset",
    image_column: str = "image",
    depth_column: str = "depth",
    depth_unit: float = 0.001,
    min_depth: float = 0.001,
    max_depth: float = 10.0,
    batch_norm: bool = True,
    num_bins: int = 256,
    steps: int = PAPER_STEPS,
    crop: int | None = None,
    batch_size: int = 16,
    lr: float = 3e-4,
    weight_decay: float = 1e-4,
    augment: bool = False,
) -> Result:
    """Measure linear depth estimation; baselines are the randomly initialised network and the patches' raw pixels.

    A linear layer predicts for each patch the probabilities of `num_bins` depths between `min_depth` and `max_depth`
    (metres); their mean is upsampled bilinearly to the pixels. The head is trained on crops of `crop` pixels (by
    default image_size) and tested on whole images, at the stored size of each depth map. A stored unit is `depth_unit`
    metres; pixels of depth 0 or outside the range are ignored. Each metric is computed per image and averaged over
    images.
    """
    view = bench.preprocessing
    crop = view.image_size if crop is None else crop
    training = HeadTraining(batch_norm, steps, crop, batch_size, lr, weight_decay, augment)
    training.check(bench.patch_size)
    check_image_size(view.image_size, bench.patch_size)
    check_depths(depth_unit, min_depth, max_depth, num_bins)
    learnt, tested = (
        DenseSplit(f"depth: {name}", rows, image_column, "depth_column")
        for name, rows in (("train", train), ("test", test))
    )
    for split in (learnt, tested):
        check_depth_column(split.rows, depth_column)
    for split in (learnt, tested):
        split.read_maps(
            depth_column,
            lambda value: read_depth(value, depth_unit, min_depth, max_depth),
            lambda depths: bool(depths.any()),
            bench.progress,
        )
    learnt.find_features(bench, compute=not augment)
    tested.find_features(bench)

    centres = bin_centres(min_depth, max_depth, num_bins).to(bench.device)
    errors: dict[str, list[tuple[float, ...]]] = {}
    predictions: dict[str, dict[int, np.ndarray]] = {}
    chosen = rows_to_draw(tested)
    heads = train_heads(
        bench,
        learnt,
        num_bins,
        lambda crops: depth_loss(crops, centres, depth_unit),
        training,
        ("depth", depth_column, depth_unit, min_depth, max_depth, num_bins),
    )
    for name, head in heads:
        errors[name], predictions[name] = [], {}
        for row, outputs, stored in head_outputs(bench, tested, name, head):
            depths = expected_depth(outputs, centres)[:, None]
            depths = nn.functional.interpolate(depths, size=stored.shape, mode="bilinear")[0, 0].cpu().double().numpy()
            errors[name].append(depth_errors(depths[stored > 0], in_metres(stored[stored > 0], depth_unit)))
            if row in chosen:
                predictions[name][row] = depths
    constants = constant_depths(min_depth, max_depth)
    truths = (in_metres(stored[stored > 0], depth_unit) for stored in tested.maps.values())
    of_constants = np.mean([constant_errors(truth, constants) for truth in truths], axis=0)
    best = best_constants(of_constants)
    means = {name: np.mean(values, axis=0).tolist() for name, values in errors.items()}
    means["chance"] = [float(of_constants[index, place]) for place, index in enumerate(best)]
    of_images = np.array(errors["model"])
    drawn = {name: predictions[name] for name in bench.networks}
    maps = {row: in_metres(tested.maps[row], depth_unit) for row in chosen}
    examples = [(tested.image(row), [true, *(of[row] for of in drawn.values())]) for row, true in maps.items()]
    return Result(
        task="depth",
        protocol={
            **training.describe(),
            "bins": f"{num_bins} of equal width from {min_depth:g} to {max_depth:g} m",
            "prediction": "mean of the bins' centres, weighted by relu(logit) + 0.1 normalised to sum 1",
            "loss": f"sqrt(var(g) + {MEAN_WEIGHT} mean(g)^2) over a batch's valid pixels, g = log prediction - log "
            "truth, predictions upsampled bilinearly to the depth maps, resized to what the network sees",
            "measured_on": "predictions upsampled bilinearly to each depth map's own size; an image's own value over "
            "its valid pixels, mean over images",
            "delta1": "share of pixels where max(prediction / truth, truth / prediction) < 1.25",
            "depth_unit": depth_unit,
            "valid": f"{min_depth:g} to {max_depth:g} m",
            "num_train": len(learnt.maps),
            "num_test": len(tested.maps),
            "preprocessing": asdict(view),
            "seed": bench.seed,
            "raw_pixels": "the pixels of the patch, normalised as the network's input, flattened",
            "chance": f"always one depth, the best of {len(constants)} for each metric: "
            + ", ".join(f"{constants[index]:.3g} m" for index in best),
        },
        **skipped(learnt, tested),
        metrics=[
            {
                "metric": title,
                **({"lower_is_better": True} if lower else {}),
                **{name: values[place] for name, values in means.items()},
                **with_interval(mean_interval(of_images[:, place], bench.seed)),
            }
            for place, (title, lower) in enumerate(METRICS.items())
        ],
        pictures={"depth": depths_picture(["true", *drawn], examples)},
    )


def constant_depths(min_depth: float, max_depth: float, count: int = 256) -> np.ndarray:
    """Return the depths [C] (metres) that are tried as constant answers, at equal ratios over the valid range."""
    return np.geomspace(min_depth, max_depth, count)


def constant_errors(truth: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """Return `depth_errors` [C,3] of the answers that give every pixel of an image one depth, fp64.

    From sorted depths [N] and their sums, at the cost of one sort for all constants [C].
    """
    truth = np.sort(truth.astype(np.float64))
    squares = np.square(truth).mean() - 2 * constants * truth.mean() + np.square(constants)
    # Of the depths below a constant c, |c - t| / t is c / t - 1, of the others 1 - c / t.
    inverse = np.concatenate([[0.0], np.cumsum(1 / truth)])
    below = np.searchsorted(truth, constants)
    relative = constants * (2 * inverse[below] - inverse[-1]) + len(truth) - 2 * below
    first = np.searchsorted(truth, constants / 1.25, side="right")
    within = np.searchsorted(truth, constants * 1.25) - first
    return np.stack([np.sqrt(squares.clip(0)), relative / len(truth), within / len(truth)], axis=1)


def best_constants(errors: np.ndarray) -> list[int]:
    """Return for each metric the index of the best constant, from mean `constant_errors` [C,3]."""
    lower = METRICS.values()
    return [int((of if low else -of).argmin()) for of, low in zip(errors.T, lower, strict=True)]


def check_depths(depth_unit: float, min_depth: float, max_depth: float, num_bins: int) -> None:
    """Raise `Refused` for a unit that is not positive, an empty range of depths, or fewer than two bins."""
    if not depth_unit > 0:
        raise Refused(f"depth_unit: got {depth_unit}, accepted: metres above 0")
    if not 0 < min_depth < max_depth < np.inf:
        raise Refused(f"min_depth: got {min_depth}, accepted: metres above 0 and below max_depth ({max_depth})")
    if num_bins < 2:
        raise Refused(f"num_bins: got {num_bins}, accepted: a whole number of at least 2")


def bin_centres(min_depth: float, max_depth: float, num_bins: int) -> torch.Tensor:
    """Return the centres [C] of bins of equal width, in metres."""
    edges = torch.linspace(min_depth, max_depth, num_bins + 1, dtype=torch.float64)
    return ((edges[1:] + edges[:-1]) / 2).float()


def expected_depth(outputs: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the expected depth [...]: centres [C] weighted by relu(outputs [...,C]) + 0.1, normalised to sum 1."""
    weights = outputs.relu() + 0.1
    return weights @ centres / weights.sum(-1)


def sigma_loss(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Scale-invariant error of the logarithms of depths [N]; entries whose true depth is 0 are ignored."""
    valid = truth > 0
    count = valid.sum().clamp(min=1)
    # Masked instead of indexed: indexing is slower, above all in the backward pass.
    g = torch.where(valid, predicted.log() - truth.where(valid, 1).log(), 0)
    mean = g.sum() / count
    variance = torch.where(valid, g - mean, 0).square().sum() / count
    # The root of exactly 0 has no gradient.
    return (variance + MEAN_WEIGHT * mean.square() + 1e-12).sqrt()


def depth_loss(crops: list[Crops], centres: torch.Tensor, depth_unit: float) -> torch.Tensor:
    """Sigma loss of outputs [b,h,w,C]: their expected depths, upsampled, against the stored depth maps [b,H,W]."""
    depths = [upsample(expected_depth(outputs, centres)[:, None], stored.shape[1:]) for outputs, stored in crops]
    truth = [stored.float() * depth_unit for _, stored in crops]
    return sigma_loss(*(torch.cat([part.flatten() for part in parts]) for parts in (depths, truth)))


def depth_errors(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Return RMSE (metres), mean absolute relative error and delta1 of depths [N]."""
    difference, ratio = predicted - truth, predicted / truth
    within = np.maximum(ratio, 1 / ratio) < 1.25
    return np.sqrt(np.square(difference).mean()), (np.abs(difference) / truth).mean(), within.mean()
