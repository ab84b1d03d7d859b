"""The networks of a text alignment: a frozen backbone with new blocks, a new text tower, and its tokenizer."""

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError

from dinov3_hf.checkpoints import load_backbone as load_vit
from dinov3_hf.checkpoints import tiny_checkpoint
from dinov3_hf.checkpoints.loading import readable
from dinov3_hf.checkpoints.processors import processor_for
from dinov3_hf.data.captions import find_caption_columns, read_captions
from dinov3_hf.data.pixels import BadImage
from dinov3_hf.errors import Refused
from dinov3_hf.models.modeling_dinotxt import DinoTxtModel
from dinov3_hf.models.modeling_dinov3 import Dinov3Model

from .arguments import TowerArguments


if TYPE_CHECKING:
    import datasets
    from transformers.image_processing_utils import BaseImageProcessor

    from dinov3_hf.models.tokenization_dinotxt import DinoTxtTokenizer


def load_backbone(towers: TowerArguments) -> tuple[Dinov3Model, "BaseImageProcessor"]:
    """Return the frozen backbone and its image processor, or one with ImageNet statistics if it has none."""
    name = towers.backbone or tiny_checkpoint()
    model = load_vit(name, "backbone")
    return model.eval(), processor_for(name, model.config.image_size, "backbone")


def build_tokenizer(
    towers: TowerArguments,
    sources: list["datasets.Dataset | datasets.IterableDataset"],
    caption_columns: list[str],
) -> "DinoTxtTokenizer":
    """Return the tokenizer of the recipe: CLIP's, one from a folder, or one trained on the captions."""
    from dinov3_hf.models.tokenization_dinotxt import DinoTxtTokenizer, clip_tokenizer, train_tokenizer

    if towers.train_tokenizer:
        texts = itertools.islice(captions_of(sources, caption_columns), towers.tokenizer_captions)
        try:
            return train_tokenizer(texts, towers.vocab_size, towers.context_length)
        except ValueError as error:
            raise Refused(f"train_tokenizer: {error}") from None
    if towers.tokenizer == "clip":
        try:
            return clip_tokenizer(towers.context_length)
        except ImportError as error:
            raise Refused(
                f"tokenizer: got 'clip', accepted: another one, or clip after its library is installed: {error}"
            ) from None
    if not os.path.isdir(towers.tokenizer):
        raise Refused(f"tokenizer: got {towers.tokenizer!r}, accepted: clip, or the folder of a tokenizer")
    with readable(towers.tokenizer, "tokenizer"):
        return DinoTxtTokenizer.from_pretrained(towers.tokenizer, model_max_length=towers.context_length)


def captions_of(
    sources: list["datasets.Dataset | datasets.IterableDataset"], caption_columns: list[str]
) -> Iterator[str]:
    """Yield the captions of all sources in turn, one row of each at a time; rows without captions are skipped."""
    columns = [find_caption_columns(rows, caption_columns) for rows in sources]
    # Selecting the columns avoids reading the images.
    streams = [iter(rows.select_columns(names)) for rows, names in zip(sources, columns, strict=True)]
    for rows in itertools.zip_longest(*streams):
        for row, names in zip(rows, columns, strict=True):
            try:
                yield from read_captions(row, names) if row is not None else ()
            except BadImage:
                continue


def build_model(towers: TowerArguments, backbone: Dinov3Model, tokenizer: "DinoTxtTokenizer") -> DinoTxtModel:
    """Add new blocks and a new text tower to a backbone; random weights depend on torch's random state."""
    head = {
        "num_hidden_layers": towers.vision_head_layers,
        "drop_path_rate": towers.vision_head_drop_path_rate,
        "layerscale_value": towers.vision_head_layerscale_value,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": towers.text_hidden_size,
        "intermediate_size": towers.text_intermediate_size,
        "num_hidden_layers": towers.text_num_hidden_layers,
        "num_attention_heads": towers.text_num_attention_heads,
        "max_position_embeddings": towers.context_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        return DinoTxtModel.from_backbone(
            backbone, text, vision_head_config=head, projection_dim=towers.projection_dim
        )
    except (ValueError, StrictDataclassError) as error:
        raise Refused(" ".join(str(error).split())) from None
