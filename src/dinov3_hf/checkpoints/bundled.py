"""The checkpoints that come with the package: small, trained here from random weights, free of anyone's licence terms."""

from pathlib import Path

from ..errors import Refused


FOLDERS = {"vision": "tiny", "text": "tiny_text"}


def tiny_checkpoint(part: str = "vision") -> str:
    """Return the folder of a small model trained on rendered scenes, with its model card; it loads offline.

    "vision": a ViT of half a million parameters, a stock `dinov3_vit` directory for `AutoModel.from_pretrained`. "text": the
    same ViT with a text tower beside it, for `DinoTxtModel` and both zero-shot pipelines; it knows the scenes' words.
    """
    if part not in FOLDERS:
        raise Refused(f"part: got {part!r}, accepted: {', '.join(FOLDERS)}")
    return str(Path(__file__).parent / FOLDERS[part])
