"""The fields of a fine-tuning run, which are also the flags and keys of `dinov3 finetune`."""

from dataclasses import dataclass, field
from typing import Literal

from ..checkpoints.names import TARGET_MODULES
from ..recipe import Recipe, described, require


@dataclass
class TaskArguments:
    """What is trained, on which weights, and how much of them."""

    model: str | None = described(
        "model folder or hub id (ours or dinov3_vit), or a file in Meta's layout", None, positional=True
    )
    task: Literal["classification", "segmentation", "depth", "detection"] = described(
        "what the head predicts", "classification", common=True
    )
    method: Literal["frozen", "lora", "dora", "full"] = described(
        "what learns besides the head: nothing, adapters, adapters with magnitudes, everything", "lora", common=True
    )
    head: str | None = described("head of the dense tasks; null: the task's own", None, common=True)
    rank: int = described("rank of the adapters", 8, at_least=1)
    alpha: float = described("scale of the adapters: alpha / rank", 16.0, above=0)
    target_modules: list[str] = described(
        "linear layers of each block that get adapters, regular expressions of their names", list(TARGET_MODULES)
    )
    train_tokens: bool = described(
        "with frozen, lora and dora: also train and save class, mask and register tokens (the mask token moves only "
        "where a loss masks patches)",
        False,
    )
    random_init: bool = described("the control: the same on random weights in place of the model's", False)

    @property
    def has_adapters(self) -> bool:
        """Say whether adapters are trained."""
        return self.method in ("lora", "dora")

    def validate(self) -> None:
        require(self.model is not None, "model", self.model, "a model folder, a hub id or a .pth or .safetensors file")
        if self.method == "full":
            require(not self.train_tokens, "train_tokens", True, "false with full, which trains every weight")
        if self.task == "classification":
            require(self.head is None, "head", self.head, "null for classification, whose head is one linear layer")


@dataclass
class DataArguments:
    """Images, what is known of them, and how they reach the network."""

    data: str = described(
        "scenes, an image folder, Parquet files, WebDataset tars, or a hub data set id", "scenes", common=True
    )
    train_split: str = described("split that is learnt from", "train", common=True)
    test_split: str = described("split that is measured; without splits a fifth is held out", "test", common=True)
    num_train: int | None = described(
        "train images used, drawn by seed; null: all, of scenes 2000", None, at_least=1, common=True
    )
    num_test: int | None = described(
        "test images used, drawn by seed; null: all, of scenes 500", None, at_least=1, common=True
    )
    image_column: str | None = described("column of the images; null: the only image column", None)
    label_column: str = described("column of the classes", "label", common=True)
    mask_column: str = described("column of the masks, images of class indices", "mask")
    ignore_index: int = described("mask value that does not count", 255)
    depth_column: str = described("column of the depth maps, images where 0 is unknown", "depth")
    depth_unit: float = described("metres of a stored unit of depth", 0.001, above=0)
    max_depth: float = described("metres beyond which depth does not count", 10.0, above=0)
    objects_column: str = described(
        "column of the objects: lists `bbox` of [x, y, width, height] in pixels and `category`", "objects"
    )
    class_names: list[str] = described("names of the classes of masks or objects, in order", [])
    image_size: int | None = described(
        "side in pixels the network sees; null: the checkpoint's own", None, at_least=1, common=True
    )
    augment: bool = described("train on random crops and flips", True)

    def validate(self) -> None:
        require(self.train_split != self.test_split, "test_split", self.test_split, "another split than train_split")


@dataclass
class OptimizationArguments:
    """AdamW with a linear warmup and a cosine."""

    epochs: int = described("times that every train image is seen", 10, at_least=1, common=True)
    batch_size: int = described("images of a step, of each process", 32, at_least=1, common=True)
    lr: float = described(
        "peak learning rate; with full, a large backbone wants less (2e-4)", 1e-3, above=0, common=True
    )
    weight_decay: float = described("weight decay, not of biases, norms, layer scales and tokens", 0.05, at_least=0)
    layerwise_decay: float = described(
        "with full, the learning rate of a block is so many times that of the next", 0.75, above=0, at_most=1
    )
    warmup: float = described("share of the steps over which the learning rate rises", 0.1, at_least=0, below=1)
    precision: Literal["float32", "bfloat16"] = described(
        "type of the computation; weights stay float32", "float32", common=True
    )
    seed: int = described(
        "seed of the head, the order, the crops and the rows drawn", 0, at_least=0, at_most=2**32 - 1, common=True
    )
    num_workers: int = described("processes that read images", 2, at_least=0, common=True)


@dataclass
class OutputArguments:
    """What a run leaves behind."""

    output_dir: str = described(
        "folder for the adapter or model, checkpoints and results.json", "outputs/finetune", common=True
    )
    resume: bool = described("go on from the newest checkpoint in output_dir", False, common=True)
    overwrite: bool = described("replace the run that output_dir holds", False, common=True)
    export: list[Literal["merged", "transformers-adapter"]] = described(
        "also write, for stock transformers: merged (a dinov3_vit folder), transformers-adapter (adapters with its names)",
        [],
    )

    def validate(self) -> None:
        require(not (self.resume and self.overwrite), "overwrite", True, "false with resume")


@dataclass
class FinetuneRecipe(Recipe):
    """All fields of a fine-tuning run, in the groups above."""

    task: TaskArguments = field(default_factory=TaskArguments)
    data: DataArguments = field(default_factory=DataArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)

    def validate(self) -> "FinetuneRecipe":
        """Raise `Refused`, in one line, for the first field that cannot be."""
        super().validate()
        good = not (self.task.random_init and self.output.export)
        require(good, "export", self.output.export, "nothing with untrained, a control that is not kept")
        good = self.task.has_adapters or "transformers-adapter" not in self.output.export
        require(good, "export", "transformers-adapter", "merged, as without lora or dora there is no adapter")
        return self
