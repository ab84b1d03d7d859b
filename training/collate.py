"""Training batches: rows decoded, cropped and masked, as a function of (seed, step, place in the global batch)."""

import dataclasses
import itertools
import warnings

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from dinov3_hf.data.decoding import BadImage, decode_image
from dinov3_hf.data.mixing import MixedRows
from dinov3_hf.data.streams import StreamError, find_image_column

from .arguments import CropArguments, DataArguments, GramArguments
from .augment import MultiCrop
from .masking import draw_masks


# Streams of random numbers of crops and of crop sizes, apart from those of masks under the same seed.
CROPS, CROP_SIZES = 0xC209, 0x512E
# Share of bad images is judged from this many images read on.
MIN_READ = 100


class TrainingBatches(IterableDataset):
    """Endless batches of one process from `first_step` on; worker w of W makes every W-th from the w-th on.

    A batch holds global_crops [2, B, 3, S, S], local_crops [L, B, 3, s, s] (absent if L is 0), gram_crops
    [2, B, 3, T, T] (from gram_start_step on, if the Gram teacher has crops of its own), masks [2, B, P] bool,
    step, epoch, and since the worker's last batch images_read, bad_images and bad_examples (a line each). An image that
    cannot be decoded is counted and the next row takes its place. Raises `StreamError` beyond `max_bad_images`.
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
        gram = gram or GramArguments()
        crops.check_patches(patch_size, gram.gram_crop_size)
        self.sources = rows if isinstance(rows, list) else [rows]
        self.data, self.crops, self.seed = data, crops, seed
        self.image_columns = [find_image_column(source, data.image_column) for source in self.sources]
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.patch_size, self.gram_start = patch_size, gram.gram_start_step
        self.has_gram_crops = gram.gram_teacher not in ("none", "ema")
        self.multi_crops = [
            MultiCrop(dataclasses.replace(crops, global_crop_size=sizes[0], local_crop_size=sizes[1]), sizes[2])
            for sizes in crops.sizes(gram.gram_crop_size)
        ]
        self.first_step, self.first_epoch = first_step, first_epoch
        self.batches, self.read, self.bad = 0, 0, 0
        self.stream, self.resumed = None, None

    def state_dict(self) -> dict:
        """Return the place of the next batch of this worker."""
        stream = self.stream.state_dict() if self.stream is not None else self.resumed
        return {"batches": self.batches, "read": self.read, "bad": self.bad, "stream": stream}

    def load_state_dict(self, state: dict) -> None:
        self.batches, self.read, self.bad, self.resumed = (
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
            step, before = self.first_step + index * workers + number, (self.read, self.bad)
            self.examples = []
            places = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            images = [self._image(source) for source in self.stream.source_of(step, places)]
            batch = self._batch(images, places, step)
            self.batches = index + 1
            counts = {"images_read": self.read - before[0], "bad_images": self.bad - before[1]}
            epoch = max(stream.epoch for stream in self.stream.streams)
            yield {**batch, **counts, "bad_examples": self.examples, "epoch": epoch}

    def _image(self, source: int) -> torch.Tensor:
        """Return the next image of one source that can be decoded."""
        while True:
            value = self.stream.next_row(source)[self.image_columns[source]]
            self.read += 1
            try:
                return decode_image(value)
            except BadImage as error:
                self.bad += 1
                path = value.get("path") if isinstance(value, dict) else None
                self.examples.append(f"{path or 'an image'}: {error}")
            if self.read >= MIN_READ and self.bad > self.data.max_bad_images * self.read:
                raise StreamError(
                    f"max_bad_images: {self.bad} of {self.read} images could not be decoded, accepted: at most a share "
                    f"of {self.data.max_bad_images}; the last: {self.examples[-1]}"
                )

    def _batch(self, images: list[torch.Tensor], places: range, step: int) -> dict:
        generators = [np.random.default_rng([self.seed, CROPS, step, place]) for place in places]
        multi_crop = self._multi_crop(step)
        global_crops, local_crops, gram_crops = multi_crop(images, generators)
        masks = draw_masks(
            (global_crops.shape[-2] // self.patch_size, global_crops.shape[-1] // self.patch_size),
            len(global_crops),
            self.batch_size * self.world_size,
            step,
            self.seed,
            self.crops.mask_probability,
            tuple(self.crops.mask_ratio),
            places.start,
            places.stop,
        )
        batch = {"global_crops": global_crops, "masks": torch.from_numpy(masks), "step": step}
        own = {"local_crops": local_crops, "gram_crops": gram_crops}
        return batch | {name: pixels for name, pixels in own.items() if pixels is not None}

    def _multi_crop(self, step: int) -> MultiCrop:
        """Return the crops of a step: one of the sets of sizes, the same on every process."""
        sets, chosen = self.multi_crops, 0
        if len(sets) > 1:
            shares = np.array(self.crops.crop_size_probabilities or [1.0] * len(sets))
            chosen = np.random.default_rng([self.seed, CROP_SIZES, step]).choice(len(sets), p=shares / shares.sum())
        if self.has_gram_crops and step >= self.gram_start:
            return sets[chosen]
        return MultiCrop(sets[chosen].crops)


def one_thread(worker: int) -> None:
    """Keep a worker process to one core: workers are the parallelism."""
    torch.set_num_threads(1)


def make_loader(
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
) -> StatefulDataLoader:
    """Return the loader of `TrainingBatches`; its `state_dict` resumes exactly with the same `readers`.

    `loader.readers` names who shares the data: processes, workers of each, images a batch.
    """
    batches = TrainingBatches(
        rows, data, crops, batch_size, seed, patch_size, rank, world_size, gram, first_step, first_epoch
    )
    workers = data.num_workers
    with warnings.catch_warnings():
        # torchdata 0.11 calls what torch 2.15 deprecates; it changes nothing here.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            worker_init_fn=one_thread,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
    loader.readers = [world_size, workers, batch_size]
    return loader
