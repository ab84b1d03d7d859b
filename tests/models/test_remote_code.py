"""A saved directory loads where the package is absent, with `trust_remote_code=True`."""

import os
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file

from dinov3_hf import (
    Dinov3Config,
    Dinov3ConvNextConfig,
    Dinov3ConvNextForImageClassification,
    Dinov3ForImageClassification,
    Dinov3ImageProcessor,
)


SCRIPT = """
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dinov3_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
for folder in sys.argv[1:]:
    output, family = folder + "/tensors.safetensors", open(folder + "/family.txt").read()
    images = load_file(output)["images"]
    classifier = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    backbone = AutoBackbone.from_config(config, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    names = [type(x).__name__ for x in (classifier, model, config, backbone, processor)]
    expected = [family + part for part in ("ForImageClassification", "Model", "Config", "Backbone")]
    assert names == [*expected, "Dinov3ImageProcessor"], names
    with torch.no_grad():
        logits, tokens = classifier(images).logits, model(images).last_hidden_state
    model.save_pretrained(folder + "/again")
    again = AutoModel.from_pretrained(folder + "/again", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(images).last_hidden_state, tokens)
    save_file({"logits": logits, "tokens": tokens}, output)
"""


VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
CONVNEXT = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}


NETWORKS = {
    "Dinov3": (Dinov3ForImageClassification, Dinov3Config(**VIT, num_labels=3)),
    "Dinov3ConvNext": (Dinov3ConvNextForImageClassification, Dinov3ConvNextConfig(**CONVNEXT, num_labels=3)),
}


def test_directories_load_without_the_package(tmp_path):
    """All kinds in one process: what takes seconds is to import transformers."""
    torch.manual_seed(0)
    models, images = {}, torch.randn(1, 3, 32, 32)
    for family, (model_class, config) in NETWORKS.items():
        models[tmp_path / family] = model = model_class(config).eval()
        model.save_pretrained(tmp_path / family)
        Dinov3ImageProcessor().save_pretrained(tmp_path / family)
        save_file({"images": images}, tmp_path / family / "tensors.safetensors")
        (tmp_path / family / "family.txt").write_text(family)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, *map(str, models)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    for folder, model in models.items():
        outputs = load_file(folder / "tensors.safetensors")
        with torch.no_grad():
            assert torch.equal(outputs["logits"], model(images).logits)
            assert torch.equal(outputs["tokens"], model.dinov3(images).last_hidden_state)
