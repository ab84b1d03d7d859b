"""The fields of a recipe: everything that defines a training run, typed, with its default and its bounds."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal


def _help(text: str, default=dataclasses.MISSING, **kwargs):
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text, **kwargs})
    return field(default=default, metadata={"help": text, **kwargs})


def _require(condition: bool, name: str, value, accepted: str) -> None:
    if not condition:
        raise ValueError(f"{name}: got {value!r}, accepted: {accepted}")


@dataclass
class ModelArguments:
    """The student: a named size or somebody's weights, and overrides of single fields of its configuration."""

    init_from: str | None = _help(
        "weights to go on from: a model folder (ours or stock), a hub id, or a .pth or .safetensors file of Meta's", None
    )
    init_heads: bool = _help("with init_from, take its heads and their sizes if it has them", True)
    size: str | None = _help(
        "named size: vits16, vits16plus, vitb16, vitl16, vith16plus or vit7b16; null: vits16, or init_from's own", None
    )
    lora_rank: int | None = _help("train adapters of this rank on frozen blocks (LoRA), and the heads; null: everything", None)
    lora_alpha: float = _help("LoRA's scale is lora_alpha / lora_rank", 16.0)
    patch_size: int | None = _help("side of a patch in pixels; null keeps the size's own", None)
    hidden_size: int | None = _help("width D; null keeps the size's own", None)
    num_hidden_layers: int | None = _help("number of blocks; null keeps the size's own", None)
    num_attention_heads: int | None = _help("attention heads; null keeps the size's own", None)
    intermediate_size: int | None = _help("hidden width of the MLP; null keeps the size's own", None)
    num_register_tokens: int | None = _help("register tokens R; null keeps the size's own", None)
    key_bias: bool | None = _help("train a bias on the keys; null keeps the size's own (none)", None)
    layerscale_value: float | None = _help("initial layer scale; null keeps the size's own (1e-5)", None)
    layer_norm_eps: float | None = _help("epsilon of every LayerNorm; null keeps the size's own (1e-5)", None)
    untie_global_and_local_cls_norm: bool = _help("own final norm for cls and registers of local crops", False)
    drop_path_rate: float = _help("share of a batch's rows each residual branch skips", 0.0)
    pos_embed_shift: float | None = _help("RoPE augmentation: shift coordinates by up to this much", None)
    pos_embed_jitter: float | None = _help("RoPE augmentation: scale each axis by up to this factor", None)
    pos_embed_rescale: float | None = _help("RoPE augmentation: scale both axes by up to this factor", None)
    dino_head_num_prototypes: int = _help("prototypes K of the image head", 65536)
    dino_head_hidden_size: int = _help("hidden width of the image head", 2048)
    dino_head_bottleneck_size: int = _help("bottleneck width of the image head", 256)
    ibot_head_num_prototypes: int = _help("prototypes K of the patch head", 65536)
    ibot_head_hidden_size: int = _help("hidden width of the patch head", 2048)
    ibot_head_bottleneck_size: int = _help("bottleneck width of the patch head", 256)
    head_num_layers: int = _help("linear layers of each head before the prototypes", 3)
    head_initializer_range: float = _help("standard deviation of the heads' initial weights", 0.02)

    def validate(self) -> None:
        _require(self.lora_rank is None or self.lora_rank >= 1, "lora_rank", self.lora_rank, "null or at least 1")
        good = self.lora_rank is None or self.init_from is not None
        _require(good, "lora_rank", self.lora_rank, "null without init_from: adapters need weights worth keeping")
        _require(0 <= self.drop_path_rate < 1, "drop_path_rate", self.drop_path_rate, "0 to below 1")
        for name in ("pos_embed_jitter", "pos_embed_rescale"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "null or a factor of at least 1")
        _require(
            self.pos_embed_shift is None or self.pos_embed_shift >= 0,
            "pos_embed_shift",
            self.pos_embed_shift,
            "null or at least 0",
        )
        parts = ("num_prototypes", "hidden_size", "bottleneck_size")
        for name in (*(f"{head}_head_{part}" for head in ("dino", "ibot") for part in parts), "head_num_layers"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")


@dataclass
class DataArguments:
    """Where the images come from."""

    data: list[str] = _help(
        "sources, each of them scenes, scenes:crowded, an image folder, Parquet files, WebDataset tars (paths, patterns or "
        "URLs), or a hub data set id",
        ["scenes"],
    )
    data_weights: list[float] = _help("how often each source is drawn; empty: equally", [])
    homogeneous_share: float = _help("share of the steps that are drawn wholly from one source (DINOv3: 0.1)", 0.0)
    split: str = _help("split to train on", "train")
    image_column: str | None = _help("column that holds the images; null takes the only image column", None)
    streaming: bool = _help("read as a stream instead of preparing the whole data set first", True)
    num_images: int = _help("how many scenes to render as the training set (data: scenes only)", 50000)
    shuffle_block: int = _help("rows shuffled together, read ahead by each reader", 4096)
    max_bad_images: float = _help("abort when more than this share of the images read cannot be decoded", 0.1)
    probe_data: str | None = _help(
        "held-out images on which the teacher is measured during training; null: the scenes' test split when training on "
        "scenes, else nothing",
        None,
    )
    probe_split: str = _help("split of the held-out images", "test")
    probe_label_column: str | None = _help("column of their classes, for k-NN; null: label, if there is one", None)
    probe_images: int = _help("held-out images read, four fifths of them as the k-NN bank", 1000)
    num_workers: int = _help("worker processes that decode and augment, per training process", 1)

    def validate(self) -> None:
        _require(len(self.data) >= 1, "data", self.data, "at least one source")
        weights = self.data_weights
        good = not weights or (len(weights) == len(self.data) and min(weights) > 0)
        _require(good, "data_weights", weights, f"empty, or a number above 0 for each of the {len(self.data)} sources")
        _require(0 <= self.homogeneous_share <= 1, "homogeneous_share", self.homogeneous_share, "a share from 0 to 1")
        _require(self.num_images >= 1, "num_images", self.num_images, "a whole number of at least 1")
        _require(self.shuffle_block >= 1, "shuffle_block", self.shuffle_block, "a whole number of at least 1")
        _require(0 <= self.max_bad_images <= 1, "max_bad_images", self.max_bad_images, "a share from 0 to 1")
        _require(self.probe_images >= 20, "probe_images", self.probe_images, "a whole number of at least 20")
        _require(self.num_workers >= 0, "num_workers", self.num_workers, "a whole number of at least 0")


@dataclass
class CropArguments:
    """Crops, their augmentation and the masks of the patch objective."""

    global_crop_size: int = _help("side of the two global crops in pixels", 224)
    local_crop_size: int = _help("side of the local crops in pixels", 96)
    local_crops: int = _help("number L of local crops", 8)
    global_crop_scale: list[float] = _help("smallest and largest share of the image a global crop covers", [0.32, 1.0])
    local_crop_scale: list[float] = _help("smallest and largest share of the image a local crop covers", [0.05, 0.32])
    horizontal_flips: bool = _help("flip half of the crops", True)
    color_jitter_probability: float = _help("share of the crops with colour jitter", 0.8)
    color_jitter: list[float] = _help("strength of brightness, contrast, saturation and hue", [0.4, 0.4, 0.2, 0.1])
    grayscale_probability: float = _help("share of the crops turned grey", 0.2)
    # The paper prints 1.0 / 0.1 / 0.5; the published weights were trained with 0 / 0.9 / 0.5.
    blur_probability: list[float] = _help("share blurred: first global, second global, local crops", [0.0, 0.9, 0.5])
    blur_kernel_size: int = _help("kernel of the blur in pixels, odd; sigma is drawn from .1 to 2", 9)
    solarize_probability: float = _help("share of the second global crops that is solarized", 0.2)
    image_mean: list[float] = _help("mean of the normalisation, on the 0..1 scale", [0.485, 0.456, 0.406])
    image_std: list[float] = _help("deviation of the normalisation, on the 0..1 scale", [0.229, 0.224, 0.225])
    mask_probability: float = _help("share of the global crops that is masked", 0.5)
    mask_ratio: list[float] = _help("smallest and largest share of patches masked in a masked crop", [0.1, 0.5])
    crop_size_sets: list[list[int]] = _help(
        "sizes [global, local, gram] one of which is drawn each step, in place of the sizes above; empty: always those",
        [],
    )
    crop_size_probabilities: list[float] = _help("how often each set of crop sizes is drawn; empty: equally", [])

    def sizes(self, gram_crop_size: int | None) -> list[tuple[int, int, int | None]]:
        """Return every (global, local, gram) size of the run; gram is None where the Gram teacher has no own crops."""
        if self.crop_size_sets:
            return [(sizes[0], sizes[1], sizes[2]) for sizes in self.crop_size_sets]
        return [(self.global_crop_size, self.local_crop_size, gram_crop_size)]

    def validate(self) -> None:
        for sizes in self.crop_size_sets:
            good = len(sizes) == 3 and min(sizes) >= 1
            _require(good, "crop_size_sets", sizes, "three sizes in pixels: global, local and gram crops")
        shares = self.crop_size_probabilities
        good = not shares or (len(shares) == len(self.crop_size_sets) and min(shares) >= 0 and sum(shares) > 0)
        _require(good, "crop_size_probabilities", shares, f"empty, or a share for each of the {len(self.crop_size_sets)} sets")
        _require(self.local_crops >= 0, "local_crops", self.local_crops, "a whole number of at least 0")
        for name in ("global_crop_size", "local_crop_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of pixels, at least 1")
        for name in ("global_crop_scale", "local_crop_scale", "mask_ratio"):
            value = getattr(self, name)
            good = len(value) == 2 and 0 <= value[0] <= value[1] <= 1 and value[1] > 0
            _require(good, name, value, "two shares, the smaller first, from 0 to 1")
        for name, length in (("color_jitter", 4), ("blur_probability", 3), ("image_mean", 3), ("image_std", 3)):
            _require(len(getattr(self, name)) == length, name, getattr(self, name), f"{length} numbers")
        _require(min(self.image_std) > 0, "image_std", self.image_std, "numbers above 0")
        _require(
            max(self.color_jitter[:3]) <= 1 and min(self.color_jitter) >= 0,
            "color_jitter",
            self.color_jitter,
            "strengths from 0 to 1",
        )
        _require(
            self.color_jitter[3] <= 0.5,
            "color_jitter",
            self.color_jitter,
            "a hue strength (fourth number) of at most .5",
        )
        probabilities = [
            "color_jitter_probability",
            "grayscale_probability",
            "solarize_probability",
            "mask_probability",
        ]
        for name in probabilities:
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share from 0 to 1")
        good = min(self.blur_probability) >= 0 and max(self.blur_probability) <= 1
        _require(good, "blur_probability", self.blur_probability, "shares from 0 to 1")
        good = self.blur_kernel_size % 2 == 1 and self.blur_kernel_size >= 1
        _require(good, "blur_kernel_size", self.blur_kernel_size, "an odd number of pixels")


@dataclass
class ObjectiveArguments:
    """Weights and temperatures of the objective (DINOv3, section 3)."""

    dino_weight: float = _help("weight of the image objective", 1.0)
    ibot_weight: float = _help("weight of the patch objective", 1.0)
    koleo_weight: float = _help("weight of KoLeo", 0.1)
    student_temperature: float = _help("temperature of the student's softmax", 0.1)
    ignore_diagonal: bool = _help("leave out pairs of a global crop with itself", True)
    sinkhorn_iterations: int = _help("Sinkhorn-Knopp iterations on the teacher's logits", 3)
    koleo_topk: int = _help("nearest neighbours that KoLeo pushes away", 1)
    koleo_distributed: bool = _help("look for KoLeo neighbours over all processes instead of the local batch", False)
    koleo_group_size: int | None = _help(
        "rows of the gathered batch among which KoLeo looks (distributed only); null: all", None
    )

    def validate(self) -> None:
        for name in ("dino_weight", "ibot_weight", "koleo_weight"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a weight of at least 0")
        _require(self.student_temperature > 0, "student_temperature", self.student_temperature, "a number above 0")
        for name in ("sinkhorn_iterations", "koleo_topk"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        grouped = self.koleo_group_size is None or self.koleo_distributed
        _require(grouped, "koleo_group_size", self.koleo_group_size, "null unless koleo_distributed is true")


@dataclass
class GramArguments:
    """Gram anchoring: which earlier teacher holds the patch similarities in place, when and how much (section 4.2)."""

    gram_teacher: Literal["none", "checkpoint", "ema_copy", "ema"] = _help(
        "none: no anchoring; checkpoint: the weights of gram_checkpoint; ema_copy: a copy of the EMA teacher taken at "
        "gram_start_step; ema: the EMA teacher itself",
        "none",
    )
    gram_checkpoint: str | None = _help("model folder or hub id of the Gram teacher (gram_teacher: checkpoint)", None)
    gram_weight: float = _help("weight of the Gram loss", 2.0)
    gram_start_step: int = _help("first step with the Gram loss", 0)
    gram_ramp_steps: int = _help("steps over which its weight rises from 0, by a cosine", 0)
    gram_first_update: int = _help("from this step on the Gram teacher may be refreshed from the EMA teacher", 0)
    gram_update_every: int | None = _help("steps between two refreshes; null: never", None)
    gram_max_updates: int | None = _help("refreshes at most; null: no limit", None)
    gram_crop_size: int | None = _help(
        "side of the Gram teacher's own undistorted crops; null: it sees the global crops as they are", None
    )
    gram_normalize: bool = _help("compare cosines instead of products", True)
    gram_per_image: bool = _help("compare patches within an image, instead of within the local batch", True)
    gram_clamp: Literal["both", "teacher"] | None = _help(
        "set negative similarities of both sides, or of the teacher, to 0; null: neither", None
    )

    def validate(self) -> None:
        kind = self.gram_teacher
        _require(self.gram_weight >= 0, "gram_weight", self.gram_weight, "a weight of at least 0")
        for name in ("gram_start_step", "gram_ramp_steps", "gram_first_update"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a whole number of at least 0")
        for name in ("gram_update_every", "gram_max_updates", "gram_crop_size"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "null or a whole number of at least 1")
        _require(
            (self.gram_checkpoint is not None) == (kind == "checkpoint"),
            "gram_checkpoint",
            self.gram_checkpoint,
            "a model folder or hub id with gram_teacher: checkpoint, else null",
        )
        if kind == "none":
            for name in ("gram_update_every", "gram_crop_size"):
                _require(getattr(self, name) is None, name, getattr(self, name), "null while gram_teacher is none")
        if kind == "ema":
            why = "null with gram_teacher: ema, whose tokens of the global crops are at hand and always new"
            for name in ("gram_update_every", "gram_crop_size"):
                _require(getattr(self, name) is None, name, getattr(self, name), why)
        if self.gram_update_every is None:
            why = "null while gram_update_every is null: nothing is refreshed"
            _require(self.gram_max_updates is None, "gram_max_updates", self.gram_max_updates, why)
        elif self.gram_first_update < self.gram_start_step:
            why = f"at least gram_start_step ({self.gram_start_step}): before it nothing is anchored"
            _require(False, "gram_first_update", self.gram_first_update, why)


@dataclass
class OptimizationArguments:
    """AdamW, its schedules and parameter groups (DINOv3, section 3 and appendix C)."""

    steps: int = _help("optimizer steps of the run", 125000)
    batch_size: int = _help("images per process and forward pass", 64)
    gradient_accumulation_steps: int = _help(
        "forward passes summed into one step; Sinkhorn-Knopp and KoLeo still see one pass at a time", 1
    )
    lr: float = _help("peak learning rate, before lr_scaling", 1e-3)
    lr_scaling: Literal["none", "sqrt_wrt_1024"] = _help(
        "sqrt_wrt_1024 multiplies lr and lr_end by 4 sqrt(global batch / 1024)", "sqrt_wrt_1024"
    )
    lr_end: float | None = _help(
        "learning rate at the last step, reached by a cosine; null keeps the peak (DINOv3's choice)", None
    )
    lr_warmup_steps: int = _help("steps of linear warm-up of the learning rate", 12500)
    weight_decay: float = _help("weight decay at the first step", 0.04)
    weight_decay_end: float | None = _help(
        "weight decay at the last step, reached by a cosine; null keeps it constant", None
    )
    adam_betas: list[float] = _help("AdamW betas", [0.9, 0.999])
    clip_grad_norm: float | None = _help("largest gradient norm of each network (backbone and both heads apart)", 3.0)
    layerwise_decay: float = _help("learning-rate multiplier from each block to the one below", 0.9)
    patch_embed_lr_mult: float = _help("further multiplier for the patch embedding", 0.2)
    freeze_last_layer_steps: int = _help("first steps in which the prototypes do not move", 1250)
    head_warmup_steps: int | None = _help(
        "first steps in which only the heads learn, the backbone at rest; null: a tenth of the steps if init_from brings "
        "no heads, else none",
        None,
    )
    momentum: float = _help("EMA momentum of the teacher at the first step", 0.992)
    momentum_end: float | None = _help(
        "EMA momentum at the last step, reached by a cosine; null keeps it constant", None
    )
    teacher_temperature_start: float = _help("teacher temperature at the first step", 0.04)
    teacher_temperature: float = _help("teacher temperature after its warm-up", 0.07)
    teacher_temperature_warmup_steps: int = _help("steps of linear warm-up of the teacher temperature", 37500)
    local_weight: float = _help("extra weight of the local-crop part of the image objective at the first step", 1.0)
    local_weight_end: float | None = _help(
        "its value at the last step, reached by a cosine; null keeps it constant", None
    )

    def validate(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation_steps"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        for name in (
            "lr",
            "weight_decay",
            "lr_warmup_steps",
            "freeze_last_layer_steps",
            "teacher_temperature_warmup_steps",
        ):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("momentum", "momentum_end"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, name, value, "from 0 to 1")
        for name in ("teacher_temperature_start", "teacher_temperature", "layerwise_decay"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        good = len(self.adam_betas) == 2 and all(0 <= beta < 1 for beta in self.adam_betas)
        _require(good, "adam_betas", self.adam_betas, "two numbers from 0 to below 1")
        _require(
            self.clip_grad_norm is None or self.clip_grad_norm > 0,
            "clip_grad_norm",
            self.clip_grad_norm,
            "null or a number above 0",
        )
        for name in (
            "lr_warmup_steps",
            "teacher_temperature_warmup_steps",
            "freeze_last_layer_steps",
            "head_warmup_steps",
        ):
            value = getattr(self, name)
            good = value is None or 0 <= value <= self.steps
            _require(good, name, value, f"from 0 to steps ({self.steps})")


@dataclass
class RunArguments:
    """Where a run writes, how often, and how it goes on after a stop."""

    output_dir: str = _help(
        "folder of the run: recipe, metrics, checkpoints and the exported model", "outputs/pretrain"
    )
    seed: int = _help("seed of the weights, the data order, crops and masks", 0)
    resume: bool = _help("go on from the newest checkpoint in output_dir", False)
    overwrite: bool = _help("delete the run that output_dir holds and start anew", False)
    log_every: int = _help("steps between two lines of metrics.jsonl", 10)
    save_every: int = _help("steps between two checkpoints", 500)
    keep_checkpoints: int = _help("newest checkpoints kept", 2)
    milestone_every: int | None = _help(
        "checkpoints at multiples of this many steps are kept for good (a Gram teacher is an early one); null: none", None
    )
    probe_every: int = _help("steps between two measurements of the EMA teacher's features on held-out images", 500)
    activation_checkpointing: bool = _help("recompute the student's blocks in the backward pass, to save memory", False)
    report_to: Literal["none", "tensorboard", "trackio"] = _help("tracker that also gets the metrics", "none")
    mixed_precision: Literal["no", "bf16"] | None = _help(
        "compute precision; null takes Accelerate's (no, unless launched otherwise)", None
    )

    def validate(self) -> None:
        for name in ("log_every", "save_every", "keep_checkpoints", "probe_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        every = self.milestone_every
        good = every is None or (every >= self.save_every and every % self.save_every == 0)
        _require(good, "milestone_every", every, f"null or a multiple of save_every ({self.save_every})")
        good = self.probe_every % self.log_every == 0
        _require(good, "probe_every", self.probe_every, f"a multiple of log_every ({self.log_every})")
        both = self.resume and self.overwrite
        _require(not both, "resume", self.resume, "resume or overwrite, not both")


@dataclass
class PretrainRecipe:
    """All fields of a pretraining run, in the groups above."""

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    crops: CropArguments = field(default_factory=CropArguments)
    objective: ObjectiveArguments = field(default_factory=ObjectiveArguments)
    gram: GramArguments = field(default_factory=GramArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    run: RunArguments = field(default_factory=RunArguments)

    def validate(self) -> "PretrainRecipe":
        for group in dataclasses.fields(self):
            getattr(self, group.name).validate()
        gram, crops = self.gram, self.crops
        anchored = gram.gram_teacher != "none"
        if crops.crop_size_sets:
            why = "null with crop_size_sets, whose third numbers are the Gram crops"
            _require(gram.gram_crop_size is None, "gram_crop_size", gram.gram_crop_size, why)
        for global_size, local_size, gram_size in crops.sizes(gram.gram_crop_size):
            name = "crop_size_sets" if crops.crop_size_sets else "gram_crop_size"
            if anchored and gram_size is not None:
                _require(gram_size >= global_size, name, gram_size, f"at least the global crops ({global_size})")
        if anchored:
            steps = self.optimization.steps
            good = gram.gram_start_step + gram.gram_ramp_steps < steps
            what = "a start and ramp that end before the last step"
            _require(good, "gram_start_step", gram.gram_start_step, f"{what} ({steps})")
        return self

    def as_flat_dict(self) -> dict:
        """Return every field of every group in one dictionary, as a recipe file holds them."""
        return {key: value for group in dataclasses.asdict(self).values() for key, value in group.items()}
