"""The fields of a pretraining recipe, with their types, defaults and bounds."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from dinov3_hf.recipe import Recipe, described, require

from .gram_arguments import GramArguments
from .source_arguments import SourceArguments


# The sizes of `Dinov3Config.from_size`, repeated here because its module imports torch.
Size = Literal["vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16"]


@dataclass
class ModelArguments:
    """The student: a named size or existing weights, and overrides of single fields of its configuration."""

    init_from: str | None = described(
        "weights to start from: a model folder (saved by this package or by transformers), a hub id, or a .pth or "
        ".safetensors file in Meta's layout; null: random weights",
        None,
        common=True,
    )
    init_heads: bool = described(
        "with init_from, also load its projection heads and their sizes, if it has them", True
    )
    size: Size | None = described(
        "named model size; null: vits16, or the size of init_from",
        None,
        common=True,
    )
    lora_rank: int | None = described(
        "train LoRA adapters of this rank on frozen blocks, plus the heads; null: train all weights", None, at_least=1
    )
    lora_alpha: float = described("scale of the LoRA update: lora_alpha / lora_rank", 16.0, above=0)
    patch_size: int | None = described("side of a patch in pixels; null keeps the size's own", None, at_least=1)
    hidden_size: int | None = described("width D; null keeps the size's own", None, at_least=1)
    num_hidden_layers: int | None = described("number of blocks; null keeps the size's own", None, at_least=1)
    num_attention_heads: int | None = described("attention heads; null keeps the size's own", None, at_least=1)
    intermediate_size: int | None = described("hidden width of the MLP; null keeps the size's own", None, at_least=1)
    num_register_tokens: int | None = described("register tokens R; null keeps the size's own", None, at_least=0)
    key_bias: bool | None = described(
        "add a trained bias to the attention keys; null keeps the size's own (none)", None
    )
    layerscale_value: float | None = described(
        "initial layer scale; null keeps the size's own (1e-5)", None, at_least=0
    )
    layer_norm_eps: float | None = described(
        "epsilon of every LayerNorm; null keeps the size's own (1e-5)", None, above=0
    )
    untie_global_and_local_cls_norm: bool = described(
        "use a separate final norm for the class and register tokens of local crops", False
    )
    drop_path_rate: float = described(
        "stochastic depth: share of the batch for which each residual branch is skipped", 0.0, at_least=0, below=1
    )
    pos_embed_shift: float | None = described(
        "RoPE augmentation: shift coordinates by up to this much", None, at_least=0
    )
    pos_embed_jitter: float | None = described(
        "RoPE augmentation: scale each axis by up to this factor", None, at_least=1
    )
    pos_embed_rescale: float | None = described(
        "RoPE augmentation: scale both axes by up to this factor", None, at_least=1
    )
    dino_head_num_prototypes: int = described("prototypes K of the image head", 65536, at_least=1)
    dino_head_hidden_size: int = described("hidden width of the image head", 2048, at_least=1)
    dino_head_bottleneck_size: int = described("bottleneck width of the image head", 256, at_least=1)
    ibot_head_num_prototypes: int = described("prototypes K of the patch head", 65536, at_least=1)
    ibot_head_hidden_size: int = described("hidden width of the patch head", 2048, at_least=1)
    ibot_head_bottleneck_size: int = described("bottleneck width of the patch head", 256, at_least=1)
    head_num_layers: int = described("linear layers of each head before the prototypes", 3, at_least=1)
    head_initializer_range: float = described("standard deviation of the heads' initial weights", 0.02, above=0)

    def validate(self) -> None:
        good = self.lora_rank is None or self.init_from is not None
        require(good, "lora_rank", self.lora_rank, "null without init_from: adapters need pretrained weights")


@dataclass
class DataArguments(SourceArguments):
    """Where the training images come from, and the held-out images on which the run is monitored."""

    probe_data: str | None = described(
        "held-out images on which the teacher is evaluated during training; null: the test split of the scenes when "
        "training on scenes, otherwise no evaluation",
        None,
    )
    probe_split: str = described("split of the held-out images", "test")
    probe_label_column: str | None = described(
        "column with the classes of the held-out images, for k-NN; null: label, if it exists", None
    )
    probe_images: int = described(
        "number of held-out images; four fifths of them form the k-NN bank", 1000, at_least=20
    )


@dataclass
class CropArguments:
    """Crops, their augmentation, and the masks of the patch objective."""

    global_crop_size: int = described("side of the two global crops in pixels", 224, at_least=1, common=True)
    local_crop_size: int = described("side of the local crops in pixels", 96, at_least=1)
    local_crops: int = described("number L of local crops", 8, at_least=0, common=True)
    global_crop_scale: list[float] = described(
        "smallest and largest share of the image a global crop covers", [0.32, 1.0], at_least=0, at_most=1
    )
    local_crop_scale: list[float] = described(
        "smallest and largest share of the image a local crop covers", [0.05, 0.32], at_least=0, at_most=1
    )
    horizontal_flips: bool = described("flip half of the crops", True)
    color_jitter_probability: float = described(
        "share of the crops to which colour jitter is applied", 0.8, at_least=0, at_most=1
    )
    color_jitter: list[float] = described(
        "strength of brightness, contrast, saturation and hue", [0.4, 0.4, 0.2, 0.1], at_least=0, at_most=1
    )
    grayscale_probability: float = described("share of the crops converted to greyscale", 0.2, at_least=0, at_most=1)
    # The paper prints 1.0 / 0.1 / 0.5; the published weights were trained with 0 / 0.9 / 0.5.
    blur_probability: list[float] = described(
        "share of crops that are blurred: first global, second global, local", [0.0, 0.9, 0.5], at_least=0, at_most=1
    )
    blur_kernel_size: int = described(
        "side of the blur kernel in pixels, odd; sigma is drawn from 0.1 to 2", 9, at_least=1
    )
    solarize_probability: float = described(
        "share of the second global crops that are solarized", 0.2, at_least=0, at_most=1
    )
    image_mean: list[float] = described("mean of the normalisation, on the 0..1 scale", [0.485, 0.456, 0.406])
    image_std: list[float] = described(
        "standard deviation of the normalisation, on the 0..1 scale", [0.229, 0.224, 0.225], above=0
    )
    mask_probability: float = described("share of the global crops that are masked", 0.5, at_least=0, at_most=1)
    mask_ratio: list[float] = described(
        "smallest and largest share of patches masked in a masked crop", [0.1, 0.5], at_least=0, at_most=1
    )
    crop_size_sets: list[list[int]] = described(
        "list of crop sizes [global, local, gram], one of which is drawn at every step and replaces the sizes above; "
        "empty: the sizes above at every step",
        [],
        at_least=1,
    )
    crop_size_probabilities: list[float] = described(
        "probability of each entry of crop_size_sets; empty: all equal", [], at_least=0
    )

    def sizes(self, gram_crop_size: int | None) -> list[tuple[int, int, int | None]]:
        """Return every (global, local, gram) crop size of the run; gram is None without separate Gram crops."""
        if self.crop_size_sets:
            return [(sizes[0], sizes[1], sizes[2]) for sizes in self.crop_size_sets]
        return [(self.global_crop_size, self.local_crop_size, gram_crop_size)]

    def check_patches(self, patch_size: int, gram_crop_size: int | None) -> None:
        """Raise `Refused` if a crop side is not a multiple of the patch size.

        Local crops of `crop_size_sets` may be: the model drops incomplete patches. One published set has local crops
        of 10.5 patches.
        """
        names: list[str | None] = ["global_crop_size", "local_crop_size", "gram_crop_size"]
        if self.crop_size_sets:
            names = ["crop_size_sets", None, "crop_size_sets"]
        for sizes in self.sizes(gram_crop_size):
            for name, size in zip(names, sizes, strict=True):
                if name is not None and size is not None:
                    require(size % patch_size == 0, name, size, f"a multiple of the patch size ({patch_size})")

    def validate(self) -> None:
        for sizes in self.crop_size_sets:
            require(len(sizes) == 3, "crop_size_sets", sizes, "three sizes in pixels: global, local and gram crops")
        shares = self.crop_size_probabilities
        good = not shares or (len(shares) == len(self.crop_size_sets) and sum(shares) > 0)
        require(
            good,
            "crop_size_probabilities",
            shares,
            f"empty, or a share for each of the {len(self.crop_size_sets)} sets",
        )
        for name in ("global_crop_scale", "local_crop_scale", "mask_ratio"):
            value = getattr(self, name)
            good = len(value) == 2 and value[0] <= value[1] and value[1] > 0
            require(good, name, value, "two shares, the smaller first, the larger above 0")
        for name, length in (("color_jitter", 4), ("blur_probability", 3), ("image_mean", 3), ("image_std", 3)):
            require(len(getattr(self, name)) == length, name, getattr(self, name), f"{length} numbers")
        hue = "a hue strength (fourth number) of at most .5"
        require(self.color_jitter[3] <= 0.5, "color_jitter", self.color_jitter, hue)
        require(self.blur_kernel_size % 2 == 1, "blur_kernel_size", self.blur_kernel_size, "an odd number of pixels")


@dataclass
class ObjectiveArguments:
    """Weights and temperatures of the objective (DINOv3, section 3)."""

    dino_weight: float = described("weight of the image objective", 1.0, at_least=0)
    ibot_weight: float = described("weight of the patch objective", 1.0, at_least=0)
    koleo_weight: float = described("weight of the KoLeo loss", 0.1, at_least=0)
    student_temperature: float = described("temperature of the student's softmax", 0.1, above=0)
    ignore_diagonal: bool = described("do not compare a global crop with itself in the image loss", True)
    sinkhorn_iterations: int = described("Sinkhorn-Knopp iterations on the teacher's logits", 3, at_least=1)
    koleo_topk: int = described("number of nearest neighbours in the KoLeo loss", 1, at_least=1)
    koleo_distributed: bool = described(
        "search KoLeo neighbours in the batches of all processes instead of the local batch", False
    )
    koleo_group_size: int | None = described(
        "with koleo_distributed: images per group in which neighbours are searched; null: all images", None, at_least=1
    )

    def validate(self) -> None:
        grouped = self.koleo_group_size is None or self.koleo_distributed
        require(grouped, "koleo_group_size", self.koleo_group_size, "null unless koleo_distributed is true")


@dataclass
class OptimizationArguments:
    """AdamW, its schedules and parameter groups (DINOv3, section 3 and appendix C)."""

    steps: int = described("optimizer steps of the run", 125000, at_least=1, common=True)
    batch_size: int = described("images per process and forward pass", 64, at_least=1, common=True)
    gradient_accumulation_steps: int = described(
        "forward passes whose gradients are summed into one step; Sinkhorn-Knopp and KoLeo are computed per pass",
        1,
        at_least=1,
        common=True,
    )
    lr: float = described("peak learning rate, before lr_scaling", 1e-3, at_least=0, common=True)
    lr_scaling: Literal["none", "sqrt_wrt_1024"] = described(
        "sqrt_wrt_1024 multiplies lr and lr_end by 4 sqrt(global batch / 1024)", "sqrt_wrt_1024"
    )
    lr_end: float | None = described(
        "learning rate at the last step of a cosine schedule; null: constant after the warm-up, as in DINOv3",
        None,
        at_least=0,
    )
    lr_warmup_steps: int = described("steps of linear warm-up of the learning rate", 12500, at_least=0, common=True)
    weight_decay: float = described("weight decay at the first step", 0.04, at_least=0)
    weight_decay_end: float | None = described(
        "weight decay at the last step of a cosine schedule; null: constant", None, at_least=0
    )
    adam_betas: list[float] = described("AdamW betas", [0.9, 0.999], at_least=0, below=1)
    clip_grad_norm: float | None = described(
        "maximum gradient norm, applied separately to the backbone and each head; null: no clipping", 3.0, above=0
    )
    layerwise_decay: float = described(
        "factor by which the learning rate falls from each block to the one before it", 0.9, above=0
    )
    patch_embed_lr_mult: float = described("extra learning-rate multiplier for the patch embedding", 0.2, at_least=0)
    freeze_last_layer_steps: int = described(
        "number of first steps in which the prototypes are frozen", 1250, at_least=0
    )
    head_warmup_steps: int | None = described(
        "number of first steps that train only the heads, with the backbone frozen; null: a tenth of the steps if "
        "init_from has no heads, otherwise 0",
        None,
        at_least=0,
    )
    momentum: float = described("momentum of the EMA teacher at the first step", 0.992, at_least=0, at_most=1)
    momentum_end: float | None = described(
        "momentum at the last step of a cosine schedule; null: constant", None, at_least=0, at_most=1
    )
    teacher_temperature_start: float = described("teacher temperature at the first step", 0.04, above=0)
    teacher_temperature: float = described("teacher temperature after its warm-up", 0.07, above=0)
    teacher_temperature_warmup_steps: int = described(
        "steps of linear warm-up of the teacher temperature", 37500, at_least=0
    )
    local_weight: float = described(
        "additional weight of the local crops in the image loss at the first step", 1.0, at_least=0
    )
    local_weight_end: float | None = described(
        "local_weight at the last step of a cosine schedule; null: constant", None, at_least=0
    )

    def validate(self) -> None:
        require(len(self.adam_betas) == 2, "adam_betas", self.adam_betas, "two numbers from 0 to below 1")
        for name in (
            "lr_warmup_steps",
            "teacher_temperature_warmup_steps",
            "freeze_last_layer_steps",
            "head_warmup_steps",
        ):
            value = getattr(self, name)
            good = value is None or value <= self.steps
            require(good, name, value, f"from 0 to steps ({self.steps})")


@dataclass
class RunArguments:
    """Where a run writes, how often, and how it is resumed."""

    output_dir: str = described(
        "output folder for the recipe, metrics, checkpoints and the exported model", "outputs/pretrain", common=True
    )
    seed: int = described(
        "seed of the weights, the data order, crops and masks", 0, at_least=0, at_most=2**32 - 1, common=True
    )
    resume: bool = described("continue from the newest checkpoint in output_dir", False, common=True)
    overwrite: bool = described("delete the previous run in output_dir and start again", False, common=True)
    log_every: int = described("steps between two lines of metrics.jsonl", 10, at_least=1)
    save_every: int = described("steps between two checkpoints", 500, at_least=1, common=True)
    keep_checkpoints: int = described("number of newest checkpoints to keep", 2, at_least=1)
    milestone_every: int | None = described(
        "keep checkpoints at multiples of this many steps permanently (a Gram teacher needs an early one); null: none",
        None,
        at_least=1,
    )
    probe_every: int = described(
        "steps between two evaluations of the EMA teacher on the held-out images", 500, at_least=1
    )
    activation_checkpointing: bool = described(
        "recompute the student's blocks in the backward pass to save memory", False
    )
    report_to: Literal["none", "tensorboard", "trackio"] = described(
        "experiment tracker to which metrics are also sent", "none"
    )
    mixed_precision: Literal["no", "bf16", "fp8"] | None = described(
        "compute precision; fp8: linear layers of the blocks in fp8, the rest in bf16 (needs torchao and a GPU with "
        "fp8); null: as in Accelerate's launch configuration (default: no)",
        None,
        common=True,
    )

    def validate(self) -> None:
        every = self.milestone_every
        good = every is None or every % self.save_every == 0
        require(good, "milestone_every", every, f"null or a multiple of save_every ({self.save_every})")
        good = self.probe_every % self.log_every == 0
        require(good, "probe_every", self.probe_every, f"a multiple of log_every ({self.log_every})")
        tracker = self.report_to
        good = tracker == "none" or find_spec(tracker) is not None
        require(good, "report_to", tracker, f"none, or after pip install {tracker}")
        both = self.resume and self.overwrite
        require(not both, "resume", self.resume, "either resume or overwrite, not both")


class RunRecipe(Recipe):
    """A recipe with the group of fields that every kind of training run has."""

    run: RunArguments


@dataclass
class PretrainRecipe(RunRecipe):
    """All fields of a pretraining recipe, in the groups defined above."""

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    crops: CropArguments = field(default_factory=CropArguments)
    objective: ObjectiveArguments = field(default_factory=ObjectiveArguments)
    gram: GramArguments = field(default_factory=GramArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    run: RunArguments = field(default_factory=RunArguments)

    def validate(self) -> "PretrainRecipe":
        super().validate()
        gram, crops = self.gram, self.crops
        anchored = gram.gram_teacher != "none"
        if crops.crop_size_sets:
            why = "null with crop_size_sets, whose third numbers are the Gram crops"
            require(gram.gram_crop_size is None, "gram_crop_size", gram.gram_crop_size, why)
        for global_size, _, gram_size in crops.sizes(gram.gram_crop_size):
            name = "crop_size_sets" if crops.crop_size_sets else "gram_crop_size"
            if anchored and gram_size is not None:
                require(
                    gram_size >= global_size, name, gram_size, f"at least the size of the global crops ({global_size})"
                )
        if anchored:
            steps = self.optimization.steps
            good = gram.gram_start_step + gram.gram_ramp_steps < steps
            what = "a start and ramp that end before the last step"
            require(good, "gram_start_step", gram.gram_start_step, f"{what} ({steps})")
        return self
