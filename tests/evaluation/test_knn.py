"""k-NN classification against scikit-learn, and the evaluation around it."""

import numpy as np
import pytest
import torch

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.features import randomly_initialised, raw_image_features
from dinov3_hf.evaluation.knn import evaluate_knn
from dinov3_hf.pipelines.neighbours import knn_classify

from ..samples import coloured_images


def tiny_model(seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**{**sizes, "patch_size": 8, "image_size": 32, "layerscale_value": 0.1, **fields}))


def test_random_init_depends_on_the_seed_alone():
    model = tiny_model(seed=5)
    state = torch.get_rng_state()
    first, second, other = (
        randomly_initialised(model, 1),
        randomly_initialised(model, 1),
        randomly_initialised(model, 2),
    )
    assert torch.equal(state, torch.get_rng_state())
    name = "layer.1.mlp.up_proj.weight"
    weights = [network.state_dict()[name] for network in (first, second, other, model)]
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.equal(weights[0], weight) for weight in weights[2:])
    assert first.config.to_dict() == model.config.to_dict() and not first.training


def test_raw_pixels_are_averaged_down():
    images = torch.rand(2, 3, 64, 64)
    blocks = images.unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(raw_image_features(images), blocks)


def test_evaluation_counts_what_it_says():
    train, test = coloured_images(40, seed=0, bad=(3,)), coloured_images(21, seed=1, bad=(0, 5))
    model = tiny_model().train()
    result = evaluate_knn(Bench(model, Preprocessing(32, 32), progress=False, batch_size=4), train, test, ks=(5, 1))
    assert [(metric["metric"], metric["k"]) for metric in result.metrics] == [("top-1", 1), ("top-1", 5)]
    assert result.skipped_images == {"train": 1, "test": 2}
    assert (result.protocol["num_train"], result.protocol["num_test"]) == (39, 19)
    assert all(metric["raw_pixels"] == 1 for metric in result.metrics)
    truth = [label for index, label in enumerate(test["label"]) if index not in (0, 5)]
    assert result.metrics[0]["chance"] == pytest.approx(max(map(truth.count, range(3))) / 19)
    low, high = result.metrics[0]["interval"]
    assert low <= result.metrics[0]["model"] <= high and 0.05 < high - low < 0.5
    assert sum(line["images"] for line in result.details["per_class"]) == 19
    mean = sum(line["images"] * line["model"] for line in result.details["per_class"]) / 19
    assert mean == pytest.approx(result.metrics[0]["model"])


def test_test_rows_of_one_class_are_refused(monkeypatch):
    train, test = coloured_images(30, seed=0), coloured_images(12, seed=1)
    alone = test.select([row for row, label in enumerate(test["label"]) if label == test["label"][0]])
    monkeypatch.setattr(Bench, "extract", lambda *given, **named: pytest.fail("the network was run"))
    bench = Bench(tiny_model(), Preprocessing(32, 32), progress=False)
    with pytest.raises(ValueError, match="label_column: all .* rows of test have 'label' .*, and a constant answer"):
        evaluate_knn(bench, train, alone, ks=(3,))


def test_evaluation_equals_features_taken_by_hand():
    train, test = coloured_images(30, seed=0), coloured_images(20, seed=1)
    model = tiny_model()
    bench = Bench(model, Preprocessing(32, 32), baselines=False, progress=False, batch_size=7)
    result = evaluate_knn(bench, train, test, ks=(3,))

    def features(rows):
        pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in rows["image"]])
        with torch.no_grad():
            return model.eval()(Preprocessing(32, 32).normalize(pixels)).pooler_output

    predictions = knn_classify(features(train), torch.tensor(train["label"]), features(test), 3, 3)
    expected = (predictions == torch.tensor(test["label"])).double().mean().item()
    assert set(result.metrics[0]) == {"metric", "k", "model", "chance", "interval"}
    assert result.metrics[0]["model"] == pytest.approx(expected)


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
