"""`dinov3 export`: write a checkpoint in another layout and check what was written."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import Failed
from ..recipe import Recipe, add_recipe_flags, check_output, described, recipe_from_flags, require
from ..terminal import print_next


if TYPE_CHECKING:
    import torch
    from transformers import BaseImageProcessor, PreTrainedModel


# A difference up to this is rounding error; relative to the largest output where that is above one.
TOLERANCE = 1e-4


@dataclass
class ExportArguments:
    """Which model is exported, in which layout, and where to."""

    model: str | None = described(
        "directory, hub id, or a .pth or .safetensors file in Meta's layout", None, positional=True
    )
    layout: Literal["transformers", "meta", "timm", "onnx"] = described(
        "library whose layout is written; the transformers layout loads without this package",
        "transformers",
        common=True,
    )
    output_dir: str | None = described("folder to write to", None, common=True)
    overwrite: bool = described("write into a folder that already holds files", False, common=True)

    def validate(self) -> None:
        accepted = "a directory, a hub id, or a .pth or .safetensors file"
        require(self.model is not None, "model", self.model, accepted)
        require(self.output_dir is not None, "output_dir", self.output_dir, "a folder to write to")
        assert self.model is not None and self.output_dir is not None
        check_output(self.output_dir)
        output, source = Path(self.output_dir), Path(self.model)
        own = output.exists() and output.resolve() in (source.resolve(), source.resolve().parent)
        require(not own, "output_dir", self.output_dir, "another folder than the model's own")
        good = self.overwrite or not output.exists() or not any(output.iterdir())
        require(good, "output_dir", self.output_dir, "a folder without files, or --overwrite")


@dataclass
class ExportRecipe(Recipe):
    """All fields of an export."""

    export: ExportArguments = field(default_factory=ExportArguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_flags(parser, ExportRecipe)


def run(arguments: argparse.Namespace) -> int:
    settings = recipe_from_flags(arguments, ExportRecipe).export
    assert settings.model is not None and settings.output_dir is not None  # refused by `validate`
    layout, output = settings.layout, Path(settings.output_dir)
    from dinov3_hf.checkpoints import export, load_model
    from dinov3_hf.checkpoints.processors import find_processor

    model, processor = load_model(settings.model).eval(), find_processor(settings.model)
    export(model, output, layout)
    preprocessing = carry_preprocessing(processor, output, layout)
    for file in sorted(path for path in output.iterdir() if path.is_file()):
        print(f"written: {file} ({file.stat().st_size / 1e6:.2f} MB)")
    print(f"omitted: {describe_omitted(model, layout) or 'nothing'}")
    print(f"preprocessing: {preprocessing}")
    difference, reader = agreement(model, output, layout)
    if difference is None:
        print(f"not checked: {reader} is not installed")
        return 0
    if not difference <= TOLERANCE:
        raise Failed(
            f"layout: what {reader} reads from {output} differs by {difference:.2g}, accepted: at most {TOLERANCE:g}; "
            "do not use what was written"
        )
    print(f"checked: {reader} gives the same tokens (largest difference {difference:.1e}, square and other images)")
    if layout == "transformers":
        print_next(["demo", "dense_features", "--model", str(output)])
    return 0


def carry_preprocessing(processor: "BaseImageProcessor | None", directory: Path, layout: str) -> str:
    """Write the source's image processor next to the weights if the layout allows it; return what was done."""
    if layout == "meta":
        return "none: Meta's layout cannot hold it"
    if processor is None:
        return "none found next to the model" + (": ImageNet statistics written" if layout != "onnx" else "")
    if layout == "timm":
        file = directory / "config.json"
        config = json.loads(file.read_text())
        pretrained, size = config["pretrained_cfg"], dict(processor.size)
        pretrained |= {"mean": list(processor.image_mean), "std": list(processor.image_std)}
        if {"height", "width"} <= set(size):
            pretrained["input_size"][1:] = [size["height"], size["width"]]
        file.write_text(json.dumps(config, indent=2) + "\n")
        return "size and statistics of the model's own processor, in config.json"
    processor.save_pretrained(directory)
    return "the model's own processor"


def describe_omitted(model: "PreTrainedModel", layout: str) -> str:
    """Name the weights that have no place in the layout; an empty string if there are none."""
    from dinov3_hf.checkpoints.weights import omitted, summarise

    return summarise(omitted(model.state_dict())) if layout in ("timm", "onnx") else ""


def agreement(model: "PreTrainedModel", directory: Path, layout: str) -> tuple[float | None, str]:
    """Compare `model` with the exported one, loaded by the layout's own library, on random images.

    Returns the largest difference of their tokens, relative to the largest output where that is above one, and the
    name of the library. The difference is `None` if the library is not installed.
    """
    import torch

    network = getattr(model, "dinov3", model)
    patch, channels = network.config.patch_size, network.config.num_channels
    generator = torch.Generator().manual_seed(0)
    difference = 0.0
    try:
        read, name = reader(directory, layout)
    except ModuleNotFoundError as error:
        return None, str(error.name)
    for batch, rows, columns in ((1, 4, 4), (2, 3, 5)):
        images = torch.randn(batch, channels, rows * patch, columns * patch, generator=generator)
        with torch.inference_mode():
            expected, exported = network(images).last_hidden_state, read(images)
        scale = max(1.0, expected.abs().max().item())
        difference = max(difference, (exported - expected).abs().max().item() / scale)
    return difference, name


def reader(directory: Path, layout: str) -> tuple[Callable[["torch.Tensor"], "torch.Tensor"], str]:
    """Load an export with the layout's own library.

    Returns a function from images [B,C,H,W] to tokens [B,1+R+P,D], and the name of the library.
    """
    import torch

    if layout == "transformers":
        from transformers import AutoModel

        reference = AutoModel.from_pretrained(directory)
        return lambda images: reference(images).last_hidden_state, f"transformers' {type(reference).__name__}"
    if layout == "meta":
        from dinov3_hf.checkpoints import load_meta

        loaded = load_meta(directory / "model.pth")
        again: Any = getattr(loaded, "dinov3", loaded)
        return lambda images: again(images).last_hidden_state, "load_meta"
    if layout == "timm":
        import timm

        model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
        return model.forward_features, "timm"
    import onnxruntime

    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    return (
        lambda images: torch.from_numpy(session.run(["last_hidden_state"], {"pixel_values": images.numpy()})[0]),
        "onnxruntime",
    )
