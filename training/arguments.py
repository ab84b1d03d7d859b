"""The fields of a recipe: everything that defines a training run, typed, with its default and its bounds."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from dinov3_hf.recipe import Recipe, described, require

from .gram_arguments import GramArguments
from .source_arguments import SourceArguments


# Those of `Dinov3Config.from_size`, written out here because its module imports torch.
Size = Literal["vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16"]


@dataclass
class ModelArguments:
    """The student: a named size or somebody's weights, and overrides of single fields of its configuration."""

    init_from: str | None = described(
        "weights to go on from: a model folder (ours or stock), a hub id, or a .pth or .safetensors file of Meta's",
        None,
        common=True,
    )
    init_heads: bool = described("with init_from, take its heads and their sizes if it has them", True)
    size: Size | None = described(
        "named size; null: vits16, or init_from's own",
        None,
        common=True,
    )
    lora_rank: int | None = described(
        "train adapters of this rank on frozen blocks (LoRA), and the heads; null: everything", None, at_least=1
    )
    lora_alpha: float = described("LoRA's scale is lora_alpha / lora_rank", 16.0, above=0)
    patch_size: int | None = described("side of a patch in pixels; null keeps the size's own", None, at_least=1)
    hidden_size: int | None = described("width D; null keeps the size's own", None, at_least=1)
    num_hidden_layers: int | None = described("number of blocks; null keeps the size's own", None, at_least=1)
    num_attention_heads: int | None = described("attention heads; null keeps the size's own", None, at_least=1)
    intermediate_size: int | None = described("hidden width of the MLP; null keeps the size's own", None, at_least=1)
    num_register_tokens: int | None = described("register tokens R; null keeps the size's own", None, at_least=0)
    key_bias: bool | None = described("train a bias on the keys; null keeps the size's own (none)", None)
    layerscale_value: float | None = described(
        "initial layer scale; null keeps the size's own (1e-5)", None, at_least=0
    )
    layer_norm_eps: float | None = described(
        "epsilon of every LayerNorm; null keeps the size's own (1e-5)", None, above=0
    )
    untie_global_and_local_cls_norm: bool = described("own final norm for cls and registers of local crops", False)
    drop_path_rate: float = described("share of a batch's rows each residual branch skips", 0.0, at_least=0, below=1)
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
        require(good, "lora_rank", self.lora_rank, "null without init_from: adapters need weights worth keeping")


@dataclass
class DataArguments(SourceArguments):
    """Where the images come from, and those held out to watch the run."""

    probe_data: str | None = described(
        "held-out images on which the teacher is measured during training; null: the scenes' test split when training on "
        "scenes, else nothing",
        None,
    )
    probe_split: str = described("split of the held-out images", "test")
    probe_label_column: str | None = described("column of their classes, for k-NN; null: label, if there is one", None)
    probe_images: int = described("held-out images read, four fifths of them as the k-NN bank", 1000, at_least=20)


@dataclass
class CropArguments:
    """Crops, their augmentation and the masks of the patch objective."""

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
    color_jitter_probability: float = described("share of the crops with colour jitter", 0.8, at_least=0, at_most=1)
    color_jitter: list[float] = described(
        "strength of brightness, contrast, saturation and hue", [0.4, 0.4, 0.2, 0.1], at_least=0, at_most=1
    )
    grayscale_probability: float = described("share of the crops turned grey", 0.2, at_least=0, at_most=1)
    # The paper prints 1.0 / 0.1 / 0.5; the published weights were trained with 0 / 0.9 / 0.5.
    blur_probability: list[float] = described(
        "share blurred: first global, second global, local crops", [0.0, 0.9, 0.5], at_least=0, at_most=1
    )
    blur_kernel_size: int = described("kernel of the blur in pixels, odd; sigma is drawn from .1 to 2", 9, at_least=1)
    solarize_probability: float = described(
        "share of the second global crops that is solarized", 0.2, at_least=0, at_most=1
    )
    image_mean: list[float] = described("mean of the normalisation, on the 0..1 scale", [0.485, 0.456, 0.406])
    image_std: list[float] = described(
        "deviation of the normalisation, on the 0..1 scale", [0.229, 0.224, 0.225], above=0
    )
    mask_probability: float = described("share of the global crops that is masked", 0.5, at_least=0, at_most=1)
    mask_ratio: list[float] = described(
        "smallest and largest share of patches masked in a masked crop", [0.1, 0.5], at_least=0, at_most=1
    )
    crop_size_sets: list[list[int]] = described(
        "sizes [global, local, gram] one of which is drawn each step, in place of the sizes above; empty: always those",
        [],
        at_least=1,
    )
    crop_size_probabilities: list[float] = described(
        "how often each set of crop sizes is drawn; empty: equally", [], at_least=0
    )

    def sizes(self, gram_crop_size: int | None) -> list[tuple[int, int, int | None]]:
        """Return every (global, local, gram) size of the run; gram is None where the Gram teacher has no own crops."""
        if self.crop_size_sets:
            return [(sizes[0], sizes[1], sizes[2]) for sizes in self.crop_size_sets]
        return [(self.global_crop_size, self.local_crop_size, gram_crop_size)]

    def check_patches(self, patch_size: int, gram_crop_size: int | None) -> None:
        """Refuse crops of no whole number of patches, except local crops of sets: the model cuts off their rest.

        Of the published sets one has local crops of 10.5 patches.
        """
        names = ["global_crop_size", "local_crop_size", "gram_crop_size"]
        if self.crop_size_sets:
            names = ["crop_size_sets", None, "crop_size_sets"]
        for sizes in self.sizes(gram_crop_size):
            for name, size in zip(names, sizes, strict=True):
                good = name is None or size is None or size % patch_size == 0
                require(good, name, size, f"a multiple of the patch size ({patch_size})")

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
    koleo_weight: float = described("weight of KoLeo", 0.1, at_least=0)
    student_temperature: float = described("temperature of the student's softmax", 0.1, above=0)
    ignore_diagonal: bool = described("leave out pairs of a global crop with itself", True)
    sinkhorn_iterations: int = described("Sinkhorn-Knopp iterations on the teacher's logits", 3, at_least=1)
    koleo_topk: int = described("nearest neighbours that KoLeo pushes away", 1, at_least=1)
    koleo_distributed: bool = described(
        "look for KoLeo neighbours over all processes instead of the local batch", False
    )
    koleo_group_size: int | None = described(
        "rows of the gathered batch among which KoLeo looks (distributed only); null: all", None, at_least=1
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
        "forward passes summed into one step; Sinkhorn-Knopp and KoLeo still see one pass at a time",
        1,
        at_least=1,
        common=True,
    )
    lr: float = described("peak learning rate, before lr_scaling", 1e-3, at_least=0, common=True)
    lr_scaling: Literal["none", "sqrt_wrt_1024"] = described(
        "sqrt_wrt_1024 multiplies lr and lr_end by 4 sqrt(global batch / 1024)", "sqrt_wrt_1024"
    )
    lr_end: float | None = described(
        "learning rate at the last step, reached by a cosine; null keeps the peak (DINOv3's choice)", None, at_least=0
    )
    lr_warmup_steps: int = described("steps of linear warm-up of the learning rate", 12500, at_least=0, common=True)
    weight_decay: float = described("weight decay at the first step", 0.04, at_least=0)
    weight_decay_end: float | None = described(
        "weight decay at the last step, reached by a cosine; null keeps it constant", None, at_least=0
    )
    adam_betas: list[float] = described("AdamW betas", [0.9, 0.999], at_least=0, below=1)
    clip_grad_norm: float | None = described(
        "largest gradient norm of each network (backbone and both heads apart)", 3.0, above=0
    )
    layerwise_decay: float = described("learning-rate multiplier from each block to the one below", 0.9, above=0)
    patch_embed_lr_mult: float = described("further multiplier for the patch embedding", 0.2, at_least=0)
    freeze_last_layer_steps: int = described("first steps in which the prototypes do not move", 1250, at_least=0)
    head_warmup_steps: int | None = described(
        "first steps in which only the heads learn, the backbone at rest; null: a tenth of the steps if init_from brings "
        "no heads, else none",
        None,
        at_least=0,
    )
    momentum: float = described("EMA momentum of the teacher at the first step", 0.992, at_least=0, at_most=1)
    momentum_end: float | None = described(
        "EMA momentum at the last step, reached by a cosine; null keeps it constant", None, at_least=0, at_most=1
    )
    teacher_temperature_start: float = described("teacher temperature at the first step", 0.04, above=0)
    teacher_temperature: float = described("teacher temperature after its warm-up", 0.07, above=0)
    teacher_temperature_warmup_steps: int = described(
        "steps of linear warm-up of the teacher temperature", 37500, at_least=0
    )
    local_weight: float = described(
        "extra weight of the local-crop part of the image objective at the first step", 1.0, at_least=0
    )
    local_weight_end: float | None = described(
        "its value at the last step, reached by a cosine; null keeps it constant", None, at_least=0
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
    """Where a run writes, how often, and how it goes on after a stop."""

    output_dir: str = described(
        "folder of the run: recipe, metrics, checkpoints and the exported model", "outputs/pretrain", common=True
    )
    seed: int = described(
        "seed of the weights, the data order, crops and masks", 0, at_least=0, at_most=2**32 - 1, common=True
    )
    resume: bool = described("go on from the newest checkpoint in output_dir", False, common=True)
    overwrite: bool = described("delete the run that output_dir holds and start anew", False, common=True)
    log_every: int = described("steps between two lines of metrics.jsonl", 10, at_least=1)
    save_every: int = described("steps between two checkpoints", 500, at_least=1, common=True)
    keep_checkpoints: int = described("newest checkpoints kept", 2, at_least=1)
    milestone_every: int | None = described(
        "checkpoints at multiples of this many steps are kept for good (a Gram teacher is an early one); null: none",
        None,
        at_least=1,
    )
    probe_every: int = described(
        "steps between two measurements of the EMA teacher's features on held-out images", 500, at_least=1
    )
    activation_checkpointing: bool = described(
        "recompute the student's blocks in the backward pass, to save memory", False
    )
    report_to: Literal["none", "tensorboard", "trackio"] = described("tracker that also gets the metrics", "none")
    mixed_precision: Literal["no", "bf16", "fp8"] | None = described(
        "compute precision, fp8 for the blocks' linear layers and bf16 for the rest (needs torchao and a GPU that has it); "
        "null takes Accelerate's (no, unless launched otherwise)",
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
        require(not both, "resume", self.resume, "resume or overwrite, not both")


@dataclass
class PretrainRecipe(Recipe):
    """All fields of a pretraining run, in the groups above."""

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
                require(gram_size >= global_size, name, gram_size, f"at least the global crops ({global_size})")
        if anchored:
            steps = self.optimization.steps
            good = gram.gram_start_step + gram.gram_ramp_steps < steps
            what = "a start and ramp that end before the last step"
            require(good, "gram_start_step", gram.gram_start_step, f"{what} ({steps})")
        return self
