"""Features on disk: what is computed, what is kept, what is refused; interrupted, repeated and shared."""

import threading

import numpy as np
import pytest
import torch

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation import feature_store
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.feature_store import Extractor, FeatureStore
from dinov3_hf.pipelines.windows import Windowed

from ..samples import images_of_sizes


def tiny_model(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1)).eval()


def by_hand(model, rows, view, take):
    """Features row by row, without any of the store's machinery."""
    found = []
    for image in rows["image"]:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        with torch.inference_mode():
            found.append(take(model(view.normalize(view.image(pixels)[None])))[0])
    return found


@pytest.mark.parametrize("whole", [False, True])
def test_features_are_those_of_the_network(whole):
    model, rows = tiny_model(), images_of_sizes()
    bench = Bench(model, Preprocessing(32, 40), batch_size=4, progress=False)
    features = bench.extract(rows, "image", "patches", "images", whole=whole)
    assert set(features) == {"model", "random_init", "raw_pixels"}
    view = bench.whole if whole else bench.preprocessing
    expected = by_hand(model, rows, view, lambda output: output.patch_tokens)
    assert len(features["model"]) == len(rows) and features["model"].kept == list(range(12))
    for index, tokens in enumerate(expected):
        torch.testing.assert_close(features["model"][index], tokens, rtol=0, atol=2e-6)
        assert features["model"].grids[index][0] * features["model"].grids[index][1] == len(tokens)
    if not whole:
        assert features["model"].stack().shape == (12, 16, 24) and features["raw_pixels"].stack().shape == (
            12,
            16,
            192,
        )
    else:
        with pytest.raises(ValueError, match="features: got grids .* accepted: one grid for all rows"):
            features["model"].stack()


def test_global_features_are_class_tokens_and_mean_patches():
    model, rows = tiny_model(), images_of_sizes()
    bench = Bench(model, Preprocessing(32, 32), batch_size=5, progress=False)
    cls = bench.extract(rows, "image", "cls", "images")["model"].stack()
    joined = bench.extract(rows, "image", "cls+mean", "images")["model"].stack()
    expected = by_hand(model, rows, bench.preprocessing, lambda output: output.pooler_output)
    means = by_hand(model, rows, bench.preprocessing, lambda output: output.patch_tokens.mean(1))
    torch.testing.assert_close(cls, torch.stack(expected), rtol=0, atol=2e-6)
    torch.testing.assert_close(joined, torch.cat([torch.stack(expected), torch.stack(means)], 1), rtol=0, atol=2e-6)


def test_bad_images_are_left_out_and_named_by_row():
    bench = Bench(tiny_model(), Preprocessing(32, 32), batch_size=4, progress=False, baselines=False)
    for whole in (False, True):
        rows = images_of_sizes(bad=(0, 5))
        features = bench.extract(rows, "image", "cls", "images", whole=whole)["model"]
        assert features.kept == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11] and len(features) == 10
        good = bench.extract(rows.select(features.kept), "image", "cls", "images", whole=whole)["model"]
        torch.testing.assert_close(features.stack(), good.stack(), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="image_column: none of the 2 images in 'image' could be decoded"):
        bench.extract(images_of_sizes(2, bad=(0, 1)), "image", "cls", "images")


def counting(bench, monkeypatch):
    """Count the images that pass through the network."""
    seen, forward = [], bench.model.forward
    monkeypatch.setattr(
        bench.model, "forward", lambda pixels, **kwargs: (seen.append(len(pixels)), forward(pixels))[1]
    )
    return seen


def test_a_second_run_computes_nothing(tmp_path, monkeypatch):
    rows, results = images_of_sizes(), []
    for _ in range(2):
        bench = Bench(tiny_model(), Preprocessing(32, 32), FeatureStore(tmp_path), 5, baselines=False, progress=False)
        seen = counting(bench, monkeypatch)
        results.append(bench.extract(rows, "image", "cls", "images")["model"].stack().clone())
    assert torch.equal(*results) and not seen


@pytest.mark.parametrize(
    "change",
    [
        {"model": tiny_model(1)},
        {"preprocessing": Preprocessing(32, 40)},
        {"preprocessing": Preprocessing(32, 32, mean=(0.5, 0.5, 0.5))},
        {"model": Windowed(tiny_model(), 16)},
    ],
)
def test_other_weights_and_views_are_computed_anew(change, tmp_path):
    rows, found = images_of_sizes(), []
    for extra in ({}, change):
        settings = {"model": tiny_model(), "preprocessing": Preprocessing(32, 32)} | extra
        bench = Bench(**settings, store=FeatureStore(tmp_path), baselines=False, progress=False)
        found.append(bench.extract(rows, "image", "cls", "images")["model"].stack())
    assert not torch.equal(*found)


def test_an_interrupted_run_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    rows = images_of_sizes(20)
    plain = Bench(tiny_model(), Preprocessing(32, 32), batch_size=3, baselines=False, progress=False)
    expected = plain.extract(rows, "image", "patches", "images")["model"].stack()
    bench = Bench(tiny_model(), Preprocessing(32, 32), FeatureStore(tmp_path), 3, baselines=False, progress=False)
    seen, forward = [], bench.model.forward

    def stop_at_the_fourth(pixels, **kwargs):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return forward(pixels)

    monkeypatch.setattr(bench.model, "forward", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        bench.extract(rows, "image", "patches", "images")
    again = Bench(tiny_model(), Preprocessing(32, 32), FeatureStore(tmp_path), 3, baselines=False, progress=False)
    seen = counting(again, monkeypatch)
    assert torch.equal(again.extract(rows, "image", "patches", "images")["model"].stack(), expected)
    assert sum(seen) == 20 - 9


def test_processes_share_the_work_and_give_the_same(tmp_path, monkeypatch):
    rows = images_of_sizes(20, bad=(7,))
    plain = Bench(tiny_model(), Preprocessing(32, 32), batch_size=3, progress=False)
    expected = plain.extract(rows, "image", "patches", "images")
    barrier, found, counts = threading.Barrier(3, timeout=60), {}, {}

    def run(rank):
        store = FeatureStore(tmp_path, rank, 3, barrier.wait)
        bench = Bench(tiny_model(), Preprocessing(32, 32), store, 3, progress=False)
        counts[rank] = 0
        forward = bench.model.forward

        def count(pixels, **kwargs):
            counts[rank] += len(pixels)
            return forward(pixels)

        bench.model.forward = count
        found[rank] = bench.extract(rows, "image", "patches", "images")

    # The tiny networks are built one after the other: seeds are global.
    original = tiny_model
    models = [original() for _ in range(3)]
    monkeypatch.setitem(globals(), "tiny_model", lambda: models.pop())
    monkeypatch.setattr(
        "dinov3_hf.evaluation.bench.randomly_initialised", lambda model, seed: plain.networks["random_init"]
    )
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts.values()) == 19 and min(counts.values()) > 0
    for rank in range(3):
        for name in expected:
            assert torch.equal(found[rank][name].stack(), expected[name].stack())


def test_values_that_are_not_finite_are_refused():
    model = tiny_model()
    with torch.no_grad():
        model.norm.weight[3] = torch.nan
    bench = Bench(model, Preprocessing(32, 32), batch_size=4, baselines=False, progress=False)
    with pytest.raises(
        ValueError, match="features: model gives values that are not finite for 4 of 4 images, the first"
    ):
        bench.extract(images_of_sizes(), "image", "cls", "images")


def test_too_small_a_disk_and_empty_splits_are_refused(monkeypatch):
    bench = Bench(tiny_model(), Preprocessing(32, 32), baselines=False, progress=False)
    with pytest.raises(ValueError, match="data: got a split without rows, accepted: at least one image"):
        bench.extract(images_of_sizes().select([]), "image", "cls", "images")
    free = feature_store.shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: free)
    with pytest.raises(ValueError, match="cache_dir: .* has 0.0 GB free, accepted: at least"):
        bench.extract(images_of_sizes(), "image", "cls", "images")


def test_extractor_grids():
    assert Extractor(None, 1, "").grid(32, 40) == (1, 1) and Extractor(None, 1, "", 8).grid(32, 47) == (4, 5)
