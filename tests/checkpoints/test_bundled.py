"""The checkpoint in the wheel loads in transformers and here, and is better than random initialisation."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from dinov3_hf import Dinov3Model, tiny_checkpoint
from dinov3_hf.data.pixels import decode_image


def test_transformers_and_ours_give_the_same_outputs():
    pixels = AutoImageProcessor.from_pretrained(tiny_checkpoint())(
        [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)], return_tensors="pt"
    )
    reference, ours = AutoModel.from_pretrained(tiny_checkpoint()), Dinov3Model.from_pretrained(tiny_checkpoint())
    assert type(reference).__name__ == "DINOv3ViTModel"
    with torch.inference_mode():
        first, second = reference(**pixels), ours(**pixels)
    torch.testing.assert_close(first.last_hidden_state, second.last_hidden_state, atol=1e-5, rtol=0)


def test_it_is_small_and_says_where_it_comes_from():
    folder = Path(tiny_checkpoint())
    assert sum(file.stat().st_size for file in folder.rglob("*")) <= 6e6
    card = (folder / "README.md").read_text()
    assert "dinov3 pretrain --config tiny_cpu" in card and "scenes" in card


@pytest.mark.slow
def test_it_beats_raw_pixels_and_random_initialisation():
    from dinov3_hf.evaluation.run import evaluate
    from dinov3_hf.evaluation.tasks import EvaluateRecipe
    from dinov3_hf.recipe import build_recipe

    settings = build_recipe(
        EvaluateRecipe, model=tiny_checkpoint(), task=["knn", "patch-knn"], num_train=2000, num_test=500, k=[10]
    )
    for result in evaluate(settings)["results"]:
        metrics = result.metrics[0]
        assert metrics["model"] > max(metrics["raw_pixels"], metrics["random_init"], metrics["chance"])


def test_the_text_part_names_what_it_was_taught():
    from transformers import pipeline

    from dinov3_hf.data.scenes import SCENE_CLASSES, load_scenes

    folder = Path(tiny_checkpoint("text"))
    assert sum(file.stat().st_size for file in folder.rglob("*")) <= 6e6
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    rows = load_scenes("test", 60)
    found = classify(list(rows["image"]), candidate_labels=list(SCENE_CLASSES), hypothesis_template="{}")
    right = sum(answer[0]["label"] == SCENE_CLASSES[label] for answer, label in zip(found, rows["label"], strict=True))
    assert right >= 18  # three times chance
    segment = pipeline("zero-shot-image-segmentation", model=str(folder))
    assert segment(rows[0]["image"], candidate_labels=["tree", "boat"])
    assert segment.tokenizer.unknown_words(["a red giraffe"]) == ["giraffe"]


def test_other_parts_are_refused():
    with pytest.raises(ValueError, match="part: got 'audio', accepted: vision, text"):
        tiny_checkpoint("audio")


@pytest.mark.parametrize("part", ["vision", "text"])
def test_images_of_every_mode_are_converted_as_in_training(part):
    pixels = torch.randint(0, 256, (20, 30, 4), dtype=torch.uint8).numpy()
    processor = AutoImageProcessor.from_pretrained(tiny_checkpoint(part))
    image = Image.fromarray(pixels)
    for other in (
        image,
        image.convert("RGB").quantize(8),
        image.convert("LA"),
        image.convert("CMYK"),
        image.convert("1"),
    ):
        expected = processor(decode_image(other), return_tensors="pt").pixel_values
        assert torch.equal(processor(other, return_tensors="pt").pixel_values, expected)
