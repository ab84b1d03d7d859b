"""Semantic correspondence: match keypoints between two images by patch tokens (DINOv3, section 6.1.3)."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.columns import check_column, undecoded
from ..data.pixels import decode_image
from ..data.views import check_image_size, image_sizes
from ..errors import Refused
from ..pipelines.matching import REFINEMENT_STEPS, find_matches, sample_tokens
from ..terminal import progress_bar
from ..visualization.matches import Matches, matches_picture
from .bench import Bench
from .intervals import bootstrap_interval, mean_interval, with_interval
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

NUM_DRAWN, DRAWN_THRESHOLD = 4, 0.1


@dataclass
class Pair:
    """Keypoints [K,2] (x, y in pixels) visible in both images of a pair, and the reference length of distances.

    `source` and `target` are row numbers of the data set; the sizes are those of their images (width, height) in
    pixels.
    """

    source: int
    target: int
    source_points: torch.Tensor
    target_points: torch.Tensor
    source_size: torch.Tensor
    target_size: torch.Tensor
    length: float


def read_keypoints(value: list | None, row: int) -> dict[Hashable, tuple[float, float]]:
    """Return the visible keypoints of a row, (x, y) in pixels, by a name that is the same in both images of a pair.

    Accepted: a list of [x, y] or [x, y, visible], named by their order, or of {instance_id, points}, named by instance
    and order. A point is visible where `visible` is above 0 and its coordinates are finite. Raises `Refused` for
    anything else.
    """
    points: dict[Hashable, Any] = {}
    try:
        for index, item in enumerate(value or []):
            if isinstance(item, dict):
                points |= {(item["instance_id"], number): point for number, point in enumerate(item["points"])}
            else:
                points[index] = item
        named = {name: [math.nan if number is None else float(number) for number in p] for name, p in points.items()}
        if any(len(point) not in (2, 3) for point in named.values()):
            raise TypeError("a point of another length")
    except (TypeError, KeyError, ValueError) as error:
        accepted = "a list of [x, y] or [x, y, visible], or of {instance_id, points}"
        raise Refused(f"keypoints_column: row {row} has {str(value)[:60]}, accepted: {accepted}") from error
    return {
        name: (x, y)
        for name, (x, y, *seen) in named.items()
        if math.isfinite(x + y) and all(flag > 0 for flag in seen)
    }


def read_pairs(test: "Dataset", pairs: "Dataset | None") -> list[tuple[int, int, float | None]]:
    """Return source row, target row and reference length (None: the image's longer side) of each pair.

    `pairs` has columns src, trg and optionally bbox_trg: the longer side of the target's box in pixels, or the box
    [x0, y0, x1, y1]. Without `pairs`, rows 0 and 1, 2 and 3, and so on form pairs. Raises `Refused` for rows that do
    not exist and for empty boxes.
    """
    if pairs is None:
        return [(row, row + 1, None) for row in range(0, len(test) - 1, 2)]
    for name in ("src", "trg"):
        check_column(pairs, name, "pairs")
        wrong = [row for row in pairs[name] if type(row) is not int or not 0 <= row < len(test)]
        if wrong:
            raise Refused(f"pairs: got {wrong[0]} in {name}, accepted: rows of the images, 0 to {len(test) - 1}")
    boxes = pairs["bbox_trg"] if "bbox_trg" in pairs.column_names else [None] * len(pairs)
    lengths = [max(box[2] - box[0], box[3] - box[1]) if isinstance(box, list) else box for box in boxes]
    wrong = [length for length in lengths if length is not None and not length > 0]
    if wrong:
        raise Refused(f"pairs: got {wrong[0]} as the side of a box in bbox_trg, accepted: pixels above 0")
    return list(zip(pairs["src"], pairs["trg"], lengths, strict=True))


def _shared_keypoints(
    numbers: list[tuple[int, int, float | None]], values: list, sizes: list[tuple[int, int] | None]
) -> list[Pair]:
    """Return the pairs whose images can be opened, with the keypoints that lie inside both images."""
    seen = {row: read_keypoints(values[row], row) for row in sorted({row for pair in numbers for row in pair[:2]})}

    def inside(row: int, size: tuple[int, int]) -> dict[Hashable, tuple[float, float]]:
        height, width = size
        return {name: (x, y) for name, (x, y) in seen[row].items() if 0 <= x <= width and 0 <= y <= height}

    shared = []
    for source, target, length in numbers:
        size, other = sizes[source], sizes[target]
        if size is None or other is None:
            continue
        first, second = inside(source, size), inside(target, other)
        names = [name for name in first if name in second]
        points, others = (torch.tensor([of[name] for name in names]).view(-1, 2).double() for of in (first, second))
        extent, other_extent = (torch.tensor(one[::-1]).double() for one in (size, other))
        shared.append(Pair(source, target, points, others, extent, other_extent, float(length or max(other))))
    return shared


def evaluate_correspondence(
    bench: Bench,
    test: "Dataset",
    pairs: "Dataset | None" = None,
    image_column: str = "image",
    keypoints_column: str = "keypoints",
    thresholds: Sequence[float] = (0.05, 0.1, 0.15),
) -> Result:
    """Measure how many keypoints of one image are matched correctly in the other image of a pair (PCK).

    `pairs` says which rows of `test` are matched and how long the target's box is (see `read_pairs`); keypoints are as
    in `read_keypoints`. Images are not cropped, their shorter side is resized to `image_size`. Models compare only at
    the same number of patches along that side, image_size / patch_size (448 at patch 16 and 392 at patch 14 both give
    28). Distances are in pixels of the stored image. "pictures" shows some pairs with their matches.
    """
    check_image_size(bench.preprocessing.image_size, bench.patch_size)
    check_column(test, image_column, "image_column")
    check_column(test, keypoints_column, "keypoints_column")
    thresholds = sorted(set(thresholds))
    if not thresholds or not thresholds[0] > 0:
        raise Refused(f"thresholds: got {thresholds}, accepted: shares of a side, above 0")
    numbers, sizes = read_pairs(test, pairs), image_sizes(test, image_column)
    readable = _shared_keypoints(numbers, test[keypoints_column], sizes)
    with_points = [pair for pair in readable if len(pair.source_points)]
    if not with_points:
        raise Refused(
            f"keypoints_column: none of the {len(numbers)} pairs has a keypoint in {keypoints_column!r} "
            "seen in both images"
        )
    features = bench.extract(test, image_column, "patches", "correspondence: images", whole=True)
    place = {row: index for index, row in enumerate(features["model"].kept)}
    measured = [pair for pair in with_points if pair.source in place and pair.target in place]
    if not measured:
        raise Refused(f"image_column: none of the {len(numbers)} pairs has two images that can be decoded")
    num_unread = len(numbers) - len(readable) + len(with_points) - len(measured)

    def tokens(name: str, row: int) -> torch.Tensor:
        index = place[row]
        return features[name][index].to(bench.device).unflatten(0, features[name].grids[index])

    drawn, rows = {index * len(measured) // NUM_DRAWN for index in range(NUM_DRAWN)}, undecoded(test)
    distances: dict[str, list[torch.Tensor]] = {name: [] for name in (*features, "chance")}
    pictures = []
    bar = progress_bar(measured, desc="correspondence: pairs", unit="pair", disable=not bench.progress)
    for number, pair in enumerate(bar):
        matched = {"chance": pair.source_points / pair.source_size * pair.target_size}
        for name in features:
            source, target = tokens(name, pair.source), tokens(name, pair.target)
            extents = [torch.tensor([grid.shape[1], grid.shape[0]]) for grid in (source, target)]
            places = (pair.source_points / pair.source_size * extents[0]).to(bench.device)
            matches = find_matches(sample_tokens(source, places), target).cpu().double()
            matched[name] = matches / extents[1] * pair.target_size
        for name, points in matched.items():
            distances[name].append((points - pair.target_points).norm(dim=1) / pair.length)
        if number in drawn:
            first, second = (decode_image(rows[row][image_column]) for row in (pair.source, pair.target))
            hits = distances["model"][-1] <= DRAWN_THRESHOLD
            pictures.append(Matches(first, second, pair.source_points, pair.target_points, matched["model"], hits))
    metrics = [
        {
            "metric": title,
            "threshold": threshold,
            **{name: pool([d <= threshold for d in of_pairs]) for name, of_pairs in distances.items()},
            **_interval([d <= threshold for d in distances["model"]], pool is _over_pairs, bench.seed),
        }
        for title, pool in (("PCK", _over_keypoints), ("PCK, mean over pairs", _over_pairs))
        for threshold in thresholds
    ]
    return Result(
        task="correspondence",
        protocol={
            "features": "final-normed patch tokens, interpolated bilinearly at the source's keypoint",
            "match": "nearest patch by cosine, then the largest cosine of bilinearly interpolated target tokens "
            f"within one patch of its centre, in steps of 1/{REFINEMENT_STEPS} patch",
            "grid": f"whole images, shorter side {bench.preprocessing.image_size} px of {bench.patch_size} px "
            f"patches: {bench.preprocessing.image_size // bench.patch_size} along it",
            "PCK": "share of all keypoints found within threshold times the reference length (recall), and the mean "
            "of the pairs' shares",
            "reference_length": "the longer side of the target's box where the pair has one, else of the target image",
            "thresholds": thresholds,
            "pairs": "every two rows" if pairs is None else "listed",
            "num_pairs": len(measured),
            "num_keypoints": sum(len(pair.source_points) for pair in measured),
            "num_test": len(features["model"]),
            "preprocessing": asdict(bench.whole),
            "baseline_seed": bench.seed,
            "raw_pixels": "the pixels of the patch, normalised as the network's input, flattened",
            "chance": "the keypoint's position in the source image, scaled to the target image",
        },
        skipped_images={"test": len(test) - len(features["model"])},
        skipped_rows={
            "pair with an image that cannot be decoded": num_unread,
            "pair without a keypoint seen in both images": len(readable) - len(with_points),
            "last row, without a partner": len(test) % 2 if pairs is None else 0,
        },
        metrics=metrics,
        pictures={"matches": matches_picture(pictures, f"{DRAWN_THRESHOLD:g} of the reference length")},
    )


def _interval(of_pairs: list[torch.Tensor], by_pair: bool, seed: int) -> dict[str, list[float]]:
    """Return the interval over pairs, of the pairs' mean shares or of the share of all keypoints."""
    counts = np.array([[float(hits.sum()), len(hits)] for hits in of_pairs])
    if by_pair:
        return with_interval(mean_interval(counts[:, 0] / counts[:, 1], seed))
    return with_interval(bootstrap_interval(counts, lambda sums: sums[:, 0] / sums[:, 1], seed))


def _over_keypoints(of_pairs: list[torch.Tensor]) -> float:
    return torch.cat(of_pairs).double().mean().item()


def _over_pairs(of_pairs: list[torch.Tensor]) -> float:
    return torch.stack([of_pair.double().mean() for of_pair in of_pairs]).mean().item()
