"""The checkpoint that comes with the package: small, trained here from random weights, free of anyone's licence terms."""

from pathlib import Path


def tiny_checkpoint() -> str:
    """Return the folder of a ViT of half a million parameters, trained on rendered scenes, with its model card.

    A stock `dinov3_vit` directory: `AutoModel.from_pretrained(tiny_checkpoint())` reads it, offline.
    """
    return str(Path(__file__).parent / "tiny")
