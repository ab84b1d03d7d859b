from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinov3_hf.models.heads_dinov3 import Dinov3ProjectionHead


GOLDEN = load_file(Path(__file__).parents[1] / "data" / "head.safetensors")


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_outputs_and_gradients_match_the_published_system(num_layers):
    key = f"n{num_layers}"

    def ours(name):
        return name.replace("mlp.", "mlp.0.") if num_layers == 1 else name

    head = Dinov3ProjectionHead(64, 128, 32, 96, num_layers)
    head.load_state_dict({ours(k.removeprefix(f"{key}/sd/")): v for k, v in GOLDEN.items() if f"{key}/sd/" in k})
    x = GOLDEN["x"].clone().requires_grad_()
    logits = head(x)
    torch.testing.assert_close(logits, GOLDEN[f"{key}/out"], atol=2e-5, rtol=0)
    (logits * GOLDEN[f"{key}/gradweight"]).sum().backward()
    gradients = {f"{key}/grad/{name}": parameter.grad for name, parameter in head.named_parameters()}
    if num_layers == 1:
        gradients = {name.replace("mlp.0.", "mlp."): gradient for name, gradient in gradients.items()}
    for name, gradient in {**gradients, f"{key}/grad_x": x.grad}.items():
        assert (gradient - GOLDEN[name]).abs().max() <= 1e-4 * GOLDEN[name].abs().max(), name


def test_a_head_needs_a_layer():
    with pytest.raises(ValueError, match="num_layers=0 must be at least 1"):
        Dinov3ProjectionHead(8, 8, 8, 8, 0)


def test_no_rows_give_no_logits_and_a_zero_gradient():
    head = Dinov3ProjectionHead(8, 8, 4, 6, 2)
    logits = head(torch.empty(0, 8))
    logits.sum().backward()
    assert logits.shape == (0, 6) and head.last_layer.weight.grad.abs().sum() == 0
