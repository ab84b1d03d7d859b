"""A linear head on patch tokens that predicts a value for every pixel: shared by segmentation and depth."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..data.ahead import StepReader
from ..data.columns import check_column, undecoded
from ..data.masks import check_mask_fits
from ..data.pixels import BadImage, check_turned_alike, decode_image, read_size
from ..errors import Refused
from ..terminal import progress_bar
from .bench import Bench
from .feature_store import Extractor, Features
from .probe import step_generator, train_probe


if TYPE_CHECKING:
    from datasets import Dataset

# Crops of one size: tokens [b,h,w,D] or outputs [b,h,w,C], and the true map [b,H,W] of the pixels that they cover.
Crops = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class HeadTraining:
    """Training settings of a dense head; `crop` is in pixels, `scales` the range of random resizing."""

    batch_norm: bool
    steps: int
    crop: int
    batch_size: int
    lr: float
    weight_decay: float
    augment: bool
    scales: tuple[float, float] = (1.0, 1.0)

    def check(self, patch_size: int) -> None:
        """Raise `Refused` for counts below 1, and for a crop that is no multiple of the patch size."""
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise Refused(f"{name}: got {getattr(self, name)}, accepted: a whole number of at least 1")
        if self.crop < patch_size or self.crop % patch_size:
            raise Refused(f"crop: got {self.crop}, accepted: a multiple of the model's patch size ({patch_size})")

    def describe(self) -> dict:
        """Return these settings as entries of a result's protocol."""
        crops = "random crops of the patch grids of whole images, computed once"
        if self.augment:
            low, high = self.scales
            resized = f"resized by {low:g} to {high:g}, " if low < high else ""
            crops = f"images {resized}cropped and flipped at random, the network run at every step"
        return {
            "features": "final-normed patch tokens",
            "head": "batch norm, linear layer" if self.batch_norm else "linear layer",
            "optimizer": f"AdamW, one-cycle up to lr {self.lr:g}, weight decay {self.weight_decay:g}",
            "steps": self.steps,
            "batch_size": self.batch_size,
            "crop": self.crop,
            "train_crops": f"{crops}; images smaller than a crop whole",
            "test_images": "whole: shorter side resized to image_size, both sides to whole patches",
        }


@dataclass
class DenseSplit:
    """The rows of a data set that have an image and a true map [H,W] (of classes or depths), by row number.

    Maps are kept in memory, features in the bench's store.
    """

    title: str
    rows: "Dataset"
    image_column: str
    map_field: str
    maps: dict[int, np.ndarray] = field(default_factory=dict)
    without_truth: set[int] = field(default_factory=set)
    features: dict[str, Features] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise Refused(f"data: got no rows for {self.title}, accepted: at least one image")
        check_column(self.rows, self.image_column, "image_column")

    def read_maps(
        self,
        map_column: str,
        read: Callable[[dict], np.ndarray],
        counts: Callable[[np.ndarray], bool],
        progress: bool,
        convert: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    ) -> None:
        """Read the maps; skip those that cannot be read, and those without a valid pixel (`counts` says so).

        `convert` is applied to each map that was read. Raises `Refused` for a map whose size differs from its image's,
        and if no map remains.
        """
        self.rows = undecoded(self.rows)
        columns = list({self.image_column, map_column})
        for number, row in enumerate(_bar(self.rows.select_columns(columns), f"{self.title} maps", progress)):
            try:
                size, values = read_size(row[self.image_column]), read(row[map_column] or {"path": ""})
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                # What Pillow raises on broken files.
                continue
            check_mask_fits(values, size, number, self.map_field)
            check_turned_alike(row[self.image_column], row[map_column], number, self.map_field)
            values = convert(values)
            if counts(values):
                self.maps[number] = values
            else:
                self.without_truth.add(number)
        self._check_any()

    def find_features(self, bench: Bench, compute: bool = True) -> None:
        """Compute the features of whole images, or only check which can be decoded; skip rows that cannot."""
        title = f"{self.title} images"
        if compute:
            self.features = bench.extract(self.rows, self.image_column, "patches", title, whole=True)
            self.kept = self.features["model"].kept
        else:
            rows = self.rows.select_columns([self.image_column])
            images = (row[self.image_column] for row in _bar(rows, title, bench.progress))
            self.kept = [number for number, value in enumerate(images) if _can_be_decoded(value)]
        self.maps = {row: self.maps[row] for row in self.kept if row in self.maps}
        self._check_any()

    def _check_any(self) -> None:
        if not self.maps:
            raise Refused(
                f"{self.map_field}: none of the {len(self.rows)} {self.title} rows has an image and a map that can be "
                "read, accepted: at least one, with a pixel that counts"
            )

    def skipped_rows(self) -> dict[str, int]:
        """Count, by reason, the skipped rows whose image can be decoded."""
        empty = len(self.without_truth.intersection(self.kept))
        unreadable = len(self.kept) - len(self.maps) - empty
        counts = {"map cannot be read": unreadable, "no pixel of the map counts": empty}
        return {f"{self.title}: {reason}": number for reason, number in counts.items() if number}

    def image(self, row: int) -> torch.Tensor:
        """Decode a row's image, uint8 [3,H,W]."""
        return decode_image(self.rows[row][self.image_column])


def skipped(train: DenseSplit, test: DenseSplit) -> dict:
    """Return the fields of a `Result` that count skipped images and rows."""
    images = {name: len(split.rows) - len(split.kept) for name, split in (("train", train), ("test", test))}
    return {"skipped_images": images, "skipped_rows": train.skipped_rows() | test.skipped_rows()}


def _bar(values: Collection, title: str, progress: bool) -> tqdm:
    return progress_bar(values, desc=title, total=len(values), unit="image", disable=not progress)


def _can_be_decoded(value: dict | None) -> bool:
    try:
        decode_image(value)
    except BadImage:
        return False
    return True


def nearest_window(
    values: np.ndarray, size: tuple[int, int], corner: tuple[int, int], window: tuple[int, int]
) -> np.ndarray:
    """Crop `window` (height, width) at `corner` (top, left) from a map [H,W] resized to `size` by the nearest pixel.

    The same as `resize_mask` and a crop, but for any type, and resizing only the pixels inside the crop.
    """
    picks = [
        (2 * np.arange(start, start + length) + 1) * have // (2 * wanted)
        for have, wanted, start, length in zip(values.shape, size, corner, window, strict=True)
    ]
    return values[np.ix_(*picks)]


@dataclass(frozen=True)
class Draw:
    """A row drawn for a training step, and random numbers in 0..1 for the augmentation of its image."""

    row: int
    scale: float
    top: float
    left: float
    flip: float

    def corner(self, size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
        """Return the top left corner of a window (height, width) within `size`; all positions are equally likely."""
        return int(self.top * (size[0] - window[0] + 1)), int(self.left * (size[1] - window[1] + 1))


def draw_rows(rows: list[int], batch_size: int, seed: int, step: int) -> list[Draw]:
    """Draw the rows of a training step; the draw depends only on `seed` and `step`."""
    generator = step_generator(seed, step)
    chosen = torch.randint(len(rows), (batch_size,), generator=generator).tolist()
    numbers = torch.rand(batch_size, 4, generator=generator, dtype=torch.float64).tolist()
    return [Draw(rows[index], *four) for index, four in zip(chosen, numbers, strict=True)]


def stack_by_shape(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> list[Crops]:
    """Stack pairs of an input and its true map [H,W] into one batch per shape (images smaller than a crop differ)."""
    groups: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for pair in pairs:
        groups.setdefault(pair[1].shape, []).append(pair)
    batches = (zip(*group, strict=True) for group in groups.values())
    return [(torch.stack(inputs), torch.stack(truths)) for inputs, truths in batches]


def stored_crops(bench: Bench, split: DenseSplit, name: str, training: HeadTraining) -> Callable[[int], list[Crops]]:
    """Return the function from a step's number to its crops of features that were computed beforehand."""
    features, patch, rows = split.features[name], bench.patch_size, list(split.maps)
    places = {row: place for place, row in enumerate(split.kept)}

    def cut(drawn: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        place = places[drawn.row]
        rows, columns = grid = features.grids[place]
        window = min(training.crop // patch, rows), min(training.crop // patch, columns)
        top, left = corner = drawn.corner(grid, window)
        tokens = features[place].unflatten(0, grid)[top : top + window[0], left : left + window[1]]
        size, start, extent = ((patch * y, patch * x) for y, x in (grid, corner, window))
        return tokens, torch.from_numpy(nearest_window(split.maps[drawn.row], size, start, extent))

    return lambda step: stack_by_shape(map(cut, draw_rows(rows, training.batch_size, bench.seed, step)))


def augmented_crops(
    bench: Bench, split: DenseSplit, extractor: Extractor, training: HeadTraining
) -> Callable[[int], list[Crops]]:
    """Return the function from a step's number to its crops of augmented images, on which it runs the network."""
    rows, (low, high) = list(split.maps), training.scales

    def cut(value: dict | None, drawn: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        image_size = round(bench.preprocessing.image_size * (low + drawn.scale * (high - low)))
        image = replace(bench.whole, image_size=image_size).image(decode_image(value))
        size = tuple(image.shape[1:])
        window = tuple(min(training.crop, length) for length in size)
        top, left = drawn.corner(size, window)
        image = image[:, top : top + window[0], left : left + window[1]]
        truth = torch.from_numpy(nearest_window(split.maps[drawn.row], size, (top, left), window))
        return (image.flip(-1), truth.flip(-1)) if drawn.flip < 0.5 else (image, truth)

    def crops_of(step: int) -> list[tuple[dict | None, Draw]]:
        drawn = draw_rows(rows, training.batch_size, bench.seed, step)
        return [(split.rows[one.row][split.image_column], one) for one in drawn]

    images_at = StepReader(cut, crops_of, training.steps)

    def crops(step: int) -> list[Crops]:
        groups = []
        for images, truth in stack_by_shape(images_at(step)):
            tokens = extractor.function(bench.whole.normalize(images.to(bench.device)))
            # A copy, because autograd takes nothing that inference mode made.
            groups.append((tokens.clone().unflatten(1, extractor.grid(*images.shape[-2:])), truth))
        return groups

    return crops


def linear_head(width: int, channels: int, batch_norm: bool, seed: int) -> nn.Sequential:
    """Build the head from tokens [N,D] to outputs [N,C]."""
    linear = nn.utils.skip_init(nn.Linear, width, channels)
    nn.init.normal_(linear.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width) if batch_norm else nn.Identity(), linear)


def train_heads(
    bench: Bench,
    split: DenseSplit,
    channels: int,
    loss: Callable[[list[Crops]], torch.Tensor],
    training: HeadTraining,
    about: tuple,
) -> Iterator[tuple[str, nn.Sequential]]:
    """Train a head for each encoder, one after another, and yield the encoder's name and the head.

    `loss` takes the outputs and the true maps of all crops of a step. `about` lists everything that decides the loss:
    it identifies the checkpoint from which an interrupted training resumes.
    """
    for name, extractor in bench.extractors("patches").items():
        if training.augment:
            crops_at = augmented_crops(bench, split, extractor, training)
        else:
            crops_at = stored_crops(bench, split, name, training)
        head = linear_head(extractor.width, channels, training.batch_norm, bench.seed).to(bench.device)

        def loss_at(
            step: int, crops_at: Callable[[int], list[Crops]] = crops_at, head: nn.Sequential = head
        ) -> torch.Tensor:
            inputs, truths = zip(*crops_at(step), strict=True)
            # Batch norm sees the tokens of all crops together, whatever their sizes.
            outputs = head(torch.cat([tokens.flatten(0, 2) for tokens in inputs]).to(bench.device))
            shapes = [tokens.shape[:3] for tokens in inputs]
            parts = outputs.split([shape.numel() for shape in shapes])
            return loss(
                [
                    (part.unflatten(0, shape), truth.to(bench.device))
                    for part, shape, truth in zip(parts, shapes, truths, strict=True)
                ]
            )

        train_probe(
            head,
            loss_at,
            torch.optim.AdamW(head.parameters(), training.lr, weight_decay=training.weight_decay),
            training.steps,
            checkpoint=bench.checkpoint(*about, name, split.rows._fingerprint, list(split.maps), asdict(training)),
            description=f"{split.title}: head of {name}",
            progress=bench.progress,
        )
        yield name, head


def head_outputs(
    bench: Bench, split: DenseSplit, name: str, head: nn.Sequential
) -> Iterator[tuple[int, torch.Tensor, np.ndarray]]:
    """Yield every row number of a split with the head's outputs [1,h,w,C] for its whole image, and its true map."""
    features = split.features[name]
    for place, row in enumerate(_bar(split.kept, f"{split.title}: {name}", bench.progress)):
        if row in split.maps:
            with torch.inference_mode():
                outputs = head(features[place].to(bench.device)).unflatten(0, (1, *features.grids[place]))
            yield row, outputs, split.maps[row]


@lru_cache(maxsize=64)
def bilinear_matrix(length: int, wanted: int, device: torch.device) -> torch.Tensor:
    """Return the matrix [wanted,length] of linear interpolation between pixel centres, constant at the edges."""
    places = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * length / wanted - 0.5).clamp(0, length - 1)
    return (1 - (places[:, None] - torch.arange(length)).abs()).clamp(min=0).float().to(device)


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Enlarge maps [B,C,h,w] bilinearly to `size`, as `torch.nn.functional.interpolate` does.

    For maps as small as patch grids two matrix products are faster, above all in the backward pass, and deterministic.
    """
    rows, columns = (bilinear_matrix(a, b, maps.device) for a, b in zip(maps.shape[-2:], size, strict=True))
    return rows @ (maps @ columns.T)


def rows_to_draw(split: DenseSplit, number: int = 5) -> list[int]:
    """Choose at most `number` evenly spaced rows to show in a picture."""
    rows = list(split.maps)
    return [rows[round(place)] for place in np.linspace(0, len(rows) - 1, min(number, len(rows)))]
