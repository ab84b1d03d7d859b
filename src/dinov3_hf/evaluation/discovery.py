"""Unsupervised discovery of an image's main object: TokenCut on patch tokens, CorLoc (DINOv3, section 6.1.4)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from ..data.boxes import mask_boxes, read_boxes
from ..data.columns import check_column, undecoded
from ..data.masks import check_mask_column, read_masks
from ..data.pixels import decode_image
from ..data.views import check_image_size, image_sizes
from ..errors import Refused
from ..terminal import progress_bar
from ..visualization.boxes import FoundBox, boxes_picture
from .bench import Bench
from .intervals import wilson_interval
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

# The graph has an edge for every two patches: half a gigabyte at this many, and minutes for its eigenvector.
MAX_PATCHES = 8192
NO_EDGE = 1e-5
MIN_IOU = 0.5
# Sides (as shares of the image's) of the centred boxes from which the constant prediction ("chance") is chosen.
CENTRE_SIDES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NUM_DRAWN = 6


def graph_weights(cosines: torch.Tensor, tau: float) -> torch.Tensor:
    """Return edge weights, fp64 [P,P], from cosines [P,P] of patches: 1 above `tau` and on the diagonal, else 1e-5."""
    weights = torch.where(cosines > tau, 1.0, NO_EDGE).double()
    return weights.fill_diagonal_(1)


def second_eigenvector(weights: torch.Tensor) -> np.ndarray:
    """Solve (D - W) x = lambda D x for symmetric W [P,P], D its row sums; returns x [P] of the second smallest lambda.

    This is the relaxed normalised cut of the graph (Shi and Malik, 2000); its sign is arbitrary.
    """
    from scipy.linalg import eigh

    scale = weights.sum(1).rsqrt()
    # With x = D^-1/2 z this is the plain problem (1 - D^-1/2 W D^-1/2) z = lambda z; the 1 moves no eigenvector.
    similarity = -(scale[:, None] * weights * scale)
    # LAPACK, because it finds this one eigenvector alone.
    _, vectors = eigh(similarity.cpu().numpy(), subset_by_index=[1, 1], overwrite_a=True, check_finite=False)
    return scale.cpu().numpy() * vectors[:, 0]


def main_component(vector: np.ndarray) -> np.ndarray:
    """Return the object mask [h,w] (bool) that an eigenvector [h,w] gives.

    Entries are split at their mean; the mask is the 4-connected component that contains the largest absolute entry, on
    that entry's side of the mean.
    """
    from scipy.ndimage import label

    size = np.abs(vector)
    # The first of the largest entries, up to rounding: patches of one cluster have equal entries.
    seed = int((size >= size.max() * (1 - 1e-6)).argmax())
    centred = vector - vector.mean()
    numbers, _ = label(centred * np.sign(centred.flat[seed]) > 0)
    return numbers == numbers.flat[seed]


def find_object(cosines: torch.Tensor, grid: tuple[int, int], tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the box [4] (x0, y0, x1, y1 in 0..1 of the image's sides) and the eigenvector [h,w], positive inside it.

    `cosines` [P,P] are those of the patches of `grid`. If all edges have the same weight, the graph cannot be cut: the
    box is the whole image and the eigenvector 0.
    """
    weights = graph_weights(cosines, tau)
    num_patches = len(weights)
    if int((weights == 1).sum()) in (num_patches, num_patches**2):
        return np.array([0.0, 0.0, 1.0, 1.0]), np.zeros(grid)
    vector = second_eigenvector(weights).reshape(grid)
    inside = main_component(vector)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / (grid[1], grid[0], grid[1], grid[0])
    vector = vector - vector.mean()
    return box, vector * np.sign(vector[inside][0])


def choose_elsewhere(hits: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Choose for each half of the images the setting that is best on the other half.

    `hits` [N,S] (bool) holds the outcome of S settings on N images, `half` [N] is 0 or 1. Returns the hits [N] under
    the chosen settings, and the settings chosen for halves 0 and 1; of equally good settings the first.
    """
    chosen = [int(hits[half != part].sum(0).argmax()) for part in (0, 1)]
    return np.where(half == 0, hits[:, chosen[0]], hits[:, chosen[1]]), chosen


def evaluate_discovery(
    bench: Bench,
    test: "Dataset",
    image_column: str = "image",
    mask_column: str = "instances",
    box_column: str | None = None,
    taus: Sequence[float] = (0.1, 0.15, 0.2, 0.25, 0.3),
    ignore_index: int | None = None,
) -> Result:
    """Measure in how many images the box predicted without labels matches an object's box (CorLoc).

    True boxes come from `box_column` (see `read_boxes`), else from the values of `mask_column`, one object each; an
    image without an object is skipped and counted. Images are not cropped, their shorter side is resized to
    `image_size`. The tau is chosen by cross-validation: each half of the images, drawn by seed, is measured with the
    tau that is best on the other half. "pictures" shows some images with their boxes.
    """
    check_image_size(bench.preprocessing.image_size, bench.patch_size)
    check_column(test, image_column, "image_column")
    taus = sorted(set(taus))
    if not taus or not -1 <= taus[0] <= taus[-1] < 1:
        raise Refused(f"taus: got {taus}, accepted: cosines of at least -1, below 1")
    sizes = image_sizes(test, image_column)
    _check_grids(bench, sizes)
    boxes = None
    if box_column is None:
        check_mask_column(test, mask_column)
    else:
        check_column(test, box_column, "box_column")
        boxes = read_boxes(test[box_column], sizes)
    features = bench.extract(test, image_column, "patches", "discovery: images", whole=True)
    kept, grids = features["model"].kept, features["model"].grids
    truth = dict(_true_boxes(test, kept, image_column, mask_column, boxes, ignore_index))
    places = [place for place, of_image in truth.items() if len(of_image)]
    if not places:
        named = (
            f"mask_column: none of the {len(test)} rows has a value in {mask_column!r} other than 0 and {ignore_index}"
        )
        raise Refused(named if boxes is None else f"box_column: none of the {len(test)} rows has a box in it")
    predicted = {name: np.zeros((len(places), len(taus), 4)) for name in features}
    bar = progress_bar(places, desc="discovery: graphs", unit="image", disable=not bench.progress)
    for index, place in enumerate(bar):
        for name in features:
            cosines = patch_cosines(features[name][place].to(bench.device))
            for number, tau in enumerate(taus):
                predicted[name][index, number] = find_object(cosines, grids[place], tau)[0]
    centre = np.array([[(1 - side) / 2] * 2 + [(1 + side) / 2] * 2 for side in CENTRE_SIDES])
    predicted["chance"] = np.broadcast_to(centre, (len(places), *centre.shape))
    hits = {
        name: np.stack([_any_hit(of, truth[place]) for of, place in zip(some, places, strict=True)])
        for name, some in predicted.items()
    }
    half = torch.randperm(len(places), generator=torch.Generator().manual_seed(bench.seed)).numpy() % 2
    chosen = {name: choose_elsewhere(some, half) for name, some in hits.items()}
    statistics = {name: float(of.mean()) for name, (of, _) in chosen.items()}
    metrics = [{"metric": "CorLoc", **statistics, "interval": _wilson(chosen["model"][0])}]
    for number, tau in enumerate(taus):
        at_tau = {name: float(hits[name][:, number].mean()) for name in features}
        metrics.append({"metric": "CorLoc", "tau": tau, **at_tau, "chance": statistics["chance"]})
        metrics[-1]["interval"] = _wilson(hits["model"][:, number])
    drawn = sorted({index * len(places) // NUM_DRAWN for index in range(NUM_DRAWN)})
    examples, rows = [], undecoded(test)
    for index in drawn:
        place, number = places[index], chosen["model"][1][half[index]]
        cosines = patch_cosines(features["model"][place].to(bench.device))
        box, vector = find_object(cosines, grids[place], taus[number])
        image = decode_image(rows[kept[place]][image_column])
        examples.append(FoundBox(image, truth[place], box, vector, bool(hits["model"][index, number])))
    return Result(
        task="discovery",
        protocol={
            "features": "final-normed patch tokens, cosine",
            "graph": f"edges of weight 1 where the cosine is above tau, else {NO_EDGE:g}; all edges alike: no cut, "
            "the box is the image",
            "cut": "second smallest generalised eigenvector of the normalised cut, split at its mean; the "
            "4-connected component of its largest absolute entry, in the part that holds it",
            "CorLoc": f"share of images whose box has an IoU of at least {MIN_IOU:g} with the box of any object",
            "tau": "each half of the images, drawn by seed, takes the tau that is best on the other half",
            "taus": taus,
            "chosen_taus": {name: [taus[number] for number in chosen[name][1]] for name in features},
            "grid": f"whole images, shorter side {bench.preprocessing.image_size} px of {bench.patch_size} px patches",
            "true_boxes": f"column {box_column}" if box_column else f"values of column {mask_column}, one object each",
            "ignore_index": ignore_index,
            "num_test": len(places),
            "num_objects": sum(len(truth[place]) for place in places),
            "preprocessing": asdict(bench.whole),
            "seed": bench.seed,
            "raw_pixels": "the pixels of the patch, normalised as the network's input, flattened",
            "chance": "always the same centred box, its sides a share of the image's, chosen as tau is from "
            f"{', '.join(map(str, CENTRE_SIDES))}: {', '.join(str(CENTRE_SIDES[n]) for n in chosen['chance'][1])}",
        },
        skipped_images={"test": len(test) - len(kept)},
        skipped_rows={"without an object": len(kept) - len(places)},
        metrics=metrics,
        pictures={"discovery": boxes_picture(examples)},
    )


def _wilson(hits: np.ndarray) -> list[float]:
    return list(wilson_interval(int(hits.sum()), len(hits)))


def _any_hit(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return for each box [N,4] whether its IoU with any true box [K,4] is at least `MIN_IOU`; bool [N]."""
    overlap = box_iou(torch.tensor(boxes, dtype=torch.float64), torch.from_numpy(truth))
    return (overlap >= MIN_IOU).any(1).numpy()


def patch_cosines(tokens: torch.Tensor) -> torch.Tensor:
    """Cosines [P,P] of patch tokens [P,D], fp32."""
    tokens = F.normalize(tokens.float(), dim=1)
    return tokens @ tokens.T


def _check_grids(bench: Bench, sizes: list[tuple[int, int] | None]) -> None:
    """Raise `Refused` if an image has too many patches for the graph, or too few to be cut."""
    image_size, patch = bench.preprocessing.image_size, bench.patch_size
    if image_size < 2 * patch:
        raise Refused(f"image_size: got {image_size}, accepted for discovery: at least two patches ({2 * patch})")
    counts = [height * width // patch**2 for height, width in (bench.whole.size(*size) for size in sizes if size)]
    if max(counts, default=0) > MAX_PATCHES:
        raise Refused(
            f"image_size: got {image_size}, {max(counts)} patches an image, accepted for discovery: at most "
            f"{MAX_PATCHES}"
        )


def _true_boxes(
    test: "Dataset",
    kept: list[int],
    image_column: str,
    mask_column: str,
    boxes: list[np.ndarray] | None,
    ignore_index: int | None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index in `kept` and the true boxes [K,4] of every row whose boxes or mask can be read."""
    if boxes is not None:
        yield from ((place, boxes[row]) for place, row in enumerate(kept))
        return
    for place, mask in read_masks(test, kept, image_column, mask_column, lambda mask: mask):
        yield place, mask_boxes(mask, ignore_index)
