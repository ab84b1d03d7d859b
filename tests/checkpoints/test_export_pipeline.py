"""transformers' feature-extraction pipeline on what we export and on our own model."""

import pytest
import torch
from PIL import Image
from transformers import DINOv3ViTImageProcessor, pipeline

from dinov3_hf import Dinov3Config, Dinov3ImageProcessor, Dinov3Model
from dinov3_hf.checkpoints import export


IMAGES = [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").resize((70, 50))]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.5)).eval()


def sources(kind, model, folder):
    if kind == "exported":
        return {"model": str(export(model, folder))}
    if kind == "saved":
        model.save_pretrained(folder)
        Dinov3ImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        return {"model": str(folder)}
    return {"model": model, "image_processor": DINOv3ViTImageProcessor(size={"height": 32, "width": 32})}


@pytest.mark.parametrize(
    ("kind", "name"), [("exported", "DINOv3ViTModel"), ("saved", "Dinov3Model"), ("in memory", "Dinov3Model")]
)
@torch.inference_mode()
def test_pipeline_gives_tokens_and_pooled_features(kind, name, model, tmp_path):
    extract = pipeline("image-feature-extraction", **sources(kind, model, tmp_path), device="cpu")
    assert type(extract.model).__name__ == name
    pixel_values = extract.image_processor(IMAGES, return_tensors="pt").pixel_values
    assert pixel_values.shape == (2, 3, 32, 32)
    expected = model(pixel_values)
    tokens = torch.cat([torch.tensor(found) for found in extract(IMAGES)])
    torch.testing.assert_close(tokens, expected.last_hidden_state, atol=1e-5, rtol=0)
    pooled = torch.cat([torch.tensor(found) for found in extract(IMAGES, pool=True)])
    torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-5, rtol=0)
