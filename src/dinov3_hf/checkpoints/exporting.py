"""Write a model of this package in another layout."""

import os
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from transformers import PreTrainedModel

from ..errors import Refused
from ..models.modeling_dinov3 import Dinov3PreTrainedModel
from ..models.modeling_dinov3_convnext import Dinov3ConvNextForImageClassification, Dinov3ConvNextModel
from .adapters import merge_adapters
from .meta_convnext import write_meta_convnext
from .meta_vit import write_meta_vit
from .names import LAYOUTS
from .timm import write_timm
from .transformers import write_convnext, write_vit
from .weights import gather


_VIT_WRITERS = {"transformers": write_vit, "meta": write_meta_vit, "timm": write_timm}
_CONVNEXT_WRITERS = {"transformers": write_convnext, "meta": write_meta_convnext}


def export(model: PreTrainedModel, directory: str | os.PathLike, layout: str = "transformers") -> Path:
    """Write `model` in a layout for use elsewhere, and return the directory.

    "transformers" writes a `dinov3_vit` or `dinov3_convnext` directory with its image processor, which `AutoModel`
    reads without this package; projection heads and local norm, which these classes do not have, go to
    heads.safetensors in the same directory. "meta" writes model.pth with Meta's names, "timm" a directory for
    `timm.create_model` (no ConvNeXt), "onnx" model.onnx; the last two omit mask token, local norm and heads.

    A sharded model is gathered: call this on every process; the first one writes.

    Raises:
        Refused: an unknown layout, or a model the layout cannot represent.
    """
    if layout not in LAYOUTS:
        raise Refused(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    convnext = isinstance(model, (Dinov3ConvNextModel, Dinov3ConvNextForImageClassification))
    if not convnext and not isinstance(model, Dinov3PreTrainedModel):
        raise TypeError(f"export needs a whole Dinov3 model of this package, got {type(model).__name__}")
    backbone = getattr(model, "dinov3", model)
    everything, prefix = merge_adapters(model, gather(model)), "" if backbone is model else "dinov3."
    tensors = {name.removeprefix(prefix): value for name, value in everything.items() if name.startswith(prefix)}
    extra = {name: value for name, value in everything.items() if not name.startswith(prefix)}
    directory = Path(directory)
    if dist.is_initialized() and dist.get_rank() > 0:
        return directory
    write = _writer(layout, convnext)
    write(backbone.config, tensors, extra, directory)
    return directory


def _writer(layout: str, convnext: bool) -> Callable[..., None]:
    """Return the function that writes a backbone's tensors and the extra ones to a directory."""
    if layout == "onnx":
        # Tracing takes seconds to import.
        from .onnx import write_onnx

        return write_onnx
    writers = _CONVNEXT_WRITERS if convnext else _VIT_WRITERS
    if layout not in writers:
        raise Refused(f"layout: got {layout!r}, accepted: {', '.join(writers)} or onnx for a ConvNeXt")
    return writers[layout]
