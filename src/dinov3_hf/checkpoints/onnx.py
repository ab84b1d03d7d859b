"""Export a backbone as a graph for any batch and image size: a `torch.export` program, and ONNX made from it."""

from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers.utils import logging

from ..errors import Refused
from ..models.configuration_dinov3 import Dinov3Config
from ..models.configuration_dinov3_convnext import Dinov3ConvNextConfig
from ..models.modeling_dinov3 import Dinov3Model
from ..models.modeling_dinov3_convnext import Dinov3ConvNextModel
from .weights import summarise


logger = logging.get_logger(__name__)

OUTPUTS = ("last_hidden_state", "pooler_output", "patch_tokens")
# A protobuf file ends at two gibibytes: larger weights go to a file next to the graph.
_MAX_BYTES_IN_GRAPH = 2**31 - 2**24


class _Outputs(nn.Module):
    """A model with a tuple as its output: a graph has no named outputs."""

    def __init__(self, model: Dinov3Model | Dinov3ConvNextModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(pixel_values=pixel_values)
        return tuple(getattr(output, name) for name in OUTPUTS)


@torch.no_grad()
def trace(model: Dinov3Model | Dinov3ConvNextModel) -> ExportedProgram:
    """Put `model` into eval mode and trace it for images [B,C,H,W] of at least two patches a side, without remainder.

    B, H and W may vary. The program returns `last_hidden_state` [B,1+R+P,D], `pooler_output` [B,D] and `patch_tokens`
    [B,P,D]; save it with `torch.export.save`.
    """
    patch = model.config.patch_size
    # Sizes that differ: equal ones could be taken for the same symbol.
    example = torch.zeros(2, model.config.num_channels, 2 * patch, 3 * patch, device=model.device, dtype=model.dtype)
    shapes = {"pixel_values": {0: Dim("batch"), 2: patch * Dim("rows"), 3: patch * Dim("columns")}}
    return torch.export.export(_Outputs(model).eval(), (example,), dynamic_shapes=shapes)


def write_onnx(
    config: Dinov3Config | Dinov3ConvNextConfig,
    tensors: dict[str, torch.Tensor],
    extra: dict[str, torch.Tensor],
    directory: Path,
) -> None:
    """Write a backbone's `tensors` to model.onnx in fp32: input `pixel_values` [B,C,H,W], outputs as those of `trace`.

    Weights of 2 GiB or more go to model.onnx.data next to it. `extra` (heads) is not written; a warning names it.

    Raises:
        Refused: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise Refused(f"layout: onnx needs {error.name}: pip install 'dinov3-hf[onnx]'") from None
    with torch.device("meta"):
        model = (Dinov3Model if isinstance(config, Dinov3Config) else Dinov3ConvNextModel)(config)
    model.load_state_dict(tensors, assign=True)
    model = model.float().eval()
    size = sum(parameter.nbytes for parameter in model.parameters())
    directory.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        trace(model),
        (),
        str(directory / "model.onnx"),
        input_names=["pixel_values"],
        output_names=list(OUTPUTS),
        # Of a traced program this only names the axes.
        dynamic_shapes={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
        external_data=size > _MAX_BYTES_IN_GRAPH,
        dynamo=True,
        verbose=False,
    )
    if extra:
        logger.warning_once(f"model.onnx holds the backbone only, without {summarise(extra)}.")
