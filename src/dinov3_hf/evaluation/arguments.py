"""The fields that several tasks of `dinov3 evaluate` share, in groups; a task's own stand in its file of `tasks/`."""

from dataclasses import dataclass
from typing import Literal

from ..recipe import described, require


def require_positive(group, *names: str) -> None:
    """Refuse a field that is neither None nor a whole number of at least 1, nor a list of such numbers."""
    for name in names:
        value = getattr(group, name)
        values = [1 if value is None else value] if not isinstance(value, list) else value or [0]
        accepted = "whole numbers of at least 1" if isinstance(value, list) else "a whole number of at least 1"
        require(min(values) >= 1, name, value, accepted)


class Arguments:
    """A group of fields; subclasses refuse values that cannot be."""

    def validate(self) -> None:
        """Raise `Refused`, in one line, for the first field that cannot be; by default all can."""


@dataclass
class WhatArguments(Arguments):
    """What is measured."""

    model: str | None = described(
        "model directory or hub id (ours or dinov3_vit), or a file in Meta's layout (.pth, .safetensors); for tasks with "
        "text a directory that dinov3 align wrote",
        None,
    )
    task: list[str] = described("what to measure, one or more (listed below)", ["knn"])

    def validate(self) -> None:
        require(self.model, "model", self.model, "a model directory, a hub id or a .pth or .safetensors file")


@dataclass
class DataArguments(Arguments):
    """The images that are measured."""

    data: str = described("scenes, an image folder, Parquet files, WebDataset tars, or a hub data set id", "scenes")
    test_split: str = described(
        "split that is measured; of data without splits a fifth is held out, for tasks with text all", "test"
    )
    num_test: int = described("test images used, drawn by seed; of videos whole ones", 500)
    image_column: str | None = described("column of the images; null: the only image column", None)
    batch_size: int = described("images per forward pass", 64)
    seed: int = described("seed of the untrained weights and of every draw", 0)

    def validate(self) -> None:
        require_positive(self, "num_test", "batch_size")
        require(self.seed >= 0, "seed", self.seed, "a whole number of at least 0")


@dataclass
class OutputArguments(Arguments):
    """What an evaluation leaves behind."""

    output_dir: str = described("folder for results.json, results.md and the pictures", "outputs/evaluate")
    overwrite: bool = described("replace the results.json that output_dir holds", False)
    update_card: bool = described("add the measures to the model card of a local model directory", True)


@dataclass
class TrainArguments(Arguments):
    """The images that are learnt from."""

    train_split: str = described("split that is learnt from: neighbours, heads, the gallery of retrieval", "train")
    num_train: int = described("train images used, drawn by seed", 2000)

    def validate(self) -> None:
        require_positive(self, "num_train")


@dataclass
class NetworkArguments(Arguments):
    """How images reach the network, and what is measured next to it."""

    image_size: int | None = described("side in pixels the network sees; null: the checkpoint's own", None)
    resize_size: int | None = described(
        "shorter side in pixels before the centre crop; null: 256/224 of image_size, of scenes image_size", None
    )
    window: int | None = described(
        "largest side in pixels that the network sees at once, larger images in windows; null: no limit", None
    )
    dtype: Literal["float32", "bfloat16", "float16"] = described("type the network computes in", "float32")
    controls: bool = described("also measure the untrained network and raw pixels", True)
    cache_dir: str | None = described(
        "folder of the features, from which a stopped or repeated run goes on; null: features in output_dir", None
    )

    def validate(self) -> None:
        require_positive(self, "image_size", "resize_size", "window")


@dataclass
class NeighbourArguments(Arguments):
    """Nearest neighbours."""

    k: list[int] = described("neighbours that vote, one or more", [10, 20])

    def validate(self) -> None:
        require_positive(self, "k")


@dataclass
class LabelArguments(Arguments):
    """Classes of images."""

    label_column: str = described("column of the classes", "label")


@dataclass
class MaskArguments(Arguments):
    """Masks of classes or objects."""

    mask_column: str | None = described(
        "column of the masks, images of class indices; null: mask, of scenes' objects instances", None
    )
    ignore_index: int | None = described(
        "mask value that does not count; null: 255 of masks of classes, none of those of objects", None
    )


@dataclass
class SequenceArguments(Arguments):
    """Videos as rows of frames."""

    sequence_column: str = described(
        "column of the video that a frame belongs to; of scenes the default is scene", "sequence"
    )
    frame_column: str = described("column of a frame's number", "frame")


@dataclass
class NameArguments(Arguments):
    """Names of classes."""

    class_names: list[str] = described(
        "names of the classes, in order, or imagenet, for zero-shot; of the mask's values, in order, where background is "
        "the background, for zero-shot-segmentation and segmentation; none: the label column's, the scenes'",
        [],
    )


@dataclass
class PromptArguments(Arguments):
    """Sentences that name a class."""

    templates: list[str] = described(
        "prompts with {} for the name, or openai; none: some whose words the text tower knows", []
    )


@dataclass
class OutOfDistributionArguments(Arguments):
    """Further test sets."""

    ood_data: list[str] = described(
        "out-of-distribution test sets, sources as of data, measured next to the main one", []
    )


@dataclass
class StepsArguments(Arguments):
    """How long a head is trained."""

    steps: int | None = described(
        "steps of a trained head; null: 2000, of video 300, with augment the paper's 12500 (linear-sgd), 40000 "
        "(segmentation), 38400 (depth)",
        None,
    )

    def validate(self) -> None:
        require_positive(self, "steps")


@dataclass
class AugmentArguments(Arguments):
    """What a head is trained on."""

    augment: bool = described(
        "train heads on random crops, scales and flips as the paper does, the network run at every step, not on features "
        "computed once",
        False,
    )


@dataclass
class DenseHeadArguments(Arguments):
    """Linear heads on patches."""

    lr: float | None = described(
        "learning rate of the heads of segmentation and depth; null: the paper's 1e-3 and 3e-4, ten times that for less "
        "than a quarter of its steps",
        None,
    )
    batch_norm: bool = described("batch norm before the linear layer of segmentation and depth", True)

    def validate(self) -> None:
        require(self.lr is None or self.lr > 0, "lr", self.lr, "a number above 0")


@dataclass
class RepeatArguments(Arguments):
    """Tasks that repeat others."""

    of: list[str] = described(
        "tasks that layers, resolution and fairness repeat; none: knn and patch-knn, of fairness knn", []
    )


# Read by every evaluation, whatever its tasks.
ALWAYS = (WhatArguments, DataArguments, OutputArguments)
