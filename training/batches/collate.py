"""Training batches: rows are decoded, cropped and masked, depending only on seed, step and position in the batch."""

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from dinov3_hf.data.columns import find_image_column
from dinov3_hf.data.mixing import MixedRows
from dinov3_hf.data.pixels import BadImage, decode_image
from dinov3_hf.data.streams import StreamError

from ..arguments import CropArguments, DataArguments, GramArguments
from ..masking import draw_masks
from ..source_arguments import SourceArguments
from .augment import MultiCrop


if TYPE_CHECKING:
    import datasets

# Constants that give crops and crop sizes independent random streams under the same seed.
CROPS, CROP_SIZES = 0xC209, 0x512E
# Prefix of the masks of one of several grids, followed by its patch size.
MASKS = "masks_"
# The share of bad images is checked after this many images.
MIN_READ = 100


class StreamBatches(IterableDataset):
    """Endless batches of one process from `first_step` on; worker w of W makes every W-th batch, starting at the w-th.

    Subclasses implement `read` (a row to an example) and `make_batch` (examples to tensors). Every batch also contains
    step, epoch, num_images and, counted since the worker's last batch, images_read, bad_images and bad_examples (one
    line each). A row that cannot be used is counted and replaced by the next one. Raises `StreamError` if more than
    `max_bad_images` cannot be used.
    """

    def __init__(
        self,
        rows: "datasets.Dataset | datasets.IterableDataset | list[datasets.Dataset | datasets.IterableDataset]",
        data: SourceArguments,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
        first_epoch: int = 0,
    ):
        self.sources = rows if isinstance(rows, list) else [rows]
        self.data, self.seed = data, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.first_step, self.first_epoch = first_step, first_epoch
        self.batches, self.read_images, self.bad = 0, 0, 0
        self.bad_examples: list[str] = []
        self.stream: MixedRows | None = None
        self.resumed: dict | None = None

    def read(self, row: dict, source: int) -> object:
        """Return the example in a row of a source; raises `BadImage` if the row cannot be used."""
        raise NotImplementedError

    def make_batch(self, examples: list, places: range, step: int) -> dict:
        """Return the tensors of one batch; its examples have the positions `places` in the global batch of `step`."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """Return the position of the next batch of this worker."""
        stream = self.stream.state_dict() if self.stream is not None else self.resumed
        return {"batches": self.batches, "read": self.read_images, "bad": self.bad, "stream": stream}

    def load_state_dict(self, state: dict) -> None:
        self.batches, self.read_images, self.bad, self.resumed = (
            state[name] for name in ("batches", "read", "bad", "stream")
        )

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        reader, readers = self.rank * workers + number, self.world_size * workers
        weights = self.data.data_weights or [1.0] * len(self.sources)
        block, shares = self.data.shuffle_block, self.data.data_homogeneous
        rows = self.stream = MixedRows(self.sources, weights, block, self.seed, reader, readers, shares)
        for stream in rows.streams:
            stream.epoch = self.first_epoch
        if self.resumed is not None:
            rows.load_state_dict(self.resumed)
        for index in itertools.count(self.batches):
            step, before = self.first_step + index * workers + number, (self.read_images, self.bad)
            self.bad_examples = []
            places = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            examples = [self._next(rows, source) for source in rows.source_of(step, places)]
            batch = self.make_batch(examples, places, step)
            self.batches = index + 1
            counts = {"images_read": self.read_images - before[0], "bad_images": self.bad - before[1]}
            epoch = max(stream.epoch for stream in rows.streams)
            about = {"step": step, "epoch": epoch, "num_images": len(places), "bad_examples": self.bad_examples}
            yield {**batch, **counts, **about}

    def _next(self, rows: MixedRows, source: int) -> object:
        """Return the example in the next usable row of one source."""
        while True:
            row = rows.next_row(source)
            self.read_images += 1
            try:
                return self.read(row, source)
            except BadImage as error:
                self.bad += 1
                paths = [value["path"] for value in row.values() if isinstance(value, dict) and value.get("path")]
                self.bad_examples.append(f"{paths[0] if paths else 'an image'}: {error}")
            if self.read_images >= MIN_READ and self.bad > self.data.max_bad_images * self.read_images:
                raise StreamError(
                    f"max_bad_images: {self.bad} of {self.read_images} images could not be used, accepted: at most a "
                    f"share of {self.data.max_bad_images}; the last: {self.bad_examples[-1]}"
                )


class TrainingBatches(StreamBatches):
    """Batches of self-distillation.

    A batch contains global_crops [2, B, 3, S, S], local_crops [L, B, 3, s, s] (absent if L is 0), gram_crops
    [2, B, 3, T, T] (from gram_start_step on, if the Gram teacher has separate crops), masks [2, B, P] bool.
    """

    def __init__(
        self,
        rows: "datasets.Dataset | datasets.IterableDataset | list[datasets.Dataset | datasets.IterableDataset]",
        data: DataArguments,
        crops: CropArguments,
        batch_size: int,
        seed: int,
        patch_size: int,
        rank: int = 0,
        world_size: int = 1,
        gram: GramArguments | None = None,
        first_step: int = 0,
        first_epoch: int = 0,
    ):
        super().__init__(rows, data, batch_size, seed, rank, world_size, first_step, first_epoch)
        gram = gram or GramArguments()
        crops.check_patches(patch_size, gram.gram_crop_size)
        self.crops = crops
        self.image_columns = [find_image_column(source, data.image_column) for source in self.sources]
        self.patch_size, self.gram_start = patch_size, gram.gram_start_step
        self.has_gram_crops = gram.gram_teacher not in ("none", "ema")
        self.multi_crops = [
            MultiCrop(dataclasses.replace(crops, global_crop_size=sizes[0], local_crop_size=sizes[1]), sizes[2])
            for sizes in crops.sizes(gram.gram_crop_size)
        ]

    def read(self, row: dict, source: int) -> torch.Tensor:
        return decode_image(row[self.image_columns[source]])

    def make_batch(self, examples: list[torch.Tensor], places: range, step: int) -> dict:
        generators = [np.random.default_rng([self.seed, CROPS, step, place]) for place in places]
        multi_crop = self._multi_crop(step)
        global_crops, local_crops, gram_crops = multi_crop(examples, generators)
        own = {"local_crops": local_crops, "gram_crops": gram_crops}
        batch = {"global_crops": global_crops} | self.masks(global_crops, places, step)
        return batch | {name: pixels for name, pixels in own.items() if pixels is not None}

    def masks(self, global_crops: torch.Tensor, places: range, step: int) -> dict[str, torch.Tensor]:
        """Return the masks of a batch by name."""
        return {"masks": self.draw_masks(global_crops, places, step, self.patch_size)}

    def draw_masks(self, global_crops: torch.Tensor, places: range, step: int, patch_size: int) -> torch.Tensor:
        """Draw masks [2, B, P] on the grid of a patch size."""
        masks = draw_masks(
            (global_crops.shape[-2] // patch_size, global_crops.shape[-1] // patch_size),
            len(global_crops),
            self.batch_size * self.world_size,
            step,
            self.seed,
            self.crops.mask_probability,
            tuple(self.crops.mask_ratio),
            places.start,
            places.stop,
        )
        return torch.from_numpy(masks)

    def _multi_crop(self, step: int) -> MultiCrop:
        """Return the multi-crop of a step, with one of the sets of crop sizes, the same on every process."""
        sets, chosen = self.multi_crops, 0
        if len(sets) > 1:
            shares = np.array(self.crops.crop_size_probabilities or [1.0] * len(sets))
            chosen = np.random.default_rng([self.seed, CROP_SIZES, step]).choice(len(sets), p=shares / shares.sum())
        if self.has_gram_crops and step >= self.gram_start:
            return sets[chosen]
        return MultiCrop(sets[chosen].crops)


class DistillationBatches(TrainingBatches):
    """Batches of distillation, with masks_S [2, B, P_S] for each patch size S of a student instead of masks.

    The masks of each grid are drawn independently, so that a student's masks do not depend on the other students. With
    `masked` False, all masks are true, so that all patches are compared. Other arguments as for `TrainingBatches`.
    """

    def __init__(self, *place: Any, patch_sizes: list[int], masked: bool, **options: Any):
        super().__init__(*place, **options)
        self.patch_sizes, self.masked = patch_sizes, masked

    def masks(self, global_crops: torch.Tensor, places: range, step: int) -> dict[str, torch.Tensor]:
        masks = {size: self.draw_masks(global_crops, places, step, size) for size in self.patch_sizes}
        return {MASKS + str(size): mask if self.masked else torch.ones_like(mask) for size, mask in masks.items()}


def one_thread(worker: int) -> None:
    """Limit a worker process to one thread, because the workers themselves run in parallel."""
    torch.set_num_threads(1)


def make_loader(batches: StreamBatches, num_workers: int) -> StatefulDataLoader:
    """Return the loader of a stream's batches; its `state_dict` resumes exactly if `readers` is the same.

    `loader.readers` is [number of processes, workers per process, images per batch].
    """
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function that torch 2.15 deprecates, without effect here.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(
            batches,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=2 if num_workers else None,
            worker_init_fn=one_thread,
            multiprocessing_context="spawn" if num_workers else None,
            pin_memory=torch.cuda.is_available(),
        )
    loader.readers = [batches.world_size, num_workers, batches.batch_size]
    return loader
