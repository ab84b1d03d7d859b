"""The fields of a fine-tuning run: they are the flags of `dinov3 finetune` and the keys of its YAML recipes."""

from dataclasses import dataclass, field
from typing import Literal

from ..checkpoints.names import TARGET_MODULES
from ..recipe import Recipe, described, require


@dataclass
class TaskArguments:
    """The task, the pretrained model, and which of its weights are trained."""

    model: str | None = described(
        "model folder or hub id (this package's or dinov3_vit), or a weights file in Meta's layout",
        None,
        positional=True,
    )
    task: Literal["classification", "segmentation", "depth", "detection"] = described(
        "task of the head", "classification", common=True
    )
    method: Literal["frozen", "lora", "dora", "full"] = described(
        "what is trained in addition to the head: nothing (frozen), LoRA or DoRA adapters, or all weights (full)",
        "lora",
        common=True,
    )
    head: str | None = described("head of a dense task; null: the task's default", None, common=True)
    rank: int = described("rank of the adapters", 8, at_least=1)
    alpha: float = described("the adapters are scaled by alpha / rank", 16.0, above=0)
    target_modules: list[str] = described(
        "linear layers of each block that get adapters, as regular expressions of their names", list(TARGET_MODULES)
    )
    train_tokens: bool = described(
        "with frozen, lora and dora: also train and save the class, mask and register tokens (the mask token only "
        "changes with a loss that masks patches)",
        False,
    )
    random_init: bool = described(
        "baseline: train the same way from a randomly initialised backbone instead of the model's weights", False
    )

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained."""
        return self.method in ("lora", "dora")

    def validate(self) -> None:
        require(self.model is not None, "model", self.model, "a model folder, a hub id or a .pth or .safetensors file")
        if self.method == "full":
            require(not self.train_tokens, "train_tokens", True, "false with full, which trains every weight")
        if self.task == "classification":
            require(self.head is None, "head", self.head, "null for classification, whose head is one linear layer")


@dataclass
class DataArguments:
    """The images, their annotations, and how they are prepared for the network."""

    data: str = described(
        "scenes, an image folder, Parquet files, WebDataset tars, or a hub data set id", "scenes", common=True
    )
    train_split: str = described("split to train on", "train", common=True)
    test_split: str = described(
        "split to test on; if the data have only one split, a fifth of it is held out", "test", common=True
    )
    num_train: int | None = described(
        "number of train images, drawn with the seed; null: all, or 2000 scenes", None, at_least=1, common=True
    )
    num_test: int | None = described(
        "number of test images, drawn with the seed; null: all, or 500 scenes", None, at_least=1, common=True
    )
    image_column: str | None = described("column of the images; null: the only image column there is", None)
    label_column: str = described("column of the classes", "label", common=True)
    mask_column: str = described("column of the segmentation masks: images of class indices", "mask")
    mask_values: list[int] = described(
        "mask values of the classes, in their order, as 0 255 for background and foreground; other values than these "
        "and ignore_index are refused; none: a mask's values are the indices of its classes",
        [],
        at_least=0,
    )
    ignore_index: int | None = described("mask value of pixels to ignore; null: 255", None)
    depth_column: str = described("column of the depth maps: images in which 0 means unknown", "depth")
    depth_unit: float = described("metres per unit of the stored depth values", 0.001, above=0)
    max_depth: float = described("depths beyond this many metres are ignored", 10.0, above=0)
    objects_column: str = described(
        "column of the objects: a list `bbox` of [x, y, width, height] in pixels and a list `category`", "objects"
    )
    class_names: list[str] = described("names of the classes of masks or objects, in the order of their indices", [])
    image_size: int | None = described(
        "side in pixels to which images are resized; null: that of the checkpoint", None, at_least=1, common=True
    )
    augment: bool = described("train on random crops and flips", True)

    def validate(self) -> None:
        require(self.train_split != self.test_split, "test_split", self.test_split, "another split than train_split")


@dataclass
class OptimizationArguments:
    """AdamW with a linear warmup and a cosine."""

    epochs: int = described("passes over the train images", 10, at_least=1, common=True)
    batch_size: int = described("images per step and process", 32, at_least=1, common=True)
    lr: float = described(
        "peak learning rate; with method full and a large backbone use less (2e-4)", 1e-3, above=0, common=True
    )
    weight_decay: float = described(
        "weight decay; not applied to biases, norms, layer scales and tokens", 0.05, at_least=0
    )
    layerwise_decay: float = described(
        "with method full: learning rate of a block, relative to that of the next block", 0.75, above=0, at_most=1
    )
    warmup: float = described(
        "fraction of the steps during which the learning rate warms up", 0.1, at_least=0, below=1
    )
    precision: Literal["float32", "bfloat16"] = described(
        "precision of the computation; weights stay float32", "float32", common=True
    )
    seed: int = described(
        "seed of the head's weights, the data order, the crops and the choice of rows",
        0,
        at_least=0,
        at_most=2**32 - 1,
        common=True,
    )
    num_workers: int = described("processes that read images", 2, at_least=0, common=True)


@dataclass
class OutputArguments:
    """What a run writes, and where."""

    output_dir: str = described(
        "folder for the adapter or model, the checkpoints and results.json", "outputs/finetune", common=True
    )
    resume: bool = described("continue from the newest checkpoint in output_dir", False, common=True)
    overwrite: bool = described("replace the run in output_dir", False, common=True)
    export: list[Literal["merged", "transformers-adapter"]] = described(
        "also export for use without this package: merged (a dinov3_vit model of transformers, adapters merged "
        "in), transformers-adapter (adapters for that model)",
        [],
    )

    def validate(self) -> None:
        require(not (self.resume and self.overwrite), "overwrite", True, "false with resume")


@dataclass
class FinetuneRecipe(Recipe):
    """All fields of a fine-tuning run."""

    task: TaskArguments = field(default_factory=TaskArguments)
    data: DataArguments = field(default_factory=DataArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)

    def validate(self) -> "FinetuneRecipe":
        """Raise `Refused` for the first invalid field."""
        super().validate()
        good = not (self.task.random_init and self.output.export)
        require(good, "export", self.output.export, "nothing with random_init, whose model is not saved")
        good = self.task.has_adapters or "transformers-adapter" not in self.output.export
        require(good, "export", "transformers-adapter", "merged; only lora and dora train an adapter")
        return self
