"""Words on an image, against the functions that the evaluation uses, and the threshold that follows a slider."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov3_hf import tiny_checkpoint
from dinov3_hf.checkpoints.processors import processor_for
from dinov3_hf.data.scenes import render_scene
from dinov3_hf.pipelines.class_embeddings import class_embeddings
from dinov3_hf.pipelines.class_maps import fit_image, segment_logits
from dinov3_hf.pipelines.encoder import Encoder
from dinov3_hf.pipelines.open_vocabulary import WordMap, check_words, map_words
from dinov3_hf.pipelines.search import Embedder


WORDS = ["tree", "boat", "red house"]


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained()


def image(width, height):
    return Image.fromarray(render_scene(5, "test", "crowded", 128).image).resize((width, height))


@pytest.mark.parametrize("size, detail, seen", [((128, 128), 1, (64, 64)), ((150, 100), 2, (192, 128))])
def test_words_are_compared_at_scales_up_to_the_detail(size, detail, seen, embedder):
    found = map_words(embedder, image(*size), WORDS, detail)
    patches, whole = (class_embeddings(embedder.model, embedder.tokenizer, WORDS, part=p) for p in ("patch", "image"))
    resized = image(*size).resize(seen, Image.Resampling.BICUBIC)
    pixels = fit_image(resized, embedder.image_processor, 64, 8)
    scales = [0.5, 1.0] if detail == 2 else [1.0]
    logits = segment_logits(embedder.model, pixels, patches, None, None, scales, size[::-1], whole)
    assert found.words == tuple(WORDS) and found.best.shape == found.lead.shape == size[::-1]
    assert torch.equal(found.best.long(), logits.argmax(0))
    torch.testing.assert_close(found.lead.float(), logits.amax(0) - logits.mean(0), atol=1e-3, rtol=0)


def test_threshold_runs_from_the_smallest_lead_to_the_largest():
    lead = torch.linspace(-3, 5, 10_000).reshape(100, 100)
    words = WordMap(("a", "b"), (lead > 0).to(torch.uint8), lead)
    low, high = words.span()
    assert (low, high) == pytest.approx(np.percentile(lead.numpy(), (1, 99)))
    for threshold in (0, 0.25, 1):
        expected = np.where(lead.numpy() >= low + threshold * (high - low), np.where(lead.numpy() > 0, 2, 1), 0)
        assert (words.classes(threshold).numpy() != expected).mean() < 1e-3
    kept = [(words.classes(threshold) > 0).float().mean().item() for threshold in (0, 0.5, 1)]
    assert kept == pytest.approx([0.99, 0.5, 0.01], abs=0.01)


def test_one_word_alone_is_ranked_by_its_cosine(embedder):
    found = map_words(embedder, image(64, 64), ["tree"], 1)
    assert found.best.max() == 0 and found.lead.float().std() > 0
    assert set(found.classes(0.5).unique().tolist()) == {0, 1}


def test_a_model_without_words_is_refused(embedder):
    assert check_words(embedder) is embedder
    network = Encoder.from_pretrained().network
    with pytest.raises(ValueError, match="^model: got a Dinov3Model, accepted: a model with a text tower"):
        check_words(Embedder(network, processor_for(tiny_checkpoint(), 48)))
