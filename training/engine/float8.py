"""Linear layers of the blocks in fp8, by torchao: products in float8_e4m3, weights, sums and everything else as in bf16."""

from importlib.util import find_spec

import torch
from torch import nn

from dinov3_hf.recipe import require


def check_float8() -> None:
    """Raise `Refused` in one line where fp8 cannot run: it needs torchao and a GPU with fp8 tensor cores."""
    capable = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    accepted = "no or bf16 on this machine; fp8 takes a CUDA GPU of compute capability 8.9 or more"
    require(capable, "mixed_precision", "fp8", accepted)
    require(find_spec("torchao") is not None, "mixed_precision", "fp8", "no or bf16, or after pip install torchao")


def convert_to_float8(block: nn.Module, emulate: bool = False) -> None:
    """Replace a block's linear layers, in place; names and weights stay. `emulate` rounds alike on any device.

    Scales are dynamic, one a tensor. Layers whose sides are no multiple of 16, which fp8 products ask for, stay bf16.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0

    # The number of tokens is the inner side of the product for a weight's gradient.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    convert_to_float8_training(block, module_filter_fn=fits, config=config)
