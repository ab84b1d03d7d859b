"""Linear layers of the blocks in fp8 with torchao: matrix products in float8_e4m3, everything else as in bf16."""

from importlib.util import find_spec

import torch
from torch import nn

from dinov3_hf.recipe import require


def check_float8() -> None:
    """Raise `Refused` if fp8 cannot run: it needs torchao and a GPU with fp8 tensor cores."""
    capable = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    accepted = "no or bf16 on this machine; fp8 takes a CUDA GPU of compute capability 8.9 or more"
    require(capable, "mixed_precision", "fp8", accepted)
    require(find_spec("torchao") is not None, "mixed_precision", "fp8", "no or bf16, or after pip install torchao")


def convert_to_float8(block: nn.Module, emulate: bool = False) -> None:
    """Replace a block's linear layers in place, keeping names and weights; `emulate` rounds as fp8 on any device.

    Scales are dynamic, one per tensor. Layers whose sides are not multiples of 16, as fp8 products require, stay in
    bf16.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0

    # The gradient of a weight is a product over the tokens, whose number is padded to a multiple of 16.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    convert_to_float8_training(block, module_filter_fn=fits, config=config)
