"""The fields of a text alignment recipe, typed, with their defaults and bounds."""

from dataclasses import dataclass, field

from dinov3_hf.recipe import Recipe, described, require
from dinov3_hf.training.arguments import RunArguments
from dinov3_hf.training.source_arguments import SourceArguments


@dataclass
class TowerArguments:
    """The frozen backbone, the blocks trained on it, and the text tower (defaults: the released model's sizes)."""

    backbone: str | None = described(
        "frozen backbone: a model folder (ours or stock), a hub id, or a file of Meta's; null: the one that comes with "
        "the package",
        None,
        common=True,
    )
    save_backbone: bool = described(
        "save the backbone inside the exported model; false names it there instead (backbone by reference)", True
    )
    projection_dim: int | None = described(
        "width E of the shared space; null: twice the backbone's width", None, at_least=2
    )
    vision_head_layers: int = described("trainable blocks on the backbone", 2, at_least=1)
    vision_head_drop_path_rate: float = described(
        "share of a batch's rows each of their branches skips", 0.3, at_least=0, below=1
    )
    vision_head_layerscale_value: float = described("their initial layer scale", 1e-5, at_least=0)
    text_hidden_size: int = described("width of the text tower", 1280, at_least=1)
    text_num_hidden_layers: int = described("its blocks", 24, at_least=1)
    text_num_attention_heads: int = described("its attention heads", 20, at_least=1)
    text_intermediate_size: int = described("hidden width of its MLPs", 5120, at_least=1)
    context_length: int = described("longest text in tokens, start and end included", 77, at_least=3)
    tokenizer: str = described(
        "clip (CLIP's, from open_clip_torch), or the folder of a tokenizer", "clip", common=True
    )
    train_tokenizer: bool = described(
        "train a tokenizer on the captions first, in place of tokenizer", False, common=True
    )
    vocab_size: int = described("entries of a trained tokenizer", 4096, at_least=259)
    tokenizer_captions: int = described("captions a trained tokenizer is trained on", 20000, at_least=1)

    def validate(self) -> None:
        good = self.text_hidden_size % self.text_num_attention_heads == 0
        accepted = f"a multiple of text_num_attention_heads ({self.text_num_attention_heads})"
        require(good, "text_hidden_size", self.text_hidden_size, accepted)
        width = self.projection_dim
        require(width is None or width % 2 == 0, "projection_dim", width, "null or an even number")
        good = self.save_backbone or self.backbone is not None
        require(good, "save_backbone", self.save_backbone, "true without backbone: there is no name to put down")


@dataclass
class CaptionArguments(SourceArguments):
    """Where the images and their captions come from, and what is done to the images."""

    caption_columns: list[str] = described(
        "columns that hold a caption or a list of captions, of which each step draws one; empty: caption or captions",
        [],
        common=True,
    )
    word_dropout: float = described(
        "share of a caption's words left out at each draw, so that single words are learned too, as prompts use them",
        0.0,
        at_least=0,
        below=1,
    )
    image_size: int | None = described(
        "side of the images in pixels; null: that of the backbone's processor", None, at_least=1, common=True
    )
    random_crop_scale: list[float] = described(
        "smallest and largest share of the image that a random crop covers; empty: the whole image, resized",
        [],
        above=0,
        at_most=1,
    )
    cache_features: str | None = described(
        "folder for the backbone's tokens of every image, computed once (only without random_crop_scale); null: none",
        None,
        common=True,
    )
    probe_data: str | None = described(
        "held-out pairs whose retrieval is measured during training; null: the scenes' test split when training on "
        "scenes, else nothing",
        None,
    )
    probe_split: str = described("split of the held-out pairs", "test")
    probe_images: int = described("held-out pairs read", 500, at_least=2)

    def validate(self) -> None:
        super().validate()
        scale = self.random_crop_scale
        good = not scale or (len(scale) == 2 and scale[0] <= scale[1])
        require(good, "random_crop_scale", scale, "empty, or two shares, the smaller first, from 0 to 1")
        good = self.cache_features is None or not scale
        accepted = "null with random_crop_scale: a random crop has new features every time"
        require(good, "cache_features", self.cache_features, accepted)


@dataclass
class AlignmentArguments:
    """The objective and its optimizer (METHOD of dino.txt: AdamW, warm-up, cosine to 0)."""

    gram_weight: float = described(
        "weight of a Gram loss that holds the blocks' patches to the backbone's", 0.0, at_least=0
    )
    steps: int = described("optimizer steps of the run", 50000, at_least=1, common=True)
    batch_size: int = described("pairs per process and forward pass", 256, at_least=2, common=True)
    gradient_accumulation_steps: int = described(
        "forward passes summed into one step; each is still compared within itself only", 1, at_least=1
    )
    lr: float = described("peak learning rate", 7e-4, at_least=0, common=True)
    lr_warmup_steps: int = described("steps of linear warm-up of the learning rate", 2000, at_least=0)
    weight_decay: float = described(
        "weight decay; none for biases, norms, scales and the logit scale", 1e-4, at_least=0
    )
    adam_betas: list[float] = described("AdamW betas", [0.9, 0.99], at_least=0, below=1)
    clip_grad_norm: float | None = described("largest gradient norm; null: no limit", None, above=0)

    def validate(self) -> None:
        good = self.lr_warmup_steps <= self.steps
        require(good, "lr_warmup_steps", self.lr_warmup_steps, f"from 0 to steps ({self.steps})")
        require(len(self.adam_betas) == 2, "adam_betas", self.adam_betas, "two numbers from 0 to below 1")


@dataclass
class AlignRunArguments(RunArguments):
    """Where a run writes, how often, and how it goes on after a stop."""

    output_dir: str = described(
        "folder of the run: recipe, metrics, checkpoints and the exported model", "outputs/align", common=True
    )


@dataclass
class AlignRecipe(Recipe):
    """All fields of a text alignment, in the groups above."""

    towers: TowerArguments = field(default_factory=TowerArguments)
    data: CaptionArguments = field(default_factory=CaptionArguments)
    alignment: AlignmentArguments = field(default_factory=AlignmentArguments)
    run: AlignRunArguments = field(default_factory=AlignRunArguments)


__all__ = ["AlignRecipe", "AlignmentArguments", "CaptionArguments", "TowerArguments"]
