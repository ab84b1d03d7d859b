"""Where weights come from, and what tells them apart."""

import torch

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.provenance import weights_digest


def tiny_model(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1)).eval()


def test_digest_is_of_weights_and_configuration():
    assert weights_digest(tiny_model()) == weights_digest(tiny_model())
    changed = tiny_model()
    with torch.no_grad():
        changed.layer[0].mlp.up_proj.bias[0] += 1e-6
    digests = {weights_digest(model) for model in (tiny_model(), changed, tiny_model().bfloat16())}
    assert len(digests) == 3
