"""Video object tracking: masks of the first frame are propagated by patch similarity (DINOv3, section 6.1.5)."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..data.columns import check_column, undecoded
from ..data.masks import check_mask_column, check_mask_fits, read_mask, resize_mask
from ..data.pixels import check_turned_alike, decode_image, read_size
from ..data.sequences import Video, read_videos
from ..data.views import check_image_size
from ..errors import Refused
from ..pipelines.label_propagation import LabelPropagation, Propagation, soft_labels
from ..terminal import progress_bar
from ..visualization.tracks import frame_picture
from .bench import Bench
from .feature_store import Features
from .intervals import bootstrap_interval, with_interval
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

# Largest distance, as a share of the image's diagonal, at which boundary pixels match (DAVIS).
BOUNDARY_TOLERANCE = 0.008
PICTURE_FRAMES = 48


def region_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return J, the intersection over union of two masks [H,W] (bool); 1 where both are empty."""
    union = (prediction | truth).sum()
    return float((prediction & truth).sum() / union) if union else 1.0


def object_boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask [H,W] (bool) next to a pixel outside of it; the image's edge is no boundary."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask, border_value=1)


def contour_accuracy(prediction: np.ndarray, truth: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """Return F, the harmonic mean of precision and recall of the boundaries of two masks [H,W] (bool).

    A boundary pixel matches if the other mask's boundary is at most `tolerance` image diagonals away, rounded up to
    whole pixels, as by dilation with a disc (Perazzi et al., CVPR 2016). 1 if both masks have no boundary, 0 if only
    one has none.
    """
    from scipy.spatial import KDTree

    points = [np.argwhere(object_boundary(mask)) for mask in (prediction, truth)]
    if not all(map(len, points)):
        return float(not any(map(len, points)))
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    precision, recall = (
        (KDTree(there).query(here, distance_upper_bound=radius + 1)[0] <= radius).mean()
        for here, there in (points, points[::-1])
    )
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


# A video's name, its objects' values, its number of measured frames, and each encoder's means [objects, J and F].
Measured = tuple[str, list[int], int, dict[str, np.ndarray]]


def evaluate_tracking(
    bench: Bench,
    test: "Dataset",
    image_column: str = "image",
    mask_column: str = "mask",
    sequence_column: str = "sequence",
    frame_column: str = "frame",
    context_frames: int = 7,
    radius: float = 12,
    top_k: int = 5,
    temperature: float = 0.2,
    ignore_index: int | None = None,
) -> Result:
    """Measure how well masks propagated from the first frames of videos follow the objects: J, F, their mean (DAVIS).

    Mask values other than 0 are objects. Objects of the first frame count in every frame between the first and the
    last, including frames where they are hidden; objects that appear later are background. Baselines are the randomly
    initialised network and raw pixels; "chance" repeats the first frame's mask. "pictures" shows the first video.
    Raises `Refused` for invalid settings, masks or columns, for videos of fewer than three frames or with frames of
    different sizes, and if no video can be measured.
    """
    settings = Propagation(context_frames, radius, top_k, temperature)
    check_image_size(bench.preprocessing.image_size, bench.patch_size)
    check_column(test, image_column, "image_column")
    check_mask_column(test, mask_column)
    videos = read_videos(test, sequence_column, frame_column, least=3)
    _check_sizes(bench.whole.sizes(test, image_column), videos)
    features = bench.extract(test, image_column, "patches", "tracking: images", whole=True)
    frames = _Frames(undecoded(test), image_column, mask_column, features)
    measured: list[Measured] = []
    skipped: Counter[str] = Counter()
    pictures, done = [], 0
    with progress_bar(total=len(test), desc="tracking: frames", unit="frame", disable=not bench.progress) as bar:
        for video in videos:
            first, *others = video.rows
            given = frames.mask(first)
            values = [] if given is None else sorted(set(given.unique().tolist()) - {0, ignore_index})
            # DAVIS measures neither the first frame nor the last.
            others = [row for row in others[:-1] if row in frames.places] if values else []
            scores, shown = [], others[:: math.ceil(len(video.rows) / PICTURE_FRAMES)] if not measured else []
            if not values:
                reason = "first frame cannot be read" if given is None else "first frame without an object"
                skipped[f"test: {reason}"] += len(video.rows)
            elif not measured:
                truth = _number_objects(given, values)
                pictures = [frames.draw(video, first, truth, dict.fromkeys(bench.networks, truth))]
            for row, truth, predictions in _follow(bench, frames, first, others, values, settings):
                bar.update()
                if truth is None:
                    skipped["test: mask cannot be read"] += 1
                    continue
                if ignore_index is not None:
                    predictions = {name: maps * (truth != ignore_index) for name, maps in predictions.items()}
                truth = _number_objects(truth, values)
                scores.append({name: _score(maps, truth, len(values)) for name, maps in predictions.items()})
                if row in shown:
                    pictures.append(
                        frames.draw(video, row, truth, {name: predictions[name] for name in bench.networks})
                    )
            if scores:
                means = {name: np.mean([frame[name] for frame in scores], axis=0) for name in scores[0]}
                measured.append((video.name, values, len(scores), means))
            done += len(video.rows)
            bar.update(done - bar.n)
    if not measured:
        reasons = "; ".join(skipped) or "test: no frame can be read"
        raise Refused(f"data: none of the {len(videos)} videos can be measured ({reasons}), accepted: at least one")
    return _result(bench, settings, ignore_index, len(test) - len(frames.places), measured, skipped, pictures)


def _check_sizes(sizes: list[tuple[int, int] | None], videos: list[Video]) -> None:
    for video in videos:
        of_video = sorted({size for row in video.rows if (size := sizes[row]) is not None})
        if len(of_video) > 1:
            listed = ", ".join(f"{width}x{height}" for height, width in of_video)
            raise Refused(
                f"image_column: the network sees sequence {video.name!r} at {listed}, accepted: frames of one size"
            )


class _Frames:
    """Images, masks and features of a data set's rows; `places` maps each decoded row to the index of its features."""

    def __init__(self, rows: "Dataset", image_column: str, mask_column: str, features: dict[str, Features]):
        self.rows, self.image_column, self.mask_column = rows, image_column, mask_column
        self.features = features
        self.places = {row: place for place, row in enumerate(features["model"].kept)}

    def mask(self, row: int) -> torch.Tensor | None:
        """Return a row's mask [H,W], None if mask or image cannot be read; raises `Refused` if their sizes differ."""
        if row not in self.places:
            return None
        values = self.rows[row]
        try:
            mask = read_mask(values[self.mask_column] or {"path": ""})
        except (OSError, ValueError):
            return None
        check_mask_fits(mask, read_size(values[self.image_column]), row)
        check_turned_alike(values[self.image_column], values[self.mask_column], row, "mask_column")
        return mask

    def tokens(self, name: str, row: int) -> torch.Tensor:
        return self.features[name][self.places[row]]

    def draw(self, video: Video, row: int, truth: torch.Tensor, predictions: dict[str, torch.Tensor]) -> Image.Image:
        caption = f"{video.name}, frame {video.rows.index(row) + 1} of {len(video.rows)}"
        masks = {name: labels.numpy() for name, labels in predictions.items()}
        return frame_picture(decode_image(self.rows[row][self.image_column]), truth.numpy(), masks, caption)


def _number_objects(mask: torch.Tensor, values: list[int]) -> torch.Tensor:
    """Return a mask [H,W] with objects numbered from 1 in the order of `values`; all other pixels are 0."""
    indices = torch.zeros_like(mask)
    for index, value in enumerate(values, start=1):
        indices[mask == value] = index
    return indices


@torch.inference_mode()
def _follow(
    bench: Bench, frames: _Frames, first: int, others: list[int], values: list[int], settings: Propagation
) -> Iterator[tuple[int, torch.Tensor | None, dict[str, torch.Tensor]]]:
    """Yield each row of `others`, its stored mask, and each encoder's predicted map [H,W] of object numbers."""
    if not others:
        return
    given = _number_objects(frames.mask(first), values)
    grid = frames.features["model"].grids[frames.places[first]]
    labels = soft_labels(given, len(values) + 1, grid).to(bench.device)
    carried = {
        name: LabelPropagation(frames.tokens(name, first).to(bench.device), labels, grid, settings)
        for name in frames.features
    }
    for row in others:
        soft_maps = {name: one.step(frames.tokens(name, row).to(bench.device)) for name, one in carried.items()}
        if (truth := frames.mask(row)) is None:
            yield row, None, {}
            continue
        predictions = {
            name: F.interpolate(soft.T.unflatten(1, grid)[None], truth.shape, mode="bilinear")[0].argmax(0).cpu()
            for name, soft in soft_maps.items()
        }
        yield row, truth, predictions | {"chance": resize_mask(given, truth.shape)}


def _score(prediction: torch.Tensor, truth: torch.Tensor, num_objects: int) -> list[tuple[float, float]]:
    """Return J and F of each object, from maps [H,W] of object numbers."""
    prediction, truth = prediction.numpy(), truth.numpy()
    pairs = ((prediction == number, truth == number) for number in range(1, num_objects + 1))
    return [(region_similarity(*pair), contour_accuracy(*pair)) for pair in pairs]


def _result(
    bench: Bench,
    settings: Propagation,
    ignore_index: int | None,
    skipped_images: int,
    measured: list[Measured],
    skipped: Counter,
    pictures: list[Image.Image],
) -> Result:
    names = list(measured[0][3])
    by_object = {name: np.concatenate([means[name] for *_, means in measured]) for name in names}
    region, boundary = ({name: float(by_object[name][:, part].mean()) for name in names} for part in (0, 1))
    # Objects of one video are not independent: videos are drawn.
    of_videos = np.array([[*means["model"].sum(0), len(means["model"])] for *_, means in measured])
    both = {name: (region[name] + boundary[name]) / 2 for name in names}
    return Result(
        task="tracking",
        protocol={
            "features": "final-normed patch tokens, L2-normalised, cosine",
            "labels": "mean of the nearest patches' labels, weighted by softmax(cosine / temperature)",
            "context": f"the first frame, whose mask is given, and the last "
            f"{settings.context_frames} frames as labelled",
            **asdict(settings),
            "prediction": "labels upsampled bilinearly to the mask's own size, the largest wins",
            "measured_frames": "all but the first and the last of each video, as DAVIS; mean over the frames of an "
            "object, then over objects",
            "objects": "values of the first frame's mask but 0; J and F are 1 where one has no pixel, "
            "predicted or true",
            "boundary": f"matched within {BOUNDARY_TOLERANCE} of the diagonal, rounded up to pixels",
            "ignore_index": ignore_index,
            "ignored_pixels": "background in the first frame, in the truth and in what is predicted",
            "test_images": "whole, shorter side resized to image_size, both sides to whole patches",
            "num_test": len(measured),
            "num_objects": len(by_object["model"]),
            "num_frames": sum(frames for _, _, frames, _ in measured),
            "preprocessing": asdict(bench.preprocessing),
            "baseline_seed": bench.seed,
            "raw_pixels": "the pixels of the patch, normalised as the network's input, flattened",
            "chance": "the first frame's mask kept still",
        },
        skipped_images={"test": skipped_images},
        skipped_rows=dict(skipped),
        metrics=[
            {"metric": title, **values} | with_interval(bootstrap_interval(of_videos, metric, bench.seed))
            for title, values, metric in (
                ("J&F", both, lambda sums: (sums[:, 0] + sums[:, 1]) / 2 / sums[:, 2]),
                ("J", region, lambda sums: sums[:, 0] / sums[:, 2]),
                ("F", boundary, lambda sums: sums[:, 1] / sums[:, 2]),
            )
        ],
        pictures={"tracked": pictures},
        details={
            "per_object": [
                {"sequence": name, "object": value, "frames": frames}
                | {encoder: float(means[encoder][index].mean()) for encoder in names}
                for name, values, frames, means in measured
                for index, value in enumerate(values)
            ],
        },
    )
