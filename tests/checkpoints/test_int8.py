"""Eight-bit weights by torchao through transformers, read from and saved to transformers' directories."""

import pytest
import torch
from transformers import AutoModel, TorchAoConfig

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.checkpoints import export


@torch.inference_mode()
def test_transformers_quantises_an_export_and_reloads_it_equal(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 384}
    model = Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.5)).eval()
    for layer in model.layer:
        for linear in (layer.attention.q_proj, layer.attention.v_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            torch.nn.init.normal_(linear.weight, std=0.1)
    images = torch.randn(2, 3, 32, 40)
    expected = model(images).last_hidden_state
    export(model, tmp_path / "full")
    config = TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())
    small = AutoModel.from_pretrained(tmp_path / "full", quantization_config=config, dtype=torch.float32)
    small.save_pretrained(tmp_path / "int8")
    again = AutoModel.from_pretrained(tmp_path / "int8")
    found = again(images).last_hidden_state
    assert torch.equal(found, small(images).last_hidden_state) and not torch.equal(found, expected)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.99
    full, int8 = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "int8"))
    assert int8 < full / 3
