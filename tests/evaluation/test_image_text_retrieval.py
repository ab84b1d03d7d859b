"""Recall@k against naive loops and scikit-learn, and captions of every kind."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PilImage
from sklearn.metrics import top_k_accuracy_score

from dinov3_hf.data.captions import find_caption_columns
from dinov3_hf.evaluation import image_text_retrieval
from dinov3_hf.evaluation.image_text_retrieval import (
    chance_recall,
    evaluate_retrieval,
    recall_at_k,
)

from ..samples import tiny_aligned


CAPTIONS = ["a red dog", "a dog", "two cats by a tree", "a house", "a blue boat", "a dog"]


@pytest.fixture(scope="module")
def aligned():
    return tiny_aligned(CAPTIONS)


def pictures(num):
    rng = np.random.default_rng(0)
    return [PilImage.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(num)]


def rows_of(columns, kinds, broken=()):
    count = len(next(iter(columns.values())))
    images = [{"bytes": b"no image", "path": None} if i in broken else x for i, x in enumerate(pictures(count))]
    return Dataset.from_dict({"image": images, **columns}, features=Features({"image": Image(), **kinds}))


def naive_recall(similarities, relevant, k):
    """The worst order of equal similarities: irrelevant items first."""
    hits = 0
    for scores, good in zip(similarities.tolist(), relevant.tolist(), strict=True):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], good[i]))
        hits += any(good[i] for i in order[:k])
    return hits / len(similarities)


@pytest.mark.parametrize("ties", [False, True])
def test_recall_equals_a_naive_loop(ties):
    generator = torch.Generator().manual_seed(0)
    similarities = torch.randn(40, 13, generator=generator)
    similarities = (similarities * 2).round() if ties else similarities
    relevant = torch.rand(40, 13, generator=generator) < 0.1
    relevant[torch.arange(40), torch.arange(40) % 13] = True
    found = recall_at_k(similarities, relevant, [1, 2, 5, 13, 20])
    assert found == {k: pytest.approx(naive_recall(similarities, relevant, k)) for k in (1, 2, 5, 13, 20)}
    if not ties:
        one = torch.nn.functional.one_hot(torch.arange(40) % 13, 13).bool()
        expected = top_k_accuracy_score(np.arange(40) % 13, similarities.numpy(), k=2, labels=range(13))
        assert recall_at_k(similarities, one, [2])[2] == pytest.approx(expected)


def test_features_that_say_nothing_recall_nothing():
    relevant = torch.eye(4, dtype=torch.bool)
    for value in (0.5, float("nan")):
        assert recall_at_k(torch.full((4, 4), value), relevant, [1, 3, 4]) == {1: 0.0, 3: 0.0, 4: 1.0}


def test_chance_is_the_mean_over_all_orders():
    num_relevant, items = torch.tensor([1, 2, 4]), 5
    for k in range(1, 7):
        hits = [
            any(place < relevant for place in order[:k])
            for relevant in num_relevant.tolist()
            for order in itertools.permutations(range(items))
        ]
        assert chance_recall(num_relevant, items, k) == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("queries_at_once", [1024, 2])
def test_evaluation_equals_naive(aligned, queries_at_once, monkeypatch):
    monkeypatch.setattr(image_text_retrieval, "QUERIES_AT_ONCE", queries_at_once)
    model, processor = aligned
    # Two captions an image, of which one is shared by two images and one comes twice at the same image.
    second = ["a cat ", "a house", None, "a house", "a tree", "a boat"]
    rows = rows_of({"caption": CAPTIONS, "more": second}, {"caption": Value("string"), "more": Value("string")}, (4,))
    result = evaluate_retrieval(
        model, processor, rows, caption_columns=["caption", "more"], ks=[1, 3], batch_size=2, progress=False
    )
    kept = [0, 1, 2, 3, 5]
    items = [(text.strip(), i) for i in kept for text in (CAPTIONS[i], second[i]) if text]
    with torch.no_grad():
        pixel_values = processor(images=[pictures(6)[i] for i in kept], return_tensors="pt")["pixel_values"]
        ids = processor.tokenizer([text for text, _ in items], padding=True, return_tensors="pt")["input_ids"]
        similarities = model(input_ids=ids, pixel_values=pixel_values).logits_per_image
    texts_of = {i: {text for text, owner in items if owner == i} for i in kept}
    relevant = torch.tensor([[text in texts_of[i] for text, _ in items] for i in kept])
    metrics = {metric["metric"]: metric for metric in result.metrics}
    assert len(metrics) == 4
    for k in (1, 3):
        ways = {"image to text": (similarities, relevant), "text to image": (similarities.T, relevant.T)}
        for way, (scores, good) in ways.items():
            metric = metrics[f"{way} recall@{k}"]
            assert metric["model"] == pytest.approx(naive_recall(scores, good, k))
            # Items a query may ask for, drawn in random order: 1 - C(N - R, k) / C(N, k).
            assert metric["chance"] == pytest.approx(chance_recall(good.sum(1), good.shape[1], k))
    assert result.skipped_images == {"test": 1}
    protocol = result.protocol
    assert (protocol["num_images"], protocol["num_captions"], protocol["num_different_captions"]) == (5, 9, 6)


def test_rows_without_captions_are_counted(aligned):
    lists = [["a dog", "a cat"], [], None, ["a house", None], ["  "], ["a tree"]]
    rows = rows_of({"captions": lists}, {"captions": List(Value("string"))}, broken=(0,))
    result = evaluate_retrieval(*aligned, rows, ks=[1], progress=False)
    assert result.skipped_rows == {"no caption, or one that is no text": 3}
    assert result.skipped_images == {"test": 1} and result.protocol["num_captions"] == 2
    numbers = rows_of({"caption": [1, 2]}, {"caption": Value("int64")})
    with pytest.raises(
        ValueError, match="^caption_columns: no row has a caption in caption, accepted: columns of texts$"
    ):
        evaluate_retrieval(*aligned, numbers, progress=False)


def test_two_images_of_one_caption_find_it_both(aligned):
    rows = rows_of({"caption": ["a dog", "a dog"]}, {"caption": Value("string")})
    result = evaluate_retrieval(*aligned, rows, ks=[1], progress=False)
    assert [(metric["model"], metric["chance"]) for metric in result.metrics] == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: recall_at_k(torch.ones(2, 3), torch.eye(2, 3).bool(), [0]), "ks: got [0], accepted: whole numbers"),
        (lambda: recall_at_k(torch.ones(2, 3), torch.eye(3).bool()), "relevant: got shape (3, 3), accepted: that of"),
        (
            lambda: recall_at_k(torch.ones(3, 2), torch.eye(3, 2).bool()),
            "relevant: got 1 queries without a relevant item, accepted: at least one for each",
        ),
        (
            lambda: find_caption_columns(Dataset.from_dict({"text": ["a"]})),
            "caption_columns: got none, accepted: columns of the data set (text)",
        ),
        (
            lambda: find_caption_columns(Dataset.from_dict({"text": ["a"]}), ["text", "alt"]),
            "caption_columns: got alt, accepted: columns of the data set (text)",
        ),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
