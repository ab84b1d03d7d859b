"""How many images per second does one core decode, crop and augment, compared with torchvision on PIL images?

Both make the crops of a training step (two global, eight local, every augmentation) from the same JPEG files, in one
thread, in interleaved rounds whose order changes, so that other load on the machine slows them equally; medians are
printed. Files are rendered scenes unless a folder of JPEG files is given; photographs take longer to decode.

    python benchmarks/input_pipeline.py --images FOLDER
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from dinov3_hf.data.pixels import decode_image
from dinov3_hf.data.scenes import render_scene
from dinov3_hf.training.arguments import CropArguments
from dinov3_hf.training.batches.augment import MultiCrop


JITTER_ONLY: dict[str, Any] = {
    "grayscale_probability": 0.0,
    "blur_probability": [0.0, 0.0, 0.0],
    "solarize_probability": 0.0,
}


def scene_files(count: int, size: int) -> list[bytes]:
    files = []
    for index in range(count):
        buffer = io.BytesIO()
        Image.fromarray(render_scene(index, "train", "crowded", size, 0).image).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def torchvision_crop(crops: CropArguments, size: int, scale: list[float], blur: float, solarize: float) -> v2.Compose:
    """Make one crop of a PIL image with torchvision's transforms."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(0.5 if crops.horizontal_flips else 0.0),
            v2.RandomApply([v2.ColorJitter(*crops.color_jitter)], crops.color_jitter_probability),
            v2.RandomGrayscale(crops.grayscale_probability),
            v2.RandomApply([v2.GaussianBlur(crops.blur_kernel_size, (0.1, 2.0))], blur),
            v2.RandomSolarize(128, solarize),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(crops.image_mean, crops.image_std),
        ]
    )


def torchvision_crops(crops: CropArguments) -> Callable[[Image.Image], list[torch.Tensor]]:
    """Make two global and L local crops, as `MultiCrop` does."""
    first, second, local = crops.blur_probability
    wide, narrow = (crops.global_crop_size, crops.global_crop_scale), (crops.local_crop_size, crops.local_crop_scale)
    kinds = [(*wide, first, 0.0), (*wide, second, crops.solarize_probability)]
    kinds += [(*narrow, local, 0.0)] * crops.local_crops
    chains = [torchvision_crop(crops, *kind) for kind in kinds]
    return lambda image: [chain(image) for chain in chains]


def decode_pil(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def run_ours(files: list[bytes], crops: CropArguments | None) -> None:
    images = [decode_image(file) for file in files]
    if crops is not None:
        MultiCrop(crops)(images, [np.random.default_rng(index) for index in range(len(files))])


def run_torchvision(files: list[bytes], crops: CropArguments | None) -> None:
    images = [decode_pil(file) for file in files]
    if crops is not None:
        augment = torchvision_crops(crops)
        views = [augment(image) for image in images]
        for places in (slice(0, 2), slice(2, None)):
            torch.stack([torch.stack(view[places]) for view in views], dim=1)


def measure(runs: Mapping[tuple[str, str], Callable], rounds: int) -> dict[tuple[str, str], float]:
    """Return the median seconds of each run."""
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name in list(runs)[index % len(runs) :] + list(runs)[: index % len(runs)]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    # The first round warms up.
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of JPEG files instead of rendered scenes")
    parser.add_argument("--count", type=int, default=16, help="files read each round")
    parser.add_argument("--image-size", type=int, default=500, help="side of the rendered scenes in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.images is None:
        files = scene_files(arguments.count, arguments.image_size)
    else:
        paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not paths:
            parser.error(f"--images: got {arguments.images}, accepted: a folder with .jpg or .jpeg files")
        files = [path.read_bytes() for path in paths[: arguments.count]]
    everything = CropArguments()
    stages = {
        "decode": None,
        "and crop": replace(everything, **JITTER_ONLY, color_jitter_probability=0.0),
        "and jitter": replace(everything, **JITTER_ONLY),
        "everything": everything,
    }
    runs = {}
    for stage, crops in stages.items():
        runs[stage, "ours"] = partial(run_ours, files, crops)
        runs[stage, "torchvision"] = partial(run_torchvision, files, crops)
    seconds = measure(runs, arguments.rounds)
    kilobytes = sum(map(len, files)) / len(files) / 1000
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {Image.__version__}, one thread")
    print(f"{len(files)} files of {kilobytes:.0f} kB on average; images a second, and ours / torchvision")
    for stage in stages:
        ours, theirs = (len(files) / seconds[stage, name] for name in ("ours", "torchvision"))
        print(f"{stage:12} {ours:8.1f} {theirs:8.1f}   {ours / theirs:5.2f}")


if __name__ == "__main__":
    main()
