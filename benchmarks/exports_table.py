"""What does each export layout contain, how exactly and in how many bytes, and how fast is its own library?

Every layout is written, read back by its own library, and compared with the original model: tensor by tensor where the
layout keeps tensors, and by output tokens for a square and another image size. All libraries run in one process, in
interleaved rounds, so that other load on the machine slows them equally. "int8" is torchao's dynamic quantisation of
the transformers layout.

    python benchmarks/exports_table.py
    python benchmarks/exports_table.py --size vits16 --image-size 224 --docs docs/heads.md
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel, TorchAoConfig
from transformers.utils import logging

from dinov3_hf import Dinov3Config, Dinov3Model, tiny_checkpoint
from dinov3_hf.checkpoints import LAYOUTS, export, load_meta
from dinov3_hf.checkpoints.timm import load_timm
from dinov3_hf.checkpoints.weights import omitted, summarise
from dinov3_hf.commands.export import reader
from dinov3_hf.evaluation.results import markdown, replace_table


READ_BACK = {
    "transformers": Dinov3Model.from_pretrained,
    "meta": lambda folder: load_meta(folder / "model.pth"),
    "timm": load_timm,
}


def make_model(size: str | None) -> Dinov3Model:
    if size is None:
        return Dinov3Model.from_pretrained(tiny_checkpoint()).eval()
    torch.manual_seed(0)
    model = Dinov3Model(Dinov3Config.from_size(size, layerscale_value=0.5)).eval()
    for module in model.modules():
        # Large enough that blocks change their input, as in a trained network.
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.04)
    return model


def quantise(folder: Path, directory: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    AutoModel.from_pretrained(folder, quantization_config=config, dtype=torch.float32).save_pretrained(directory)
    model = AutoModel.from_pretrained(directory)
    return lambda images: model(images).last_hidden_state


def tensors_held(model: Dinov3Model, layout: str, folder: Path) -> tuple[int, str]:
    """Return the number of tensors that are read back bit-equal, and the names of the others."""
    ours = model.state_dict()
    if layout == "int8":
        return sum(tensor.ndim != 2 for tensor in ours.values()), "linear weights are rounded"
    lost = omitted(ours) if layout in ("timm", "onnx") else []
    if layout in READ_BACK:
        theirs = READ_BACK[layout](folder).state_dict()
        lost += [name for name in set(ours) - set(lost) if not torch.equal(theirs[name], ours[name])]
    return len(ours) - len(lost), summarise(lost) or "-"


def measure(runs: dict[str, Callable], images: torch.Tensor, rounds: int) -> dict[str, float]:
    """Return the median seconds of each run; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name in list(runs)[index % len(runs) :] + list(runs)[: index % len(runs)]:
            start = time.perf_counter()
            runs[name](images)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", help="a published size with random weights [default: the bundled checkpoint]")
    parser.add_argument("--image-size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--docs", type=Path, help="file whose table is replaced")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = make_model(arguments.size)
    patch, side = model.config.patch_size, arguments.image_size
    square = torch.randn(arguments.batch, 3, side, side)
    pictures = (square, torch.randn(1, 3, side + 2 * patch, side // patch // 2 * patch))
    rows, runs = [], {"this package": lambda images: model(images).last_hidden_state}
    with tempfile.TemporaryDirectory() as place:
        for layout in (*LAYOUTS, "int8"):
            folder = Path(place) / layout
            start = time.perf_counter()
            try:
                if layout == "int8":
                    runs[layout] = quantise(Path(place) / "transformers", folder)
                else:
                    export(model, folder, layout)
                    runs[layout] = reader(folder, layout)[0]
            except ImportError as error:
                print(f"{layout}: skipped, {error}")
                continue
            seconds, differences, cosines = time.perf_counter() - start, [], []
            for images in pictures:
                expected, tokens = model(images).last_hidden_state, runs[layout](images)
                differences.append((tokens - expected).abs().max().item())
                cosines.append(torch.nn.functional.cosine_similarity(tokens, expected, dim=-1).min().item())
            held, lost = tensors_held(model, layout, folder)
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            values = [f"{max(differences):.1e}", f"{min(cosines):.5f}", f"{size:.2f}", f"{seconds:.1f}"]
            rows.append([layout, str(held), lost, *values])
        taken = measure(runs, square, arguments.rounds)
    header = [
        "layout",
        "tensors held",
        "not held",
        "largest difference",
        "worst cosine",
        "MB",
        "seconds to write and read",
    ]
    table = [[*row, f"{taken['this package'] / taken[row[0]]:.2f}"] for row in rows]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; "
        "speed: images/s of its reader / of this package"
    )
    text = markdown([[*header, "speed"], *table])
    print(text)
    if arguments.docs:
        replace_table(arguments.docs, "benchmarks/exports_table.py", text)


if __name__ == "__main__":
    main()
