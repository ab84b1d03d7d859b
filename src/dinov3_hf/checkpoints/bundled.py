"""The small checkpoints bundled with the package, trained from random weights: no third-party licence applies."""

from pathlib import Path

from ..errors import Refused


FOLDERS = {"vision": "tiny", "text": "tiny_text"}


def tiny_checkpoint(part: str = "vision") -> str:
    """Return the folder of a small model trained on rendered scenes, with its model card; it loads offline.

    "vision": a ViT of half a million parameters, as a `dinov3_vit` directory for `AutoModel.from_pretrained`. "text":
    the same ViT with a text tower, for `DinoTxtModel` and both zero-shot pipelines; it knows the words of the scenes.
    """
    if part not in FOLDERS:
        raise Refused(f"part: got {part!r}, accepted: {', '.join(FOLDERS)}")
    return str(Path(__file__).parent / FOLDERS[part])
