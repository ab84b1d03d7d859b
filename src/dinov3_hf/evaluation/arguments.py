"""Groups of recipe fields shared by tasks of `dinov3 evaluate`; a task's own fields are in its file in `tasks/`."""

from dataclasses import dataclass
from typing import Literal

from ..recipe import described, require


@dataclass
class WhatArguments:
    """What is measured."""

    model: str | None = described(
        "model directory or hub id (of this package or dinov3_vit), or a checkpoint file in Meta's layout (.pth, "
        ".safetensors); for tasks with text a directory written by dinov3 align",
        None,
        positional=True,
    )
    task: list[str] = described("one or more tasks to run (listed below)", ["knn"], common=True)

    def validate(self) -> None:
        require(self.model, "model", self.model, "a model directory, a hub id or a .pth or .safetensors file")


@dataclass
class DataArguments:
    """The test images."""

    data: str = described(
        "scenes, an image folder, Parquet files, WebDataset tars, or a hub data set id", "scenes", common=True
    )
    test_split: str = described(
        "test split; of data without splits a fifth is held out as the test set (all of it for tasks with text)",
        "test",
        common=True,
    )
    num_test: int = described(
        "number of test images, drawn at random by seed; videos are kept whole", 500, at_least=1, common=True
    )
    image_column: str | None = described("column of the images; null: the only image column of the data", None)
    batch_size: int = described("images per forward pass", 64, at_least=1)
    seed: int = described(
        "seed of the random weights of the baseline and of every random draw", 0, at_least=0, common=True
    )


@dataclass
class OutputArguments:
    """Where results are written."""

    output_dir: str = described(
        "folder for results.json, results.md and the pictures", "outputs/evaluate", common=True
    )
    overwrite: bool = described("replace an existing results.json in output_dir", False, common=True)
    update_card: bool = described("add the metrics to the model card of a local model directory", True)


@dataclass
class TrainArguments:
    """The training images."""

    train_split: str = described(
        "training split: source of neighbours, of heads' training images and of the gallery of retrieval",
        "train",
        common=True,
    )
    num_train: int = described("number of train images, drawn at random by seed", 2000, at_least=1, common=True)


@dataclass
class NetworkArguments:
    """How images are prepared for the network, and which baselines are measured."""

    image_size: int | None = described(
        "side in pixels of the network's input; null: the checkpoint's own", None, at_least=1, common=True
    )
    resize_size: int | None = described(
        "shorter side in pixels before the centre crop; null: 256/224 of image_size (image_size for scenes)",
        None,
        at_least=1,
    )
    window: int | None = described(
        "largest input side in pixels of one forward pass; larger images are cut into windows; null: no limit",
        None,
        at_least=1,
    )
    dtype: Literal["float32", "bfloat16", "float16"] = described(
        "data type of the network's weights and computations", "float32"
    )
    baselines: bool = described("also measure the baselines: the randomly initialised network and raw pixels", True)
    cache_dir: str | None = described(
        "folder that caches features, so that interrupted or repeated runs reuse them; null: output_dir/features",
        None,
    )


@dataclass
class NeighbourArguments:
    """Nearest neighbours."""

    k: list[int] = described("number of neighbours that vote, one or more values", [10, 20], at_least=1, common=True)


@dataclass
class LabelArguments:
    """Class labels of images."""

    label_column: str = described("column of the class labels", "label", common=True)


@dataclass
class MaskArguments:
    """Masks of classes or objects."""

    mask_column: str | None = described(
        "column of the masks, images of class or object indices; null: mask (for objects of scenes: instances)",
        None,
        common=True,
    )
    ignore_index: int | None = described(
        "mask value whose pixels are ignored; null: 255 for class masks, none for object masks", None
    )


@dataclass
class MaskValueArguments:
    """What the stored values of class masks mean."""

    mask_values: list[int] = described(
        "mask values of the classes, in their order, as 0 255 for background and foreground; other values than these "
        "and ignore_index are refused; none: a mask's values are the indices of its classes",
        [],
        at_least=0,
    )


@dataclass
class SequenceArguments:
    """Videos as rows of frames."""

    sequence_column: str = described(
        "column that names the video of each frame; for scenes the default is scene", "sequence"
    )
    frame_column: str = described("column of the frame numbers", "frame")


@dataclass
class NameArguments:
    """Names of classes."""

    class_names: list[str] = described(
        "for zero-shot: names of the classes, in order, or imagenet; for segmentation and zero-shot-segmentation: "
        "names of the mask values, in order from 0, that of the background being background; none: those of the label "
        "column or scenes",
        [],
    )


@dataclass
class PromptArguments:
    """Prompts that name a class."""

    templates: list[str] = described(
        "prompts with {} in place of the class name, or openai; none: default prompts whose words the tokenizer knows",
        [],
    )


@dataclass
class OutOfDistributionArguments:
    """Out-of-distribution test sets."""

    ood_data: list[str] = described(
        "out-of-distribution test sets, measured in addition to the main one; accepts the same sources as data", []
    )


@dataclass
class StepsArguments:
    """Length of a head's training."""

    steps: int | None = described(
        "training steps of the head; null: 2000 (video: 300); with augment those of the paper: 12500 (linear-sgd), "
        "40000 (segmentation), 38400 (depth)",
        None,
        at_least=1,
        common=True,
    )


@dataclass
class AugmentArguments:
    """Augmentation of a head's training images."""

    augment: bool = described(
        "train heads on random crops, scales and flips, as the paper does: the network runs at every step; otherwise "
        "heads are trained on features computed once",
        False,
    )


@dataclass
class DenseHeadArguments:
    """Linear heads on patches."""

    lr: float | None = described(
        "learning rate of the segmentation and depth heads; null: the paper's (1e-3 and 3e-4), ten times that below a "
        "quarter of the paper's steps",
        None,
        above=0,
    )
    batch_norm: bool = described("apply batch norm before the linear layer of the segmentation and depth heads", True)


@dataclass
class RepeatArguments:
    """Tasks that repeat others."""

    of: list[str] = described(
        "tasks that layers, resolution and fairness repeat; none: knn and patch-knn (fairness: knn)", [], common=True
    )


# Every evaluation reads these, whatever its tasks.
ALWAYS = (WhatArguments, DataArguments, OutputArguments)
