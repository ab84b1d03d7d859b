"""How much slower is the extraction of frozen features than the bare forward passes of the network?

Encodes rendered scenes as JPEG files, then in interleaved rounds extracts the features of a part of them (decoding,
resizing, forward pass, writing to disk) and runs the network alone on equally many images in memory. The time of a
second extraction, with all features cached, is printed too.

    python benchmarks/feature_extraction.py --num-images 2000 --size vits16
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, Features, Image
from PIL import Image as PilImage

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.scenes import render_scene
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.feature_store import FeatureStore


def jpeg(index: int, side: int) -> dict:
    buffer = io.BytesIO()
    PilImage.fromarray(render_scene(index, "test", "crowded", side).image).save(buffer, "JPEG", quality=90)
    return {"bytes": buffer.getvalue(), "path": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument("--size", default="vits16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--file-side", type=int, default=320, help="pixels a side of the JPEG files")
    parser.add_argument("--kind", default="cls", choices=("cls", "cls+mean", "patches"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    # 200 different files, repeated: each repetition is decoded again.
    files = [jpeg(index, arguments.file_side) for index in range(200)]
    rows = Dataset.from_dict(
        {"image": [files[index % len(files)] for index in range(arguments.num_images)]}, Features({"image": Image()})
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Dinov3Model(Dinov3Config.from_size(arguments.size)).to(device, getattr(torch, arguments.dtype)).eval()
    view = Preprocessing(arguments.image_size, round(arguments.image_size * 256 / 224))
    ready = torch.randn(arguments.batch_size, 3, view.image_size, view.image_size, device=device, dtype=model.dtype)
    parts = [
        rows.select(range(start, min(start + -(-len(rows) // arguments.rounds), len(rows))))
        for start in range(0, len(rows), -(-len(rows) // arguments.rounds))
    ]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model, view, FeatureStore(Path(folder)), arguments.batch_size, baselines=False)
        # Warm up, so that the digest of the weights, computed once per run, is not part of the first round.
        bench.extract(rows.select(range(arguments.batch_size)), "image", arguments.kind, "warm-up")

        def extract(part: Dataset, description: str) -> float:
            start = time.perf_counter()
            bench.extract(part, "image", arguments.kind, description)
            return time.perf_counter() - start

        @torch.inference_mode()
        def forward(count: int) -> float:
            start = time.perf_counter()
            for first in range(0, count, arguments.batch_size):
                model(ready[: count - first])
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        taken, bare = [], []
        for number, part in enumerate(parts):
            if number % 2:
                bare.append(forward(len(part)))
            taken.append(extract(part, f"round {number + 1}"))
            if not number % 2:
                bare.append(forward(len(part)))
        again = sum(extract(part, "again") for part in parts)
    print("| run | images/s | time / bare forward |\n|---|---|---|")
    print(f"| bare forward | {len(rows) / sum(bare):.1f} | 1.000 |")
    ratio = statistics.median(t / b for t, b in zip(taken, bare, strict=True))
    rounds = ", ".join(f"{t / b:.3f}" for t, b in zip(taken, bare, strict=True))
    print(f"| extraction | {len(rows) / sum(taken):.1f} | {ratio:.3f} (rounds: {rounds}) |")
    print(f"| extraction again, all cached | {len(rows) / again:.0f} | {again / sum(bare):.3f} |")


if __name__ == "__main__":
    main()
