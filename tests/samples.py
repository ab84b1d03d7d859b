"""Small data and models that tests of several rooms use."""

import io
from collections.abc import Collection, Sequence

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PilImage
from transformers import DINOv3ViTImageProcessor

from dinov3_hf import DinoTxtModel, DinoTxtProcessor, Dinov3Config, Dinov3Model
from dinov3_hf.models.tokenization_dinotxt import train_tokenizer


COLOURS = ClassLabel(names=["red", "green", "blue"])
# Heights and widths: square, wide, tall, and no whole patches.
SIZES = [(32, 32), (40, 24), (24, 64), (24, 64), (31, 33)]


def png(pixels: np.ndarray) -> dict:
    """Encode pixels as a row of a data set holds them."""
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def coloured_images(
    num: int, seed: int, side: int = 32, label: ClassLabel | Value = COLOURS, bad: Collection[int] = ()
) -> Dataset:
    """Images of one noisy colour each, labelled with it: every image feature of any worth separates them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, num)
    pixels = generator.integers(0, 60, (num, side, side, 3), dtype=np.uint8)
    for index, colour in enumerate(labels):
        pixels[index, :, :, colour] += 180
    images = [{"bytes": b"not an image", "path": None} if i in bad else png(image) for i, image in enumerate(pixels)]
    values = labels.tolist() if isinstance(label, ClassLabel) else [["c", "a", "b"][index] for index in labels]
    return Dataset.from_dict({"image": images, "label": values}, features=Features({"image": Image(), "label": label}))


def images_of_sizes(
    num: int = 12, seed: int = 0, sizes: Sequence[tuple[int, int]] = SIZES, bad: Collection[int] = ()
) -> Dataset:
    """Noise of several sizes, in turn."""
    generator = np.random.default_rng(seed)
    encoded = [
        png(generator.integers(0, 255, (*sizes[index % len(sizes)], 3), dtype=np.uint8))
        if index not in bad
        else {"bytes": b"no image", "path": None}
        for index in range(num)
    ]
    return Dataset.from_dict({"image": encoded}, features=Features({"image": Image()}))


def tiny_aligned(texts: Sequence[str], spread: bool = False, **processor: object) -> tuple:
    """A random `DinoTxtModel` whose tokenizer learnt the texts, and its processor.

    With `spread` the classes' embeddings are far from each other, so that every class wins somewhere.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vision = Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.5))
    tokenizer = train_tokenizer(texts, 300, context_length=16)
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 2}
    head = {"layerscale_value": 0.5, "drop_path_rate": 0.0}
    model = DinoTxtModel.from_backbone(vision, text, vision_head_config=head, projection_dim=32).eval()
    if spread:
        torch.nn.init.normal_(model.text_model.token_embedding.weight, std=1)
    image_processor = DINOv3ViTImageProcessor(size={"height": 32, "width": 32}, **processor)
    return model, DinoTxtProcessor(image_processor, tokenizer)
