"""What a class is called, as one embedding."""

import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dinov3_hf.models.tokenization_dinotxt import train_tokenizer
from dinov3_hf.pipelines import class_embeddings as class_embeddings_module
from dinov3_hf.pipelines.class_embeddings import (
    TEMPLATES,
    check_class_names,
    class_embeddings,
    classify,
    cosines,
    default_templates,
    imagenet_class_names,
    openai_templates,
    text_features,
)

from ..samples import tiny_aligned


NAMES = ["cat", "dog", "red house", "tree", "car", "boat"]


@pytest.fixture(scope="module")
def aligned():
    """A small random model whose tokenizer knows neither "photo" nor "boat"."""
    return tiny_aligned([f"a picture of a {name}" for name in NAMES[:5]], image_mean=[0.4, 0.5, 0.6])


@pytest.mark.parametrize("part", ["image", "patch"])
def test_class_embeddings_are_the_average_of_normalised_prompts(part, aligned, monkeypatch):
    model, processor = aligned
    templates = ["a {}", "{}, a {} and more", "a picture of a {}"]
    expected = []
    for name in NAMES:
        vectors = []
        for template in templates:
            ids = processor.tokenizer(template.replace("{}", name), return_tensors="pt")["input_ids"]
            with torch.no_grad():
                vector = model.get_text_features(ids)[0].numpy().astype(np.float64)
            vector = vector[len(vector) // 2 :] if part == "patch" else vector
            vectors.append(vector / np.sqrt((vector**2).sum()))
        mean = sum(vectors) / len(vectors)
        expected.append(mean / np.sqrt((mean**2).sum()))
    for texts_at_once in (256, 4, 1):
        monkeypatch.setattr(class_embeddings_module, "TEXTS_AT_ONCE", texts_at_once)
        found = class_embeddings(model, processor.tokenizer, NAMES, templates, part)
        assert found.shape == (6, 32 if part == "image" else 16)
        np.testing.assert_allclose(found, np.stack(expected), atol=2e-6)


def test_classify_is_the_largest_cosine():
    generator = torch.Generator().manual_seed(0)
    images, classes = torch.randn(9, 5, generator=generator), torch.randn(4, 5, generator=generator)
    found = classify(3 * images, classes)
    for image, index in zip(images, found, strict=True):
        values = [float(image @ other / image.norm() / other.norm()) for other in classes]
        assert index == values.index(max(values))
    assert cosines(images.half(), classes).dtype == torch.float32


@pytest.mark.parametrize(
    "names, templates, part, message",
    [
        ([], None, "image", "class_names: got [], accepted: a list of at least one name"),
        ("cat", None, "image", "class_names: got 'cat', accepted: a list of at least one name"),
        (["cat", 3], None, "image", "class_names: got 3 among the names, accepted: text"),
        (["cat", " "], None, "image", "class_names: got ' ' among the names, accepted: text"),
        (["cat", "dog", "Cat", "dog "], None, "image", "class_names: got 'cat', 'dog' more than once"),
        (["cat"], ["a photo"], "image", "templates: got 'a photo', accepted: a text with {} for the name"),
        (["cat"], [], "image", "templates: got [], accepted: a list of texts with {} for the name"),
        (["cat"], "a {}", "image", "templates: got 'a {}', accepted: a list of texts with {} for the name"),
        (["cat"], None, "cls", "part: got 'cls', accepted: image, patch"),
    ],
)
def test_bad_requests_are_refused(names, templates, part, message, aligned):
    with pytest.raises(ValueError) as error:
        class_embeddings(aligned[0], aligned[1].tokenizer, names, templates, part)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_default_templates_leave_out_words_never_taught(aligned):
    assert default_templates(aligned[1].tokenizer) == ["a picture of a {}", "a {}", "{}"]
    assert default_templates(train_tokenizer(["hello"], 300)) == ["{}"]
    assert default_templates(object()) == list(TEMPLATES)  # a tokenizer that does not say what it knows


def test_imagenet_metadata():
    pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    templates, names = openai_templates(), imagenet_class_names()
    assert len(set(templates)) == 80 and all(template.count("{}") == 1 for template in templates)
    assert templates[0] == "a bad photo of a {}."
    assert check_class_names(names) and len(names) == 1000 and (names[0], names[999]) == ("tench", "toilet paper")
    assert (names[657], names[744], names[836], names[837]) == ("missile", "projectile", "sunglass", "sunglasses")


@pytest.mark.parametrize("function", [openai_templates, imagenet_class_names])
def test_missing_open_clip_is_named(function, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"^[^\n]*pip install 'dinov3-hf\[text\]'$"):
        function()


def test_text_features_in_any_batch(aligned):
    model, processor = aligned
    texts = ["a cat", "a red house and a tree by a car", "dog"]
    together = text_features(model, processor.tokenizer, texts)
    alone = torch.cat([text_features(model, processor.tokenizer, [text]) for text in texts])
    torch.testing.assert_close(normalize(together), normalize(alone), atol=1e-5, rtol=0)
