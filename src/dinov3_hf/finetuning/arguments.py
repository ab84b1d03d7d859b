"""The fields of a fine-tuning run, which are also the flags and keys of `dinov3 finetune`."""

from dataclasses import dataclass, field
from typing import Literal

from ..checkpoints.adapters import TARGET_MODULES
from ..recipe import Recipe, described, require


@dataclass
class TaskArguments:
    """What is trained, on which weights, and how much of them."""

    model: str | None = described("model folder or hub id (ours or dinov3_vit), or a file in Meta's layout", None)
    task: Literal["classification", "segmentation", "depth", "detection"] = described(
        "what the head predicts", "classification"
    )
    method: Literal["frozen", "lora", "dora", "full"] = described(
        "what learns besides the head: nothing, adapters, adapters with magnitudes, everything", "lora"
    )
    head: str | None = described("head of the dense tasks; null: the task's own", None)
    rank: int = described("rank of the adapters", 8)
    alpha: float = described("scale of the adapters: alpha / rank", 16.0)
    target_modules: list[str] = described(
        "linear layers of each block that get adapters, regular expressions of their names", list(TARGET_MODULES)
    )
    train_tokens: bool = described(
        "with frozen, lora and dora: also train and save class, mask and register tokens (the mask token moves only "
        "where a loss masks patches)",
        False,
    )
    untrained: bool = described("the control: the same on random weights in place of the model's", False)

    @property
    def has_adapters(self) -> bool:
        """Say whether adapters are trained."""
        return self.method in ("lora", "dora")

    def validate(self) -> None:
        require(self.model, "model", self.model, "a model folder, a hub id or a .pth or .safetensors file")
        require(self.rank >= 1, "rank", self.rank, "a whole number of at least 1")
        require(self.alpha > 0, "alpha", self.alpha, "a number above 0")
        if self.method == "full":
            require(not self.train_tokens, "train_tokens", True, "false with full, which trains every weight")
        if self.task == "classification":
            require(self.head is None, "head", self.head, "null for classification, whose head is one linear layer")


@dataclass
class DataArguments:
    """Images, what is known of them, and how they reach the network."""

    data: str = described("scenes, an image folder, Parquet files, WebDataset tars, or a hub data set id", "scenes")
    train_split: str = described("split that is learnt from", "train")
    test_split: str = described("split that is measured; without splits a fifth is held out", "test")
    num_train: int | None = described("train images used, drawn by seed; null: all, of scenes 2000", None)
    num_test: int | None = described("test images used, drawn by seed; null: all, of scenes 500", None)
    image_column: str | None = described("column of the images; null: the only image column", None)
    label_column: str = described("column of the classes", "label")
    mask_column: str = described("column of the masks, images of class indices", "mask")
    ignore_index: int = described("mask value that does not count", 255)
    depth_column: str = described("column of the depth maps, images where 0 is unknown", "depth")
    depth_unit: float = described("metres of a stored unit of depth", 0.001)
    max_depth: float = described("metres beyond which depth does not count", 10.0)
    objects_column: str = described(
        "column of the objects: lists `bbox` of [x, y, width, height] in pixels and `category`", "objects"
    )
    class_names: list[str] = described("names of the classes of masks or objects, in order", [])
    image_size: int | None = described("side in pixels the network sees; null: the checkpoint's own", None)
    augment: bool = described("train on random crops and flips", True)

    def validate(self) -> None:
        for name in ("num_train", "num_test", "image_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "null or a whole number of at least 1")
        for name in ("depth_unit", "max_depth"):
            require(getattr(self, name) > 0, name, getattr(self, name), "metres above 0")
        require(self.train_split != self.test_split, "test_split", self.test_split, "another split than train_split")


@dataclass
class OptimizationArguments:
    """AdamW with a linear warmup and a cosine."""

    epochs: int = described("times that every train image is seen", 10)
    batch_size: int = described("images of a step, of each process", 32)
    lr: float = described("peak learning rate; with full, a large backbone wants less (2e-4)", 1e-3)
    weight_decay: float = described("weight decay, not of biases, norms, layer scales and tokens", 0.05)
    layerwise_decay: float = described(
        "with full, the learning rate of a block is so many times that of the next", 0.75
    )
    warmup: float = described("share of the steps over which the learning rate rises", 0.1)
    precision: Literal["float32", "bfloat16"] = described("type of the computation; weights stay float32", "float32")
    seed: int = described("seed of the head, the order, the crops and the rows drawn", 0)
    num_workers: int = described("processes that read images", 2)

    def validate(self) -> None:
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        require(self.lr > 0, "lr", self.lr, "a number above 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number of at least 0")
        require(0 < self.layerwise_decay <= 1, "layerwise_decay", self.layerwise_decay, "above 0, up to 1")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "0 to below 1")
        for name in ("seed", "num_workers"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a whole number of at least 0")


@dataclass
class OutputArguments:
    """What a run leaves behind."""

    output_dir: str = described("folder for the adapter or model, checkpoints and results.json", "outputs/finetune")
    resume: bool = described("go on from the newest checkpoint in output_dir", False)
    overwrite: bool = described("replace the run that output_dir holds", False)
    export: list[str] = described(
        "also write, for stock transformers: merged (a dinov3_vit folder), stock-adapter (adapters with its names)", []
    )

    def validate(self) -> None:
        require(not (self.resume and self.overwrite), "overwrite", True, "false with resume")
        for name in self.export:
            require(name in ("merged", "stock-adapter"), "export", name, "merged, stock-adapter")


@dataclass
class FinetuneRecipe(Recipe):
    """All fields of a fine-tuning run, in the groups above."""

    task: TaskArguments = field(default_factory=TaskArguments)
    data: DataArguments = field(default_factory=DataArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)

    def validate(self) -> "FinetuneRecipe":
        """Raise ValueError, in one line, for the first field that cannot be."""
        super().validate()
        good = not (self.task.untrained and self.output.export)
        require(good, "export", self.output.export, "nothing with untrained, a control that is not kept")
        good = self.task.has_adapters or "stock-adapter" not in self.output.export
        require(good, "export", "stock-adapter", "merged, as without lora or dora there is no adapter")
        return self
