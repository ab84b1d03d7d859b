"""Protocols repeated by layer and by image size."""

import pytest
import torch

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.knn import evaluate_knn
from dinov3_hf.evaluation.layers import choose_layers, evaluate_layers
from dinov3_hf.evaluation.resolution import evaluate_resolution


def tiny_model(layers=3):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.5)).eval()


def test_layers_are_chosen_evenly():
    assert choose_layers(4) == [1, 2, 3, 4] and choose_layers(12) == list(range(1, 13))
    assert choose_layers(40)[-1] == 40 and len(choose_layers(40)) == 12 and choose_layers(5, [4, 2, 4]) == [2, 4]
    with pytest.raises(ValueError, match=r"layers: got 6, accepted: 1 to the model's number of layers \(5\)"):
        choose_layers(5, [6])


def test_tasks_are_repeated_by_layer_and_by_size():
    train, test = load_scenes("train", 24), load_scenes("test", 12)
    bench = Bench(tiny_model(), Preprocessing(32, 36), progress=False)

    def evaluate(other):
        return evaluate_knn(other, train, test, ks=(3,))

    by_layer = evaluate_layers(bench, evaluate, [1, 3])
    assert by_layer.task == "layers of knn" and [line["layer"] for line in by_layer.metrics] == [1, 3]
    whole = evaluate(bench).metrics[0]
    assert by_layer.metrics[1] == {**whole, "layer": 3}
    by_size = evaluate_resolution(bench, evaluate, [64, 32])
    assert [line["image_size"] for line in by_size.metrics] == [32, 64]
    assert by_size.metrics[0] == {**whole, "image_size": 32}
    other = Bench(tiny_model(), Preprocessing(64, 72), progress=False)
    assert by_size.metrics[1] == {**evaluate(other).metrics[0], "image_size": 64}
    assert by_size.pictures["top-1, k=3"].width > 600
    with pytest.raises(ValueError, match="image_size: got 60, accepted: a multiple of the model's patch size"):
        evaluate_resolution(bench, evaluate, [64, 60])
