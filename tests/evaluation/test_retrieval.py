"""Instance retrieval against scikit-learn, naive loops and every order counted out."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation import retrieval
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.features import raw_image_features
from dinov3_hf.evaluation.retrieval import (
    evaluate_instance_retrieval,
    expected_average_precision,
    expected_gap,
    precision_sums,
)
from dinov3_hf.pipelines.neighbours import CosineBank

from ..samples import png


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1))


def bench(image_size=32, **fields):
    return Bench(tiny_model(), Preprocessing(image_size, image_size), progress=False, batch_size=4, **fields)


def dataset(images, labels, positives=None, label=None):
    features = {"image": Image(), "label": label or Value("int64")}
    columns = {"image": [image if isinstance(image, dict) else png(image) for image in images], "label": labels}
    if positives is not None:
        features["positives"], columns["positives"] = List(Value("int32")), positives
    return Dataset.from_dict(columns, features=Features(features))


def coloured(labels, seed, side=32):
    """Noisy images whose colour is their label's, one of eight."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 60, (len(labels), side, side, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image += np.array([190 * (label >> channel & 1) for channel in range(3)], dtype=np.uint8)
    return list(images)


def noise(num, seed, side=32):
    return list(np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), dtype=np.uint8))


def values(result, encoder):
    return {m["metric"] + (f"@{m['k']}" if "k" in m else ""): m[encoder] for m in result.metrics if encoder in m}


def naive_statistics(similarities, relevant, ks):
    """mAP by scikit-learn, GAP and recall by sorting, where no two similarities are equal."""
    from sklearn.metrics import average_precision_score

    answerable = [row for row in range(len(relevant)) if relevant[row].any()]
    statistics = {"mAP": np.mean([average_precision_score(relevant[row], similarities[row]) for row in answerable])}
    rows = zip(similarities, relevant, strict=True)
    first = sorted(((max(row), bool(flags[np.argmax(row)])) for row, flags in rows), reverse=True)
    gap, right = 0, 0
    for place, (_, is_right) in enumerate(first, 1):
        right += is_right
        gap += is_right * right / place
    statistics["GAP"] = gap / len(answerable)
    for k in ks:
        orders = [sorted(range(len(row)), key=lambda item: -row[item]) for row in similarities]
        statistics[f"recall@{k}"] = np.mean([any(relevant[row][i] for i in orders[row][:k]) for row in answerable])
    return statistics


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_that_of_scikit_learn(levels):
    from sklearn.metrics import average_precision_score

    generator = torch.Generator().manual_seed(levels)
    # With three levels nearly all scores are equal to others.
    scores = torch.randint(levels, (30, 25), generator=generator).float() / levels
    relevant = torch.rand(30, 25, generator=generator) < torch.linspace(0.05, 0.9, 30)[:, None]
    relevant[:, 3] = True
    found = precision_sums(scores, relevant) / relevant.sum(1)
    expected = [
        average_precision_score(flags, row) for flags, row in zip(relevant.numpy(), scores.numpy(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_relevant, num_items", [(1, 1), (1, 5), (2, 6), (4, 6), (6, 6)])
def test_expected_average_precision_is_the_mean_over_all_orders(num_relevant, num_items):
    flags = [item < num_relevant for item in range(num_items)]
    total = []
    for order in permutations(flags):
        hits = [place for place, flag in enumerate(order, 1) if flag]
        total.append(np.mean([number / place for number, place in enumerate(hits, 1)]))
    found = expected_average_precision(torch.tensor([num_relevant]), num_items).item()
    assert found == pytest.approx(np.mean(total))


def test_expected_gap_is_the_mean_over_all_answers_and_orders():
    chances = [0.2, 0.7, 0.0, 0.4]
    total = 0.0
    for right in product([0, 1], repeat=4):
        weight = np.prod([chance if flag else 1 - chance for chance, flag in zip(chances, right, strict=True)])
        sums = [
            sum(flag * sum(order[: place + 1]) / (place + 1) for place, flag in enumerate(order))
            for order in permutations(right)
        ]
        total += weight * np.mean(sums)
    assert expected_gap(torch.tensor(chances, dtype=torch.float64), 3) == pytest.approx(total / 3)


def test_similarities_are_cosines_even_where_all_are_nearly_one():
    generator = torch.Generator().manual_seed(0)
    near, far = (torch.randn(count, 12, generator=generator) for count in (40, 30))
    # Cosines of the second kind differ from one, and from each other, by about 1e-10.
    for items, queries, tolerance in ((near, far, 1e-6), (1 + 1e-5 * near, 1 + 1e-5 * far, 2e-12)):
        cosines = torch.cosine_similarity(queries[:, None].double(), items[None].double(), dim=2)
        found = CosineBank(items).similarities(queries)
        torch.testing.assert_close(found.double(), cosines - 1, rtol=0, atol=tolerance)
        assert (found.argmax(1) == cosines.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("at_once", [2**23, 45, 1])
def test_figures_are_those_of_naive_loops(monkeypatch, at_once):
    monkeypatch.setattr(retrieval, "MAX_SIMILARITIES", at_once)
    generator = np.random.default_rng(0)
    images = noise(20, 1)
    # Each query is half an image of the gallery; relevant is this, the second nearest, or none, and some others.
    asked = [image // 2 + other // 2 for image, other in zip(images, noise(15, 2), strict=False)]
    pixels = [torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) for some in (images, asked)]
    features = [raw_image_features(Preprocessing(32, 32).normalize(some)).double() for some in pixels]
    similarities = torch.cosine_similarity(features[1][:, None], features[0][None], dim=2).numpy()
    orders = similarities.argsort(axis=1)[:, ::-1]
    chosen = [orders[row, : row % 3][-1:].tolist() for row in range(15)]
    drawn = [generator.choice(orders[row, 2:], row % 4, replace=False).tolist() for row in range(15)]
    positives = [sorted(some + others) for some, others in zip(chosen, drawn, strict=True)]
    gallery, query = dataset(images, [0] * 20), dataset(asked, [0] * 15, positives)
    result = evaluate_instance_retrieval(bench(), gallery, query, positives_column="positives", ks=(5, 1))
    relevant = np.array([[item in named for item in range(20)] for named in positives])
    expected = naive_statistics(similarities, relevant, (1, 5))
    assert values(result, "raw_pixels") == pytest.approx(expected)
    assert expected["GAP"] > 0 and 0 < expected["recall@5"] < 1
    answerable = [row for row, named in enumerate(positives) if named]
    assert result.protocol["queries_without_relevant_image"] == 15 - len(answerable) > 0
    first = [bool(relevant[row][similarities[row].argmax()]) for row in answerable]
    assert result.hits["rows"] == answerable and result.hits["raw_pixels"].tolist() == first


def test_colours_are_found_and_their_opposites_last():
    labels = [0, 1, 2, 3, 4, 5, 6, 7] * 2
    gallery, query = dataset(coloured(labels, 0), labels), dataset(coloured(labels[:8], 1), labels[:8])
    result = evaluate_instance_retrieval(bench(), gallery, query)
    assert values(result, "raw_pixels") == {"mAP": 1, "GAP": 1, "recall@1": 1, "recall@5": 1, "recall@10": 1}
    chance = values(result, "chance")
    assert chance["recall@1"] == pytest.approx(2 / 16)
    # A random order has 0.54: five images of different colours are better.
    assert chance["recall@5"] == pytest.approx(5 / 8) and chance["recall@10"] == 1
    # The relevant two of sixteen come last.
    opposite = dataset(coloured([7 - label for label in labels[:8]], 1), labels[:8])
    result = values(evaluate_instance_retrieval(bench(), gallery, opposite), "raw_pixels")
    assert (result["GAP"], result["recall@10"]) == (0, 0)
    assert result["mAP"] == pytest.approx((1 / 15 + 2 / 16) / 2)


def test_labels_that_say_nothing_score_about_chance():
    generator = np.random.default_rng(0)
    gallery = dataset(noise(60, 0), generator.integers(0, 6, 60).tolist())
    query = dataset(noise(40, 1), generator.integers(0, 6, 40).tolist())
    result = evaluate_instance_retrieval(bench(), gallery, query)
    labels = torch.tensor(gallery["label"])
    counts = torch.tensor([int((labels == label).sum()) for label in query["label"]])
    drawn = expected_average_precision(counts, 60).mean().item()
    for encoder in ("model", "random_init", "raw_pixels"):
        assert values(result, encoder)["mAP"] == pytest.approx(drawn, abs=0.06)
    assert drawn < values(result, "chance")["mAP"] < drawn + 0.2


def test_one_order_for_all_queries_is_an_answer_without_looking():
    """Most queries show one instance: to name it first is right more often than a random order is."""
    shown, asked = [0] * 4 + [1] * 12, [0] * 9 + [1, 2]
    gallery, query = dataset(noise(16, 0), shown), dataset(noise(11, 1), asked)
    result = evaluate_instance_retrieval(bench(), gallery, query, ks=(1, 5))
    chance = values(result, "chance")
    # Four images of the first instance, then twelve of the second.
    second = sum((place + 1) / (place + 5) for place in range(12)) / 12
    assert chance["mAP"] == pytest.approx((9 * 1 + second) / 10)
    assert (chance["recall@1"], chance["recall@5"]) == (0.9, 1)
    # Nine of eleven first answers are right, all of the same confidence.
    assert chance["GAP"] == pytest.approx(9 * 9 / 11 / 10)


def test_equal_answers_count_against():
    same = [np.full((32, 32, 3), 90, dtype=np.uint8)] * 8
    result = evaluate_instance_retrieval(bench(), dataset(same, [0, 1] * 4), dataset(same[:2], [0, 1]), ks=(4, 5))
    for encoder in ("model", "random_init", "raw_pixels"):
        assert values(result, encoder) == {"mAP": 0.5, "GAP": 0, "recall@4": 0, "recall@5": 1}


def test_own_row_is_left_out():
    labels = [0, 1, 2, 3, 0, 1, 2, 5]
    rows = dataset(coloured(labels, 0), labels)
    with pytest.raises(ValueError, match="query: got the gallery's own rows, accepted: others, or exclude_same"):
        evaluate_instance_retrieval(bench(), rows, rows)
    result = evaluate_instance_retrieval(bench(), rows, rows, exclude_same=True, ks=(1,))
    assert values(result, "raw_pixels")["mAP"] == 1 and values(result, "chance")["recall@1"] == pytest.approx(1 / 6)
    assert result.protocol["num_test"] == 6 and result.protocol["queries_without_relevant_image"] == 2
    with pytest.raises(ValueError, match=r"exclude_same: got 3 queries, accepted: as many as the gallery \(8\)"):
        evaluate_instance_retrieval(bench(), rows, rows.select(range(3)), exclude_same=True)


def test_declared_classes_are_matched_by_name_and_unlabelled_rows_with_nothing():
    first, second = (ClassLabel(names=names) for names in (["cat", "dog"], ["dog", "emu"]))
    gallery = dataset(coloured([1, 2, 2], 0), [1, 0, None], label=first)
    query = dataset(coloured([1, 4, 2], 1), [0, 1, None], label=second)
    result = evaluate_instance_retrieval(bench(), gallery, query, ks=(1,))
    assert result.hits["rows"] == [0]
    assert values(result, "raw_pixels")["recall@1"] == 1


def test_undecodable_images_are_left_out_and_rows_keep_their_numbers():
    images, bad = coloured([0, 1, 2, 3, 4], 0), {"bytes": b"not an image", "path": None}
    gallery = dataset([bad, *images], [0] * 6)
    query = dataset([bad, *coloured([1, 3, 4], 1)], [0] * 4, [[1], [2], [0, 4], [0]])
    result = evaluate_instance_retrieval(bench(), gallery, query, positives_column="positives", ks=(1,))
    assert result.skipped_images == {"train": 1, "test": 1}
    assert result.hits["rows"] == [1, 2] and values(result, "raw_pixels")["mAP"] == 1
    assert (result.protocol["num_train"], result.protocol["queries_without_relevant_image"]) == (5, 1)
    assert result.protocol["relevant_images_per_query"] == 1


def test_whole_images_of_any_shape_and_runs_repeat():
    generator = np.random.default_rng(0)
    shapes = [(40, 64), (64, 40), (48, 48), (40, 80)]
    images = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    gallery, query = dataset(images, [0, 1, 2, 3]), dataset(images[::-1], [3, 2, 1, 0])
    first, second = (evaluate_instance_retrieval(bench(), gallery, query, whole=True, ks=(1,)) for _ in range(2))
    assert values(first, "model")["recall@1"] == values(first, "raw_pixels")["recall@1"] == 1
    assert first.protocol["preprocessing"]["patch_size"] == 8
    assert first.pictures["retrieved"].tobytes() == second.pictures["retrieved"].tobytes()
    assert first.as_dict() == second.as_dict()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"instance_column": "id"},
            r"instance_column: got 'id', accepted: a column of the data set \(image, label, posit",
        ),
        (
            {"instance_column": "image"},
            "instance_column: got 'image' of PIL.Image.Image, accepted: a column with one number or text a row",
        ),
        ({"positives_column": "good"}, "positives_column: got 'good', accepted: a column"),
        ({"positives_column": "positives"}, "positives_column: row 1 has .*, accepted: a list of rows .*, 0 to 2"),
        ({"positives_column": "label"}, "positives_column: row 0 has 0, accepted: a list of rows of the gallery"),
        ({"image_column": "picture"}, "image_column: got 'picture', accepted: a column"),
        ({"ks": (0, 5)}, r"ks: got \[0, 5\], accepted: whole numbers of at least 1"),
        ({"image_size": 30}, "image_size: got 30, accepted: a multiple of the model's patch size"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message):
    request = dict(change)
    gallery, query = (dataset(noise(3, seed), [0, 1, 2], [[0], [3], []]) for seed in (0, 1))
    with pytest.raises(ValueError, match=message):
        evaluate_instance_retrieval(bench(request.pop("image_size", 32)), gallery, query, **request)


def test_queries_that_share_nothing_with_the_gallery_are_refused():
    with pytest.raises(ValueError, match="instance_column: 'label' gives none of the 2 queries a relevant image"):
        evaluate_instance_retrieval(bench(), dataset(noise(2, 0), [0, 1]), dataset(noise(2, 1), [2, 3]))
