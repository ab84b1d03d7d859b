"""Logistic regression against scikit-learn's own search, and the evaluation around it."""

import io
import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PilImage

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation import linear
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.linear import C_GRID, accuracies_by_c, evaluate_linear, fit_logistic
from dinov3_hf.evaluation.robustness import validation_split


COLOURS = ["red", "green", "blue"]


def tiny_bench(**settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1))
    return Bench(model, Preprocessing(32, 32), progress=False, **settings)


def coloured_images(num, seed, names=COLOURS, bad=(), strength=180, shuffled=False):
    """Images of one noisy colour each, labelled with it or, `shuffled`, with that of another."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, num)
    pixels = generator.integers(0, 255 - strength, (num, 32, 32, 3), dtype=np.uint8)
    images = []
    for index, colour in enumerate(labels):
        pixels[index, :, :, colour] += strength
        buffer = io.BytesIO()
        PilImage.fromarray(pixels[index]).save(buffer, format="PNG")
        images.append({"bytes": b"not an image" if index in bad else buffer.getvalue(), "path": None})
    labels = generator.permutation(labels) if shuffled else labels
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    values = [names.index(COLOURS[label]) for label in labels]
    return Dataset.from_dict({"image": images, "label": values}, features=features)


def random_problem(seed, num=240, width=10, num_classes=4):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(num_classes, width))
    labels = generator.integers(0, num_classes, num)
    # Dimensions of very different scale, as those of networks.
    scales = 10 ** generator.uniform(-2, 2, width)
    features = (centres[labels] + 1.3 * generator.normal(size=(num, width))) * scales
    return features.astype(np.float32), labels


def reference_search(features, labels, held):
    """Search scikit-learn's own way: a pipeline, a grid and a predefined split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    folds = np.full(len(labels), -1)
    folds[held] = 0
    pipeline = Pipeline([("scale", StandardScaler()), ("classify", LogisticRegression(max_iter=1000))])
    grid = {"classify__C": [10.0**exponent for exponent in range(-6, 6)]}
    return GridSearchCV(pipeline, grid, cv=PredefinedSplit(folds)).fit(features, labels)


@pytest.mark.parametrize("seed", range(4))
def test_choice_and_fit_are_those_of_scikit_learn(seed):
    features, labels = random_problem(seed)
    fit, held = (part.numpy() for part in validation_split(torch.from_numpy(labels), seed))
    found = accuracies_by_c(features[fit], labels[fit], features[held], labels[held], "", progress=False)
    search = reference_search(features, labels, held)
    # Fits that start from one another may differ in an image that lies on the border.
    np.testing.assert_allclose(list(found.values()), search.cv_results_["mean_test_score"], atol=1.01 / len(held))
    chosen = max(found, key=found.get)
    queries = random_problem(seed + 100)[0]
    mine = fit_logistic(features, labels, chosen)
    same = search.best_estimator_.set_params(classify__C=chosen).fit(features, labels)
    assert mine.predict(queries).tolist() == same.predict(queries).tolist()
    assert found[chosen] >= search.best_score_ - 1.01 / len(held)


def test_scale_of_the_features_means_nothing():
    features, labels = random_problem(0)
    features = features.astype(np.float64)
    # Like the class tokens of a randomly initialised network, which hardly vary.
    small = 1 + 1e-6 * features
    found, again = (
        accuracies_by_c(x[:200], labels[:200], x[200:], labels[200:], "", False) for x in (features, small)
    )
    assert list(found.values()) == pytest.approx(list(again.values()), abs=1.01 / 40)
    assert max(again.values()) > 0.6


def test_evaluation_equals_scikit_learn_on_features_taken_by_hand():
    train, test = coloured_images(60, 0, strength=8), coloured_images(50, 1, strength=8)
    bench = tiny_bench(baselines=False, batch_size=7)
    for kind in ("cls", "cls+mean"):
        result = evaluate_linear(bench, train, test, features=kind)

        def features(rows, kind=kind):
            pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in rows["image"]])
            with torch.no_grad():
                output = bench.model.eval()(Preprocessing(32, 32).normalize(pixels))
            mean = [output.patch_tokens.mean(1)] if kind == "cls+mean" else []
            return torch.cat([output.pooler_output, *mean], dim=1).numpy()

        labels = np.array(train["label"])
        search = reference_search(features(train), labels, validation_split(torch.from_numpy(labels), 0)[1].numpy())
        assert result.protocol["C"] == {"model": search.best_params_["classify__C"]}
        hits = search.predict(features(test)) == np.array(test["label"])
        # Batches of another size round the features otherwise.
        assert result.metrics[0]["model"] == pytest.approx(hits.mean(), abs=0.021)
        assert (result.hits["model"].numpy() == hits).mean() >= 0.98


def test_evaluation_counts_what_it_says():
    train, test = coloured_images(40, 0, bad=(3,)), coloured_images(21, 1, bad=(0, 5))
    result = evaluate_linear(tiny_bench(batch_size=4), train, test)
    assert result.task == "linear" and result.skipped_images == {"train": 1, "test": 2}
    protocol, (metric,) = result.protocol, result.metrics
    assert (protocol["num_train"], protocol["num_test"], protocol["num_held_out"]) == (39, 19, 4)
    assert set(metric) == {"metric", "model", "random_init", "raw_pixels", "chance", "interval"}
    assert metric["raw_pixels"] == 1 and metric["metric"] == "top-1"
    truth = [label for index, label in enumerate(test["label"]) if index not in (0, 5)]
    assert metric["chance"] == pytest.approx(max(map(truth.count, range(3))) / 19)
    assert result.hits["rows"] == [row for row in range(21) if row not in (0, 5)]
    assert result.hits["model"].double().mean() == pytest.approx(metric["model"])
    mean = sum(line["images"] * line["model"] for line in result.details["per_class"]) / 19
    assert mean == pytest.approx(metric["model"])
    assert set(protocol["C"].values()) <= set(protocol["C_grid"])
    assert all(1 <= count <= protocol["max_iterations"] for count in protocol["iterations"].values())
    assert result.pictures["C"].width > 600 and result.pictures["confusion"].width > 100
    json.dumps(result.as_dict())


@pytest.mark.parametrize("best, chosen, is_end", [((2, 3), 2, False), ((11,), 11, True), (range(12), 0, True)])
def test_the_first_of_the_best_is_taken_and_an_end_of_the_grid_told(monkeypatch, best, chosen, is_end):
    curve = {c: 0.9 if place in best else 0.8 for place, c in enumerate(C_GRID)}
    monkeypatch.setattr(linear, "accuracies_by_c", lambda *arguments: curve)
    train = coloured_images(40, 0)
    protocol = evaluate_linear(tiny_bench(baselines=False), train, train.select(range(9))).protocol
    assert protocol["C"] == {"model": C_GRID[chosen]}
    assert protocol["C_at_an_end_of_the_grid"] == ["model"] * is_end


def test_two_runs_give_the_same():
    train, test = coloured_images(40, 0, strength=8), coloured_images(30, 1, strength=8)
    first, second = (evaluate_linear(tiny_bench(), train, test) for _ in range(2))
    assert first.as_dict() == second.as_dict()


def test_test_images_decide_nothing_about_each_other():
    train, test = coloured_images(40, 0, strength=8), coloured_images(30, 1, strength=8)
    whole, part = (evaluate_linear(tiny_bench(batch_size=1), train, rows) for rows in (test, test.select(range(9))))
    for name in ("model", "random_init", "raw_pixels"):
        assert torch.equal(whole.hits[name][:9], part.hits[name])


def test_labels_of_other_images_give_chance():
    train, test, wrong = coloured_images(60, 0), coloured_images(150, 1), coloured_images(150, 1, shuffled=True)
    right, shuffled = (evaluate_linear(tiny_bench(baselines=False), train, rows).metrics[0] for rows in (test, wrong))
    # Four standard deviations of a third of 150 images.
    assert right["model"] == 1 and shuffled["model"] == pytest.approx(1 / 3, abs=0.154)


def test_classes_that_train_lacks_count_as_missed():
    train = coloured_images(60, 0).filter(lambda row: row["label"] != 2)
    test = coloured_images(30, 1, names=["blue", "red", "green"])
    result = evaluate_linear(tiny_bench(), train, test)
    assert result.protocol["classes_not_in_train"] == ["blue"]
    share = sum(label != 0 for label in test["label"]) / 30
    assert result.metrics[0]["raw_pixels"] == pytest.approx(share) and share < 1
    assert {line["class"]: line["raw_pixels"] for line in result.details["per_class"]} == {
        "red": 1,
        "green": 1,
        "blue": 0,
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": "patches"}, r"features: got 'patches', accepted: cls, cls\+mean"),
        ({"label_column": "labels"}, "label_column: got 'labels', accepted: a column of the data set"),
        ({"image_column": "picture"}, "image_column: got 'picture', accepted: a column"),
        ({"num": 4}, "train: got 4 images of 3 classes, accepted: two classes or more, and enough images"),
        ({"size": 30}, "image_size: got 30, accepted: a multiple of the model's patch size"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message):
    change = dict(change)
    bench = tiny_bench()
    bench.extract = None
    size = change.pop("size", 32)
    bench.preprocessing = Preprocessing(size, size)
    rows = coloured_images(change.pop("num", 20), seed=0)
    with pytest.raises(ValueError, match=message):
        evaluate_linear(bench, rows, rows, **change)
