"""The fields that several tasks of `dinov3 evaluate` share, in groups; a task's own stand in its file of `tasks/`."""

from dataclasses import dataclass
from typing import Literal

from ..recipe import described, require


@dataclass
class WhatArguments:
    """What is measured."""

    model: str | None = described(
        "model directory or hub id (ours or dinov3_vit), or a file in Meta's layout (.pth, .safetensors); for tasks with "
        "text a directory that dinov3 align wrote",
        None,
        positional=True,
    )
    task: list[str] = described("what to measure, one or more (listed below)", ["knn"], common=True)

    def validate(self) -> None:
        require(self.model, "model", self.model, "a model directory, a hub id or a .pth or .safetensors file")


@dataclass
class DataArguments:
    """The images that are measured."""

    data: str = described(
        "scenes, an image folder, Parquet files, WebDataset tars, or a hub data set id", "scenes", common=True
    )
    test_split: str = described(
        "split that is measured; of data without splits a fifth is held out, for tasks with text all",
        "test",
        common=True,
    )
    num_test: int = described("test images used, drawn by seed; of videos whole ones", 500, at_least=1, common=True)
    image_column: str | None = described("column of the images; null: the only image column", None)
    batch_size: int = described("images per forward pass", 64, at_least=1)
    seed: int = described("seed of the untrained weights and of every draw", 0, at_least=0, common=True)


@dataclass
class OutputArguments:
    """What an evaluation leaves behind."""

    output_dir: str = described(
        "folder for results.json, results.md and the pictures", "outputs/evaluate", common=True
    )
    overwrite: bool = described("replace the results.json that output_dir holds", False, common=True)
    update_card: bool = described("add the measures to the model card of a local model directory", True)


@dataclass
class TrainArguments:
    """The images that are learnt from."""

    train_split: str = described(
        "split that is learnt from: neighbours, heads, the gallery of retrieval", "train", common=True
    )
    num_train: int = described("train images used, drawn by seed", 2000, at_least=1, common=True)


@dataclass
class NetworkArguments:
    """How images reach the network, and what is measured next to it."""

    image_size: int | None = described(
        "side in pixels the network sees; null: the checkpoint's own", None, at_least=1, common=True
    )
    resize_size: int | None = described(
        "shorter side in pixels before the centre crop; null: 256/224 of image_size, of scenes image_size",
        None,
        at_least=1,
    )
    window: int | None = described(
        "largest side in pixels that the network sees at once, larger images in windows; null: no limit",
        None,
        at_least=1,
    )
    dtype: Literal["float32", "bfloat16", "float16"] = described("type the network computes in", "float32")
    baselines: bool = described("also measure the untrained network and raw pixels", True)
    cache_dir: str | None = described(
        "folder of the features, from which a stopped or repeated run goes on; null: features in output_dir", None
    )


@dataclass
class NeighbourArguments:
    """Nearest neighbours."""

    k: list[int] = described("neighbours that vote, one or more", [10, 20], at_least=1, common=True)


@dataclass
class LabelArguments:
    """Classes of images."""

    label_column: str = described("column of the classes", "label", common=True)


@dataclass
class MaskArguments:
    """Masks of classes or objects."""

    mask_column: str | None = described(
        "column of the masks, images of class indices; null: mask, of scenes' objects instances", None, common=True
    )
    ignore_index: int | None = described(
        "mask value that does not count; null: 255 of masks of classes, none of those of objects", None
    )


@dataclass
class SequenceArguments:
    """Videos as rows of frames."""

    sequence_column: str = described(
        "column of the video that a frame belongs to; of scenes the default is scene", "sequence"
    )
    frame_column: str = described("column of a frame's number", "frame")


@dataclass
class NameArguments:
    """Names of classes."""

    class_names: list[str] = described(
        "names of the classes, in order, or imagenet, for zero-shot; of the mask's values, in order, where background is "
        "the background, for zero-shot-segmentation and segmentation; none: the label column's, the scenes'",
        [],
    )


@dataclass
class PromptArguments:
    """Sentences that name a class."""

    templates: list[str] = described(
        "prompts with {} for the name, or openai; none: some whose words the text tower knows", []
    )


@dataclass
class OutOfDistributionArguments:
    """Further test sets."""

    ood_data: list[str] = described(
        "out-of-distribution test sets, sources as of data, measured next to the main one", []
    )


@dataclass
class StepsArguments:
    """How long a head is trained."""

    steps: int | None = described(
        "steps of a trained head; null: 2000, of video 300, with augment the paper's 12500 (linear-sgd), 40000 "
        "(segmentation), 38400 (depth)",
        None,
        at_least=1,
        common=True,
    )


@dataclass
class AugmentArguments:
    """What a head is trained on."""

    augment: bool = described(
        "train heads on random crops, scales and flips as the paper does, the network run at every step, not on features "
        "computed once",
        False,
    )


@dataclass
class DenseHeadArguments:
    """Linear heads on patches."""

    lr: float | None = described(
        "learning rate of the heads of segmentation and depth; null: the paper's 1e-3 and 3e-4, ten times that for less "
        "than a quarter of its steps",
        None,
        above=0,
    )
    batch_norm: bool = described("batch norm before the linear layer of segmentation and depth", True)


@dataclass
class RepeatArguments:
    """Tasks that repeat others."""

    of: list[str] = described(
        "tasks that layers, resolution and fairness repeat; none: knn and patch-knn, of fairness knn", [], common=True
    )


# Read by every evaluation, whatever its tasks.
ALWAYS = (WhatArguments, DataArguments, OutputArguments)
