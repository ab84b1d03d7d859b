"""Training batches: rows decoded, cropped and masked, as a function of (seed, step, place in the global batch)."""

import dataclasses
import itertools
import warnings

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
from .augment import MultiCrop


# Streams of random numbers of crops and of crop sizes, apart from those of masks under the same seed.
CROPS, CROP_SIZES = 0xC209, 0x512E
# What masks of one of several grids are called, before its patch size.
MASKS = "masks_"
# Share of bad images is judged from this many images read on.
MIN_READ = 100


class StreamBatches(IterableDataset):
    """Endless batches of one process from `first_step` on; worker w of W makes every W-th from the w-th on.

    A subclass says what a row gives (`read`) and what a batch of that holds (`make_batch`). Every batch has besides
    step, epoch, num_images, and since the worker's last batch images_read, bad_images and bad_examples (a line each). A
    row that cannot be used is counted and the next one takes its place. Raises `StreamError` beyond `max_bad_images`.
    """

    def __init__(
        self,
        rows,
        data: DataArguments,
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
        self.stream, self.resumed = None, None

    def read(self, row: dict, source: int):
        """Return what a row of a source gives to a batch; raises `BadImage` where it gives nothing."""
        raise NotImplementedError

    def make_batch(self, examples: list, places: range, step: int) -> dict:
        """Return the tensors of one batch, whose examples fill `places` in the global batch of `step`."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """Return the place of the next batch of this worker."""
        stream = self.stream.state_dict() if self.stream is not None else self.resumed
        return {"batches": self.batches, "read": self.read_images, "bad": self.bad, "stream": stream}

    def load_state_dict(self, state: dict) -> None:
        self.batches, self.read_images, self.bad, self.resumed = (
            state[name] for name in ("batches", "read", "bad", "stream")
        )

    def __iter__(self):
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        reader, readers = self.rank * workers + number, self.world_size * workers
        weights = self.data.data_weights or [1.0] * len(self.sources)
        block, share = self.data.shuffle_block, self.data.homogeneous_share
        self.stream = MixedRows(self.sources, weights, block, self.seed, reader, readers, share)
        for stream in self.stream.streams:
            stream.epoch = self.first_epoch
        if self.resumed is not None:
            self.stream.load_state_dict(self.resumed)
        for index in itertools.count(self.batches):
            step, before = self.first_step + index * workers + number, (self.read_images, self.bad)
            self.bad_examples = []
            places = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            examples = [self._next(source) for source in self.stream.source_of(step, places)]
            batch = self.make_batch(examples, places, step)
            self.batches = index + 1
            counts = {"images_read": self.read_images - before[0], "bad_images": self.bad - before[1]}
            epoch = max(stream.epoch for stream in self.stream.streams)
            about = {"step": step, "epoch": epoch, "num_images": len(places), "bad_examples": self.bad_examples}
            yield {**batch, **counts, **about}

    def _next(self, source: int):
        """Return what the next usable row of one source gives."""
        while True:
            row = self.stream.next_row(source)
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

    A batch holds global_crops [2, B, 3, S, S], local_crops [L, B, 3, s, s] (absent if L is 0), gram_crops
    [2, B, 3, T, T] (from gram_start_step on, if the Gram teacher has crops of its own), masks [2, B, P] bool.
    """

    def __init__(
        self,
        rows,
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
        """Draw masks [2, B, P] for the grid of a patch size."""
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
        """Return the crops of a step: one of the sets of sizes, the same on every process."""
        sets, chosen = self.multi_crops, 0
        if len(sets) > 1:
            shares = np.array(self.crops.crop_size_probabilities or [1.0] * len(sets))
            chosen = np.random.default_rng([self.seed, CROP_SIZES, step]).choice(len(sets), p=shares / shares.sum())
        if self.has_gram_crops and step >= self.gram_start:
            return sets[chosen]
        return MultiCrop(sets[chosen].crops)


class DistillationBatches(TrainingBatches):
    """Batches of distillation: masks_S [2, B, P_S] for each patch size S of a student, in place of masks.

    The masks of a grid are drawn by themselves, whatever other grids there are: a student's do not depend on its
    company. With `masked` False they are true everywhere: all patches are compared.
    """

    def __init__(self, *place, patch_sizes: list[int], masked: bool, **options):
        super().__init__(*place, **options)
        self.patch_sizes, self.masked = patch_sizes, masked

    def masks(self, global_crops: torch.Tensor, places: range, step: int) -> dict[str, torch.Tensor]:
        masks = {size: self.draw_masks(global_crops, places, step, size) for size in self.patch_sizes}
        return {MASKS + str(size): mask if self.masked else torch.ones_like(mask) for size, mask in masks.items()}


def one_thread(worker: int) -> None:
    """Keep a worker process to one core: workers are the parallelism."""
    torch.set_num_threads(1)


def make_loader(batches: StreamBatches, num_workers: int) -> StatefulDataLoader:
    """Return the loader of a stream's batches; its `state_dict` resumes exactly with the same `readers`.

    `loader.readers` names who shares the data: processes, workers of each, images a batch.
    """
    with warnings.catch_warnings():
        # torchdata 0.11 calls what torch 2.15 deprecates; it changes nothing here.
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
