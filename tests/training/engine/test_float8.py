"""fp8 linear layers: refused where they cannot run, and close to bf16 in value and gradient (emulated on the CPU)."""

import copy

import pytest
import torch
from torch.nn.functional import cosine_similarity

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.training.engine.float8 import check_float8, convert_to_float8
from dinov3_hf.training.engine.sharding import blocks, compute_precision


def test_fp8_is_refused_in_one_line_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for ask in (lambda: compute_precision("fp8"), check_float8):
        with pytest.raises(
            ValueError, match=r"^mixed_precision: got 'fp8', accepted: no or bf16 on this machine; .*$"
        ):
            ask()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="mixed_precision: got 'fp8'"):
        compute_precision(None)
    assert compute_precision("bf16") == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="mixed_precision: got 'fp16', accepted: no, bf16 or fp8"):
        compute_precision(None)


def test_fp8_blocks_are_close_to_bf16_and_keep_their_names():
    pytest.importorskip("torchao")
    from torchao.float8.float8_linear import Float8Linear

    config = Dinov3Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=48,
        layerscale_value=1.0,
    )
    torch.manual_seed(0)
    plain = Dinov3Model(config)
    converted = copy.deepcopy(plain)
    for block in blocks(converted):
        convert_to_float8(block, emulate=True)
    assert sum(isinstance(module, Float8Linear) for module in converted.modules()) == 2 * 6
    assert converted.state_dict().keys() == plain.state_dict().keys()
    images, outputs = torch.randn(4, 3, 48, 48), []
    for model in (plain, converted):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(images).last_hidden_state
        (output.float() * torch.linspace(-1, 1, 64)).mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        outputs.append((output.float().flatten(), gradients))
    for ours, theirs, least in zip(outputs[1], outputs[0], (0.995, 0.98), strict=True):
        assert least < cosine_similarity(ours, theirs, dim=0) < 0.99999
