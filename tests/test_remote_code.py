"""A saved directory loads where the package is absent, with `trust_remote_code=True`."""

import os
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file

from dinov3_hf import Dinov3Config, Dinov3ForImageClassification, Dinov3ImageProcessor


SCRIPT = """
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dinov3_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
folder, output = sys.argv[1:]
images = load_file(output)["images"]
classifier = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
backbone = AutoBackbone.from_config(config, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
names = [type(x).__name__ for x in (classifier, model, config, backbone, processor)]
assert names == ["Dinov3ForImageClassification", "Dinov3Model", "Dinov3Config", "Dinov3Backbone", "Dinov3ImageProcessor"], names
with torch.no_grad():
    logits, tokens = classifier(images).logits, model(images).last_hidden_state
model.save_pretrained(folder + "/again")
again = AutoModel.from_pretrained(folder + "/again", trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(again(images).last_hidden_state, tokens)
save_file({"logits": logits, "tokens": tokens}, output)
"""


def test_directory_loads_without_the_package(tmp_path):
    torch.manual_seed(0)
    config = Dinov3Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, patch_size=8, num_labels=3
    )
    model = Dinov3ForImageClassification(config).eval()
    folder, file, images = tmp_path / "model", tmp_path / "tensors.safetensors", torch.randn(1, 3, 16, 16)
    model.save_pretrained(folder)
    Dinov3ImageProcessor().save_pretrained(folder)
    save_file({"images": images}, file)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(file)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    outputs = load_file(file)
    with torch.no_grad():
        assert torch.equal(outputs["logits"], model(images).logits)
        assert torch.equal(outputs["tokens"], model.dinov3(images).last_hidden_state)
