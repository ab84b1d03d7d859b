"""The fields of a text alignment recipe, with their types, defaults and bounds."""

from dataclasses import dataclass, field

from dinov3_hf.recipe import described, require
from dinov3_hf.training.arguments import RunArguments, RunRecipe
from dinov3_hf.training.source_arguments import SourceArguments


@dataclass
class TowerArguments:
    """The frozen backbone, the blocks trained on it, and the text tower (defaults: the released model's sizes)."""

    backbone: str | None = described(
        "frozen backbone: a model folder (saved by this package or by transformers), a hub id, or a file in Meta's "
        "layout; null: the small backbone bundled with the package",
        None,
        common=True,
    )
    save_backbone: bool = described(
        "store the backbone's weights in the exported model; false: store only its name", True
    )
    projection_dim: int | None = described(
        "width E of the shared space; null: twice the backbone's width", None, at_least=2
    )
    vision_head_layers: int = described("number of trainable transformer blocks on top of the backbone", 2, at_least=1)
    vision_head_drop_path_rate: float = described(
        "stochastic depth of these blocks: share of the batch for which each residual branch is skipped",
        0.3,
        at_least=0,
        below=1,
    )
    vision_head_layerscale_value: float = described("initial layer scale of these blocks", 1e-5, at_least=0)
    text_hidden_size: int = described("width of the text tower", 1280, at_least=1)
    text_num_hidden_layers: int = described("number of blocks of the text tower", 24, at_least=1)
    text_num_attention_heads: int = described("attention heads of the text tower", 20, at_least=1)
    text_intermediate_size: int = described("hidden width of the MLPs of the text tower", 5120, at_least=1)
    context_length: int = described(
        "maximum text length in tokens, including the start and end tokens", 77, at_least=3
    )
    tokenizer: str = described(
        "clip (CLIP's tokenizer, from open_clip_torch), or a folder with a tokenizer", "clip", common=True
    )
    train_tokenizer: bool = described(
        "train a new tokenizer on the captions first, instead of using tokenizer", False, common=True
    )
    vocab_size: int = described("vocabulary size of a newly trained tokenizer", 4096, at_least=259)
    tokenizer_captions: int = described("number of captions on which a new tokenizer is trained", 20000, at_least=1)

    def validate(self) -> None:
        good = self.text_hidden_size % self.text_num_attention_heads == 0
        accepted = f"a multiple of text_num_attention_heads ({self.text_num_attention_heads})"
        require(good, "text_hidden_size", self.text_hidden_size, accepted)
        width = self.projection_dim
        require(width is None or width % 2 == 0, "projection_dim", width, "null or an even number")
        good = self.save_backbone or self.backbone is not None
        require(good, "save_backbone", self.save_backbone, "true without backbone, because there is no name to save")


@dataclass
class CaptionArguments(SourceArguments):
    """Where the images and their captions come from, and what is done to the images."""

    caption_columns: list[str] = described(
        "columns with a caption or a list of captions, one of which is drawn each time; empty: caption or captions",
        [],
        common=True,
    )
    word_dropout: float = described(
        "share of a caption's words dropped at random, so that single words, as used in prompts, are learned too",
        0.0,
        at_least=0,
        below=1,
    )
    image_size: int | None = described(
        "side of the images in pixels; null: the size in the backbone's image processor", None, at_least=1, common=True
    )
    random_crop_scale: list[float] = described(
        "smallest and largest share of the image covered by a random crop; empty: the whole image, resized",
        [],
        above=0,
        at_most=1,
    )
    cache_features: str | None = described(
        "folder in which the backbone's tokens of every image are cached (only without random_crop_scale); null: none",
        None,
        common=True,
    )
    probe_data: str | None = described(
        "held-out pairs on which retrieval is evaluated during training; null: the test split of the scenes when "
        "training on scenes, otherwise no evaluation",
        None,
    )
    probe_split: str = described("split of the held-out pairs", "test")
    probe_images: int = described("number of held-out pairs", 500, at_least=2)

    def validate(self) -> None:
        super().validate()
        scale = self.random_crop_scale
        good = not scale or (len(scale) == 2 and scale[0] <= scale[1])
        require(good, "random_crop_scale", scale, "empty, or two shares, the smaller first, from 0 to 1")
        good = self.cache_features is None or not scale
        accepted = "null with random_crop_scale, because random crops have different features at every step"
        require(good, "cache_features", self.cache_features, accepted)


@dataclass
class AlignmentArguments:
    """The objective and its optimizer (dino.txt: AdamW, warm-up, cosine to 0)."""

    gram_weight: float = described(
        "weight of a Gram loss that keeps the patch similarities of the new blocks close to the backbone's",
        0.0,
        at_least=0,
    )
    steps: int = described("optimizer steps of the run", 50000, at_least=1, common=True)
    batch_size: int = described("pairs per process and forward pass", 256, at_least=2, common=True)
    gradient_accumulation_steps: int = described(
        "forward passes whose gradients are summed into one step; the loss compares pairs of one pass only",
        1,
        at_least=1,
    )
    lr: float = described("peak learning rate", 7e-4, at_least=0, common=True)
    lr_warmup_steps: int = described("steps of linear warm-up of the learning rate", 2000, at_least=0)
    weight_decay: float = described(
        "weight decay, except for biases, norms, layer scales and the logit scale", 1e-4, at_least=0
    )
    adam_betas: list[float] = described("AdamW betas", [0.9, 0.99], at_least=0, below=1)
    clip_grad_norm: float | None = described("maximum gradient norm; null: no clipping", None, above=0)

    def validate(self) -> None:
        good = self.lr_warmup_steps <= self.steps
        require(good, "lr_warmup_steps", self.lr_warmup_steps, f"from 0 to steps ({self.steps})")
        require(len(self.adam_betas) == 2, "adam_betas", self.adam_betas, "two numbers from 0 to below 1")


@dataclass
class AlignRunArguments(RunArguments):
    """Where a run writes, how often, and how it is resumed."""

    output_dir: str = described(
        "output folder for the recipe, metrics, checkpoints and the exported model", "outputs/align", common=True
    )


@dataclass
class AlignRecipe(RunRecipe):
    """All fields of a text alignment recipe, in the groups defined above."""

    towers: TowerArguments = field(default_factory=TowerArguments)
    data: CaptionArguments = field(default_factory=CaptionArguments)
    alignment: AlignmentArguments = field(default_factory=AlignmentArguments)
    run: AlignRunArguments = field(default_factory=AlignRunArguments)


__all__ = ["AlignRecipe", "AlignmentArguments", "CaptionArguments", "TowerArguments"]
