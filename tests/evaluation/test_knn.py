"""k-NN classification against scikit-learn, and the evaluation around it."""

import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PilImage

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.columns import read_vocabulary
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.features import raw_image_features, untrained_twin
from dinov3_hf.evaluation.knn import evaluate_knn
from dinov3_hf.pipelines.neighbours import NeighbourBank, knn_classify, vote


COLOURS = ClassLabel(names=["red", "green", "blue"])


def random_problem(num_bank=300, num_queries=90, width=12, num_classes=7, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num_classes, width, generator=generator)
    labels = torch.randint(num_classes, (num_bank + num_queries,), generator=generator)
    features = centres[labels] + 1.5 * torch.randn(len(labels), width, generator=generator) + offset
    return features[:num_bank], labels[:num_bank], features[num_bank:]


def tiny_model(seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**{**sizes, "patch_size": 8, "image_size": 32, "layerscale_value": 0.1, **fields}))


def png(pixels: np.ndarray) -> dict:
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def coloured_images(num, seed, side=32, label=COLOURS, bad=()):
    """Images of one noisy colour each, labelled with it: every image feature that is worth something separates them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, num)
    pixels = generator.integers(0, 60, (num, side, side, 3), dtype=np.uint8)
    for index, colour in enumerate(labels):
        pixels[index, :, :, colour] += 180
    images = [{"bytes": b"not an image", "path": None} if i in bad else png(image) for i, image in enumerate(pixels)]
    values = labels.tolist() if isinstance(label, ClassLabel) else [["c", "a", "b"][index] for index in labels]
    return Dataset.from_dict({"image": images, "label": values}, features=Features({"image": Image(), "label": label}))


@pytest.mark.parametrize("k", [1, 10, 20])
def test_predictions_are_those_of_scikit_learn(k):
    from sklearn.neighbors import KNeighborsClassifier

    bank, labels, queries = random_problem()
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = reference.fit(bank.double().numpy(), labels.numpy()).predict(queries.double().numpy())
    assert knn_classify(bank, labels, queries, k, num_classes=7).tolist() == expected.tolist()


def test_weights_matter():
    similarities, labels = torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[0, 1, 1]])
    assert vote(similarities, labels, 2).tolist() == [0]
    assert vote(similarities, labels, 2, temperature=100.0).tolist() == [1]


def test_chunks_change_nothing():
    bank, labels, queries = random_problem()
    whole, parts = (NeighbourBank(bank, labels, 7, *sizes) for sizes in ((1024, 16384), (13, 17)))
    torch.testing.assert_close(whole.search(queries, 20)[0], parts.search(queries, 20)[0])
    assert torch.equal(whole.search(queries, 20)[1], parts.search(queries, 20)[1])


def test_several_k_from_one_search_equal_single_ones():
    bank, labels, queries = random_problem()
    together = NeighbourBank(bank, labels, 7).classify(queries, [1, 10, 20])
    for k, predictions in together.items():
        assert torch.equal(predictions, knn_classify(bank, labels, queries, k, 7))


def test_similarities_are_cosines_even_where_all_are_nearly_one():
    bank, labels, queries = random_problem(offset=0.0)
    plain = NeighbourBank(bank, labels, 7).search(queries, 5)[0]
    cosines = torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2)
    torch.testing.assert_close(plain.double(), cosines.topk(5).values, rtol=0, atol=1e-6)
    # An untrained network's class tokens differ by 1e-4 and less: the order of neighbours must not drown in rounding.
    bank, queries = 1 + 1e-5 * bank, 1 + 1e-5 * queries
    found = NeighbourBank(bank, torch.arange(len(bank)), len(bank)).search(queries, 5)[1]
    exact = (
        torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2).topk(5).indices
    )
    assert (found == exact).float().mean() > 0.9


def test_features_that_hold_the_label_score_everything():
    labels = torch.arange(7).repeat(20)
    features = torch.nn.functional.one_hot(labels, 7).float() + 0.05 * torch.rand(
        140, 7, generator=torch.manual_seed(0)
    )
    assert torch.equal(knn_classify(features[:70], labels[:70], features[70:], 10, 7), labels[70:])


def test_bank_smaller_than_k_is_refused():
    bank, labels, queries = random_problem(num_bank=5)
    with pytest.raises(ValueError, match=r"k: got 6, accepted: 1 to the size of the bank \(5\)"):
        knn_classify(bank, labels, queries, 6, 7)


def test_twin_is_untrained_and_repeats():
    model = tiny_model(seed=5)
    state = torch.get_rng_state()
    first, second, other = untrained_twin(model, 1), untrained_twin(model, 1), untrained_twin(model, 2)
    assert torch.equal(state, torch.get_rng_state())
    name = "layer.1.mlp.up_proj.weight"
    weights = [network.state_dict()[name] for network in (first, second, other, model)]
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.equal(weights[0], weight) for weight in weights[2:])
    assert first.config.to_dict() == model.config.to_dict() and not first.training


def test_preprocessing_resizes_the_shorter_side_then_crops():
    image = torch.randint(0, 256, (3, 40, 80), dtype=torch.uint8, generator=torch.manual_seed(0))
    kept = Preprocessing(image_size=32, resize_size=40).image(image)
    assert torch.equal(kept, image[:, 4:36, 24:56])
    assert Preprocessing(28, 32).image(image).shape == (3, 28, 28)
    normal = Preprocessing(32, 40, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4)).normalize(kept[None])
    expected = (kept[2].double() / 255 - 0.3) / 0.4
    torch.testing.assert_close(normal[0, 2].double(), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="resize_size: got 20, accepted: at least image_size"):
        Preprocessing(32, 20)


def test_raw_pixels_are_averaged_down():
    images = torch.rand(2, 3, 64, 64)
    blocks = images.unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(raw_image_features(images), blocks)


def test_evaluation_counts_what_it_says():
    train, test = coloured_images(40, seed=0, bad=(3,)), coloured_images(21, seed=1, bad=(0, 5))
    model = tiny_model().train()
    result = evaluate_knn(Bench(model, Preprocessing(32, 32), progress=False, batch_size=4), train, test, ks=(5, 1))
    assert [(measure["measure"], measure["k"]) for measure in result["measures"]] == [("top-1", 1), ("top-1", 5)]
    assert result["skipped_images"] == {"train": 1, "test": 2}
    assert (result["protocol"]["num_train"], result["protocol"]["num_test"]) == (39, 19)
    assert all(measure["raw_pixels"] == 1 for measure in result["measures"])
    kept = [label for index, label in enumerate(train["label"]) if index != 3]
    most = max(range(3), key=kept.count)
    truth = [label for index, label in enumerate(test["label"]) if index not in (0, 5)]
    assert result["measures"][0]["chance"] == pytest.approx(truth.count(most) / 19)
    assert sum(line["images"] for line in result["per_class"]) == 19
    mean = sum(line["images"] * line["model"] for line in result["per_class"]) / 19
    assert mean == pytest.approx(result["measures"][0]["model"])


def test_evaluation_equals_features_taken_by_hand():
    train, test = coloured_images(30, seed=0), coloured_images(20, seed=1)
    model = tiny_model()
    bench = Bench(model, Preprocessing(32, 32), controls=False, progress=False, batch_size=7)
    result = evaluate_knn(bench, train, test, ks=(3,))

    def features(rows):
        pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in rows["image"]])
        with torch.no_grad():
            return model.eval()(Preprocessing(32, 32).normalize(pixels)).pooler_output

    predictions = knn_classify(features(train), torch.tensor(train["label"]), features(test), 3, 3)
    expected = (predictions == torch.tensor(test["label"])).double().mean().item()
    assert set(result["measures"][0]) == {"measure", "k", "model", "chance"}
    assert result["measures"][0]["model"] == pytest.approx(expected)


def test_text_labels_and_numbers_are_classes():
    train, test = (coloured_images(10, seed, label=Value("string")) for seed in (0, 1))
    letters = {"a": 0, "b": 1, "c": 2}
    assert read_vocabulary(train, test, "label") == (["a", "b", "c"], letters, letters)
    numbers, more = Dataset.from_dict({"label": [30, 7]}), Dataset.from_dict({"label": [7, 9]})
    assert read_vocabulary(numbers, more, "label") == (["7", "9", "30"], {30: 2, 7: 0}, {7: 0, 9: 1})


def test_declared_classes_are_matched_by_name():
    train, test = (
        Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=names)}))
        for names in (["cat", "dog", "emu"], ["dog", "fox"])
    )
    names, first, second = read_vocabulary(train, test, "label")
    assert names == ["cat", "dog", "emu", "fox"]
    assert first == {0: 0, 1: 1, 2: 2} and second == {0: 1, 1: 3}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"label_column": "labels"},
            r"label_column: got 'labels', accepted: a column of the data set \(image, label\)",
        ),
        ({"label_column": "image"}, "label_column: got 'image', accepted: a column with one class a row"),
        ({"image_column": "picture"}, "image_column: got 'picture', accepted: a column"),
        ({"ks": (10, 30)}, r"k: got \[10, 30\], accepted: 1 to the number of train images \(20\)"),
        (
            {"preprocessing": Preprocessing(30, 30)},
            "image_size: got 30, accepted: a multiple of the model's patch size",
        ),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message):
    rows = coloured_images(20, seed=0)
    request = {"preprocessing": Preprocessing(32, 32), "ks": (10,), **change}
    with pytest.raises(ValueError, match=message):
        evaluate_knn(Bench(tiny_model(), request.pop("preprocessing"), progress=False), rows, rows, **request)


def test_unlabelled_splits_are_refused():
    rows = Dataset.from_dict({"label": [0, -1]}, features=Features({"label": ClassLabel(names=["a", "b"])}))
    with pytest.raises(ValueError, match="holds unlabelled rows"):
        read_vocabulary(rows, rows, "label")
