"""Norms, dimensions and components against values computed the plain way, and planted outliers found."""

import numpy as np
import pytest
import torch

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.outliers import evaluate_outliers


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.5)).eval()


def values(result, title, key):
    return {line[key]: line["model"] for line in result.metrics if line["metric"] == title}


def states_of(model, rows, preprocessing):
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in rows["image"]])
    pixels = preprocessing.normalize(torch.stack([preprocessing.image(one) for one in pixels]))
    with torch.inference_mode():
        output = model(pixels, output_hidden_states=True)
    prefix = 1 + model.config.num_register_tokens
    return [state[:, prefix:].double().flatten(0, 1).numpy() for state in output.hidden_states], output


def test_measures_are_those_of_numpy():
    model, rows, view = tiny_model(), load_scenes("test", 10, subset="crowded"), Preprocessing(32, 32)
    result = evaluate_outliers(Bench(model, view, batch_size=4, progress=False), rows)
    states, output = states_of(model, rows, view)
    for layer, state in enumerate(states):
        norms, sizes = np.linalg.norm(state, axis=1), np.abs(state).mean(0)
        # torch takes the lower of two middle values for the median.
        middle = np.sort(norms)[(len(norms) - 1) // 2]
        assert values(result, "largest / median norm", "layer")[layer] == pytest.approx(norms.max() / middle, rel=1e-5)
        assert values(result, "high-norm patches", "layer")[layer] == pytest.approx((norms > 3 * middle).mean())
        middle = np.sort(sizes)[(len(sizes) - 1) // 2]
        found = values(result, "largest / median dimension", "layer")[layer]
        assert found == pytest.approx(sizes.max() / middle, rel=1e-5)
    after = output.patch_tokens.double().flatten(0, 1).numpy()
    standard = (states[-1] - states[-1].mean(0)) / states[-1].std(0)
    for name, tokens in (("before norm", states[-1]), ("after norm", after), ("after batch norm", standard)):
        squares = (tokens**2).mean(0)
        found = values(result, "squared magnitude in the largest dimension", "tokens")[name]
        assert found == pytest.approx(squares.max() / squares.sum(), rel=1e-5)
        singular = np.linalg.svd(tokens - tokens.mean(0), compute_uv=False) ** 2
        found = values(result, "variance in the first principal component", "tokens")[name]
        assert found == pytest.approx(singular[0] / singular.sum(), rel=1e-5)
    assert result.protocol["num_patches"] == 10 * 16 and set(result.metrics[0]) >= {"model", "random_init"}


def test_a_planted_dimension_and_planted_patches_are_found():
    model, rows = tiny_model(), load_scenes("test", 6, subset="crowded")
    with torch.no_grad():
        model.layer[1].mlp.down_proj.bias[7] = 60.0
    result = evaluate_outliers(Bench(model, Preprocessing(32, 32), progress=False), rows)
    assert values(result, "extreme dimensions", "layer") == {0: 0, 1: 0, 2: 1}
    assert [line["dimensions"] for line in result.details["extreme_dimensions"]] == [[], [], [7]]
    shares = values(result, "squared magnitude in the largest dimension", "tokens")
    assert shares["before norm"] > 0.9 and shares["after batch norm"] == pytest.approx(1 / 24)
    model = tiny_model()
    embed = model.embeddings.forward

    def with_high_norm(*arguments, **keywords):
        tokens = embed(*arguments, **keywords).clone()
        tokens[:, -1] *= 50
        return tokens

    model.embeddings.forward = with_high_norm
    result = evaluate_outliers(Bench(model, Preprocessing(32, 32), baselines=False, progress=False), rows)
    assert values(result, "high-norm patches", "layer")[0] == pytest.approx(1 / 16)
    assert set(result.pictures) == {"norm-histogram", "dimensions-by-layer", "norm-maps"}


def test_bad_requests_are_refused():
    bench, rows = Bench(tiny_model(), Preprocessing(30, 32), progress=False), load_scenes("test", 2)
    with pytest.raises(ValueError, match="image_size: got 30, accepted: a multiple"):
        evaluate_outliers(bench, rows)
    with pytest.raises(ValueError, match="image_column: got 'picture', accepted: a column of the data set"):
        evaluate_outliers(Bench(tiny_model(), Preprocessing(32, 32), progress=False), rows, "picture")
