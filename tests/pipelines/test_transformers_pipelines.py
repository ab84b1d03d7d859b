"""Pipelines on a directory of a text-aligned model, against calling it by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DINOv3ViTImageProcessor, pipeline

from dinov3_hf import DinoTxtModel, DinoTxtProcessor, Dinov3Config, Dinov3Model
from dinov3_hf.models.tokenization_dinotxt import train_tokenizer
from dinov3_hf.pipelines import ZeroShotImageSegmentationPipeline
from dinov3_hf.pipelines.class_embeddings import class_embeddings, default_templates
from dinov3_hf.pipelines.class_maps import fit_image, segment_logits


LABELS = ["cat", "red dog", "tree"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vision = Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.5))
    tokenizer = train_tokenizer(["this is a photo of a cat", "a red dog", "tree"], 300, context_length=32)
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 32, "eos_token_id": 2}
    head = {"layerscale_value": 0.5, "drop_path_rate": 0.0}
    model = DinoTxtModel.from_backbone(vision, text, vision_head_config=head, projection_dim=32)
    torch.nn.init.normal_(model.text_model.token_embedding.weight, std=1)
    place = tmp_path_factory.mktemp("aligned")
    model.save_pretrained(place)
    image_processor = DINOv3ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6])
    DinoTxtProcessor(image_processor, tokenizer).save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def segmenter(directory):
    return pipeline("zero-shot-image-segmentation", model=directory, device="cpu")


def picture(height=45, width=70, seed=0):
    colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def test_classification_pipeline_gives_the_models_own_scores(directory):
    found = pipeline("zero-shot-image-classification", model=directory, device="cpu")(
        picture(), candidate_labels=LABELS
    )
    model, processor = DinoTxtModel.from_pretrained(directory), DinoTxtProcessor.from_pretrained(directory)
    texts = [f"This is a photo of {label}." for label in LABELS]
    inputs = processor(text=texts, images=picture(), padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits_per_image.softmax(-1)[0]
    assert {item["label"]: item["score"] for item in found} == pytest.approx(
        dict(zip(LABELS, scores.tolist(), strict=True)), abs=1e-6
    )
    assert [item["score"] for item in found] == sorted(scores.tolist(), reverse=True)


def by_hand(directory, image, templates, threshold=None, window=32, stride=24, scales=(1.0,)):
    """Label indices and cosines of the pixels [H,W], -1 below the threshold."""
    model, processor = DinoTxtModel.from_pretrained(directory), DinoTxtProcessor.from_pretrained(directory)
    embeddings = class_embeddings(model, processor.tokenizer, LABELS, templates, part="patch")
    pixel_values = fit_image(image, processor.image_processor, window, 8)
    size = (image.height, image.width)
    logits = segment_logits(model, pixel_values, embeddings, window, stride, scales, size).numpy()
    best, margin = logits.max(0), logits.max(0) - logits.mean(0)
    return np.where(margin < (-2 if threshold is None else threshold), -1, logits.argmax(0)), best


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {}),
        ({"window": 48, "stride": 16, "scales": (0.5, 1.0)}, {"window": 48, "stride": 16, "scales": (0.5, 1.0)}),
        ({"background_threshold": 0.005, "templates": ["a {}"]}, {"threshold": 0.005, "templates": ["a {}"]}),
    ],
)
def test_segmentation_equals_the_functions(options, expected, directory, segmenter):
    assert isinstance(segmenter, ZeroShotImageSegmentationPipeline)
    expected = {"templates": default_templates(segmenter.tokenizer)} | expected
    classes, best = by_hand(directory, picture(), **expected)
    found = segmenter(picture(), candidate_labels=LABELS, **options)
    present = [index for index in range(3) if (classes == index).any()]
    assert [item["label"] for item in found] == [LABELS[index] for index in present] and present
    for item, index in zip(found, present, strict=True):
        assert item["mask"].size == (70, 45) and item["mask"].mode == "L"
        assert np.array_equal(np.asarray(item["mask"]), (classes == index) * np.uint8(255))
        assert item["score"] == pytest.approx(best[classes == index].mean(), abs=1e-5)
    assert ("background_threshold" in options) == bool((classes == -1).any())


def test_nothing_above_the_threshold_gives_no_masks(segmenter):
    assert segmenter(picture(), LABELS, background_threshold=1.0) == []


def test_paths_and_lists_of_several_sizes(segmenter, tmp_path):
    pictures = [picture(), picture(20, 16, seed=1)]
    for index, image in enumerate(pictures):
        image.save(tmp_path / f"{index}.png")
    alone = [segmenter(image, candidate_labels=LABELS) for image in pictures]
    together = segmenter([str(tmp_path / "0.png"), str(tmp_path / "1.png")], candidate_labels=LABELS)
    assert len(together) == 2 and together[1][0]["mask"].size == (16, 20)
    for first, second in zip(alone, together, strict=True):
        assert [(item["label"], item["score"]) for item in first] == [
            (item["label"], item["score"]) for item in second
        ]
        assert all(np.array_equal(a["mask"], b["mask"]) for a, b in zip(first, second, strict=True))


def test_words_never_taught_are_one_warning(segmenter, caplog):
    segmenter(picture(), candidate_labels=["cat", "green unicorn"], templates=["a sketch of {}"])
    assert caplog.messages == ["Words that the text tower was never taught: green, unicorn, sketch."]
    caplog.clear()
    segmenter(picture(), candidate_labels=LABELS)
    assert not caplog.messages


@pytest.mark.parametrize(
    "labels, options, message",
    [
        (["cat", "dog", "cat"], {}, "candidate_labels: got 'cat' more than once, accepted: names that differ"),
        ([], {}, "candidate_labels: got [], accepted: a list of at least one name"),
        ("cat", {}, "candidate_labels: got 'cat', accepted: a list of at least one name"),
        (["cat"], {"templates": ["photo"]}, "templates: got 'photo', accepted: a text with {} for the name"),
        (["cat"], {"window": 20}, "window: got 20, accepted: a multiple of the model's patch size (8)"),
        (["cat"], {"stride": 40}, "stride: got 40, accepted: a multiple of the patch size (8) up to the window (32)"),
        (["cat"], {"scales": ()}, "scales: got [], accepted: at least one, each above 0"),
    ],
)
def test_bad_requests_are_refused(labels, options, message, segmenter):
    with pytest.raises(ValueError) as error:
        segmenter(picture(), candidate_labels=labels, **options)
    assert str(error.value) == message


def test_unknown_options_and_other_models_are_refused(segmenter, directory):
    with pytest.raises(TypeError, match="threshold"):
        segmenter(picture(), candidate_labels=LABELS, threshold=0.5)
    backbone = segmenter.model.vision_model
    with pytest.raises(ValueError, match="^model: got a Dinov3Model, accepted: a DinoTxtModel$"):
        ZeroShotImageSegmentationPipeline(
            model=backbone, image_processor=segmenter.image_processor, tokenizer=segmenter.tokenizer
        )
