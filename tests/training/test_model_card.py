"""The model card: a header the hub reads, numbers that match the model, code that runs, and no unfounded claims."""

import math
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining
from dinov3_hf.checkpoints import export
from dinov3_hf.recipe import build_recipe
from dinov3_hf.training.arguments import PretrainRecipe
from dinov3_hf.training.model_card import write_model_card


STATE = {"step": 600, "images_read": 38400, "bad_images": 0}
METRICS = {
    "loss": 4.40961, "dino_global": 3.7, "koleo": None, "lr": 1e-5, "knn": 0.3282, "rankme": 12.345,
    "cls_patch_cosine": 0.25, "images_read": 38400,
}  # fmt: skip
VERSIONS = {"python": "3.12.1", "torch": "2.15.0", "git": "", "command": "/home/someone/bin/dinov3 pretrain"}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = Dinov3Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=8, image_size=32,
        num_register_tokens=3, untie_global_and_local_cls_norm=True, dino_head_num_prototypes=24,
        dino_head_hidden_size=8, dino_head_bottleneck_size=8, ibot_head_num_prototypes=12, ibot_head_hidden_size=8,
        ibot_head_bottleneck_size=8,
    )  # fmt: skip
    return Dinov3ForPreTraining(config)


@pytest.fixture
def folder(network, tmp_path):
    return export(network, tmp_path / "model")


def write(folder, metrics=METRICS, state=STATE, **changes):
    recipe = build_recipe(PretrainRecipe, "tiny_cpu", output_dir="/home/someone/out").as_flat_dict() | changes
    path = write_model_card(folder, recipe, state, metrics, VERSIONS)
    assert path == folder / "README.md"
    return path.read_text()


def header(folder):
    return ModelCard.load(folder / "README.md").data.to_dict()


def cells(text):
    rows = [re.findall(r"[^|]+", line) for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(" `"): row[1].strip() for row in rows if len(row) > 1}


def test_header_is_what_the_hub_reads_and_names_no_licence(folder):
    text = write(folder)
    assert header(folder) == {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["dinov3", "self-supervised", "dinov3-hf"],
    }
    assert text.startswith("---\n") and "This card sets no licence" in text and "derive" not in text


def test_same_arguments_same_text(folder):
    assert write(folder) == write(folder)


def test_architecture_is_that_of_the_weights(folder, network):
    found = cells(write(folder))
    count = sum(p.numel() for name, p in network.dinov3.named_parameters() if not name.startswith("local_cls_norm"))
    assert found["parameters"] == f"{count:,}" and found["width"] == "16" and found["blocks"] == "2"
    assert found["attention heads"] == "2" and found["MLP"] == "32, GELU" and found["register tokens"] == "3"
    text = (folder / "README.md").read_text()
    assert "the image head (24 prototypes), the patch head (12 prototypes), the final norm of local crops" in text


def test_metrics_are_the_given_ones(folder):
    text = write(folder)
    found = cells(text)
    assert found["loss"] == "4.41" and found["knn"] == "0.3282" and found["rankme"] == "12.35"
    assert found["koleo"] == "not finite" and "lr" not in found and f"ln K = {math.log(24):.3f}" in text
    assert "600 of 600 steps; 38,400 images seen" in text and "not finished" not in text
    assert "Nothing was measured." in write(folder, metrics=None)


def test_both_snippets_run(folder, tmp_path, monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", write(folder), flags=re.S)
    assert len(snippets) == 2
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40), "red").save("image.jpg")
    names = {}
    for snippet in snippets:
        exec(snippet.replace("path/to/this/folder", str(folder)), names)
    assert names["image_feature"].shape == (1, 16) and names["patch_features"].shape == (1, 16, 16)
    assert type(names["network"]) is Dinov3ForPreTraining


def test_a_backbone_alone_has_no_heads_to_load(network, tmp_path):
    text = write(export(network.dinov3, tmp_path / "model"))
    assert "load_pretraining" not in text and "AutoModel" in text


def test_the_recipe_can_be_run_again(folder, tmp_path):
    text = write(folder)
    values = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, flags=re.S)[1])
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(values))
    again = build_recipe(PretrainRecipe, str(tmp_path / "again.yaml")).as_flat_dict()
    assert again == build_recipe(PretrainRecipe, "tiny_cpu").as_flat_dict()


def test_paths_of_the_machine_stay_on_it(folder):
    text = write(folder, data="/home/someone/pictures", init_from="/home/someone/start/model")
    assert "someone" not in text and "the images of `pictures`" in text and "derive from `model`" in text
    assert cells(text)["torch"] == "2.15.0" and "git" not in cells(text)


def test_a_foreign_start_is_named_and_its_licence_applies(folder):
    text = write(folder, init_from="facebook/dinov3-vits16-pretrain-lvd1689m", data="owner/images:config")
    found = header(folder)
    assert found["base_model"] == "facebook/dinov3-vits16-pretrain-lvd1689m"
    assert (
        found["base_model_relation"] == "finetune" and found["datasets"] == ["owner/images"] and "license" not in found
    )
    assert "derive from `facebook/dinov3-vits16-pretrain-lvd1689m`: its licence applies to them" in text
    assert "These weights were trained on only" not in text and "from random weights" not in text


def test_a_start_of_ones_own_hands_its_base_model_on(network, folder, tmp_path):
    """Meta's weights, trained on once and then once more, are still derived from Meta's."""
    write(folder, init_from="facebook/dinov3-vits16-pretrain-lvd1689m")
    second = export(network, tmp_path / "second")
    text = write(second, init_from=str(folder))
    assert header(second)["base_model"] == "facebook/dinov3-vits16-pretrain-lvd1689m"
    assert "derive from `model` (itself derived from `facebook/dinov3-vits16-pretrain-lvd1689m`)" in text
    (folder / "README.md").write_text("---\nbase_model: [unclosed\n---\n")
    write(second, init_from=str(folder))
    assert "base_model" not in header(second)


def test_a_gram_checkpoint_is_named(folder):
    text = write(folder, gram_teacher="checkpoint", gram_checkpoint="someone/else")
    assert "Their Gram teacher was `someone/else`" in text and "`gram_teacher: checkpoint`" in text


def test_an_unfinished_run_with_alarms_says_so(folder):
    alarm = "step 550: RankMe is 3.3: the features span only about that many"
    text = write(folder, state={"step": 300, "images_read": 1000, "bad_images": 7, "alarms": [alarm]})
    assert "300 of 600 steps; 993 images seen" in text and "7 more could not be decoded" in text
    assert f"- Alarm during training, {alarm}" in text and "The run was not finished" in text


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no config.json, accepted: the folder of an exported model"):
        write(tmp_path)
