"""The attentive probe on videos whose class is the order of their frames, and the evaluation around it."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation import probe, video
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.feature_store import FeatureStore
from dinov3_hf.evaluation.video import AttentiveProbe, Clips, evaluate_video, sinusoidal_positions

from ..samples import png


ORDERS = ClassLabel(names=["red first", "blue first"])
FAST = {"num_frames": 2, "num_clips": 1, "steps": 90, "lr": 1e-3}


def tiny_bench(**fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    model = Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=16, layerscale_value=0.1))
    return Bench(model, Preprocessing(16, 16), **{"progress": False, "batch_size": 32, **fields})


def ordered_videos(num, seed, shuffle_labels=False, bad=(), num_frames=2) -> Dataset:
    """Videos of a red half and a blue half, labelled by which comes first: frames alone say nothing."""
    generator = np.random.default_rng(seed)
    orders = generator.permutation(np.arange(num) % 2)
    labels = generator.permutation(orders) if shuffle_labels else orders
    rows = []
    for sequence, order in enumerate(orders):
        for frame in range(num_frames):
            pixels = generator.integers(0, 80, (16, 16, 3), dtype=np.uint8)
            is_first = frame < num_frames / 2
            pixels[:, :, 0 if is_first == (order == 0) else 2] += 150
            image = {"bytes": b"not an image", "path": None} if (sequence, frame) in bad else png(pixels)
            rows.append({"image": image, "label": int(labels[sequence]), "sequence": sequence, "frame": frame})
    features = {"image": Image(), "label": ORDERS, "sequence": Value("int64"), "frame": Value("int64")}
    return Dataset.from_list(rows, features=Features(features)).shuffle(seed=0)


def naive_attention(attention: torch.nn.MultiheadAttention, queries: torch.Tensor, tokens: torch.Tensor):
    """Multi-head attention of queries [Q,D] to tokens [N,D], head by head."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    parts = [x @ w.T + b for x, w, b in zip((queries, tokens, tokens), weights, biases, strict=True)]
    mixed = [
        (q @ k.T / q.shape[1] ** 0.5).softmax(1) @ v
        for q, k, v in zip(*(part.chunk(attention.num_heads, dim=1) for part in parts), strict=True)
    ]
    return torch.cat(mixed, dim=1) @ attention.out_proj.weight.T + attention.out_proj.bias


def naive_probe(head: AttentiveProbe, tokens: torch.Tensor) -> torch.Tensor:
    """The probe's logits, clip by clip and block by block, from its weights alone."""

    def normed(x, norm):
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias

    def linear(x, layer):
        return x @ layer.weight.T + layer.bias

    def gelu(x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    logits = []
    *blocks, last = head.blocks
    for clip in tokens.flatten(1, 2).double():
        norm = head.norm
        x = (clip - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        x = linear(x, head.project) + head.positions
        for block in blocks:
            y = normed(x, block.norm1)
            x = x + naive_attention(block.self_attn, y, y)
            x = x + linear(gelu(linear(normed(x, block.norm2), block.linear1)), block.linear2)
        query = head.query[None] + naive_attention(head.pool, head.query[None], normed(x, last))
        norm, first, _, second = head.mlp
        query = query + linear(gelu(linear(normed(query, norm), first)), second)
        logits.append(linear(normed(query, head.classify[0]), head.classify[1])[0])
    return torch.stack(logits)


def test_probe_is_that_of_naive_loops():
    torch.manual_seed(0)
    head = AttentiveProbe(feature_width=10, num_frames=3, grid=(2, 2), num_classes=4, width=128)
    tokens = 3 * torch.randn(5, 3, 4, 10) + 1
    head(tokens)  # batch norm sees something
    head = head.double().eval()
    with torch.no_grad():
        torch.testing.assert_close(head(tokens.double()), naive_probe(head, tokens), rtol=0, atol=1e-9)


def test_positions_say_time_height_and_width():
    positions = sinusoidal_positions((4, 3, 5), 64)
    assert positions.shape == (60, 64)
    assert len(positions.unique(dim=0)) == 60
    grid = positions.view(4, 3, 5, 64)
    # Ten waves an axis: sines, then cosines; the rest is empty.
    assert torch.equal(grid[:, 0, 0, :20], grid[:, 2, 4, :20])
    assert torch.equal(grid[0, :, 0, 20:40], grid[3, :, 4, 20:40])
    assert torch.equal(grid[0, 0, :, 40:60], grid[3, 2, :, 40:60])
    assert not positions[:, 60:].any()
    torch.testing.assert_close(grid[:, 0, 0, 1], (torch.arange(4) * 10_000**-0.1).sin())
    torch.testing.assert_close(grid[0, :, 0, 39], (torch.arange(3) * 10_000**-0.9).cos())


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Train rows and the folder that keeps the probes which learn their order: two tests train them once."""
    return ordered_videos(40, 0), FeatureStore(tmp_path_factory.mktemp("probes"))


def test_the_order_of_frames_is_learnt(learnt):
    train, store = learnt
    result = evaluate_video(tiny_bench(store=store), train, ordered_videos(30, 1), **FAST)
    (metric,) = result.metrics
    assert (metric["metric"], metric["clips"], metric["chance"]) == ("top-1", 1, 0.5)
    assert metric["raw_pixels"] > 0.9 and metric["model"] > 0.9
    assert [(line["class"], line["videos"]) for line in result.details["per_class"]] == [
        ("red first", 15),
        ("blue first", 15),
    ]
    mean = sum(line["videos"] * line["raw_pixels"] for line in result.details["per_class"]) / 30
    assert mean == pytest.approx(metric["raw_pixels"])
    assert result.hits["raw_pixels"].double().mean().item() == metric["raw_pixels"]
    assert result.pictures["confusion"].size[0] > 100
    json.dumps(result.as_dict())


def test_frames_without_order_say_nothing():
    # The same videos, but only the first frame is seen of clips that start anywhere.
    settings = {**FAST, "num_frames": 1, "num_clips": 2}
    single, multi = evaluate_video(
        tiny_bench(baselines=False), ordered_videos(40, 0), ordered_videos(40, 1), **settings
    ).metrics
    assert (single["clips"], multi["clips"]) == (1, 2)
    # Clips of one frame cover both: their mean cannot tell which came first. The middle one is the first frame.
    assert 0.2 < multi["model"] < 0.8


def test_shuffled_labels_stay_at_chance(learnt):
    train, store = learnt
    test = ordered_videos(40, 1, shuffle_labels=True)
    (metric,) = evaluate_video(tiny_bench(store=store), train, test, **FAST).metrics
    assert all(0.3 < metric[name] < 0.7 for name in ("model", "random_init", "raw_pixels"))


def test_single_and_multi_clip_see_the_clips_they_say(monkeypatch):
    seen = []
    frames = video.clip_frames

    def record(length, num_frames, stride, start):
        seen.append((length, num_frames, stride, start))
        return frames(length, num_frames, stride, start)

    monkeypatch.setattr(video, "clip_frames", record)
    train, test = ordered_videos(4, 0, num_frames=9), ordered_videos(3, 1, num_frames=9)
    settings = {"num_frames": 3, "frame_stride": 2, "num_clips": 3, "steps": 20, "batch_size": 5}
    evaluate_video(tiny_bench(baselines=False), train, test, **settings)
    assert set(seen[: 20 * 5]) == {(9, 3, 2, start) for start in range(5)}
    assert [start for *_, start in seen[100:]] == [2, 2, 2] + [0, 2, 4] * 3


def test_clips_hold_the_frames_in_order():
    rows = ordered_videos(3, 0, num_frames=6, bad=[(1, 2)])
    bench = tiny_bench(baselines=False)
    videos = video.read_videos(rows)
    clips = Clips.read(bench, rows, "image", videos, rows["label"][:], 2, 2, "test")
    assert (clips.skipped_images, clips.skipped_videos, clips.mixed_videos) == (1, 0, 0)
    by_name = {one.name: index for index, one in enumerate(videos)}
    found = clips.tokens("model", [(by_name["0"], 3), (by_name["1"], 1)])
    assert found.shape == (2, 2, 4, 24)
    row_of = {(s, f): row for row, (s, f) in enumerate(zip(rows["sequence"], rows["frame"], strict=True))}
    features = bench.extract(rows, "image", "patches", "test")["model"]
    # Of the second video frame 2 cannot be decoded: its frames are 0, 1, 3, 4, 5.
    for place, names in enumerate([((0, 3), (0, 5)), ((1, 1), (1, 4))]):
        for time, name in enumerate(names):
            assert torch.equal(found[place, time], features[features.kept.index(row_of[name])])


def test_draws_are_those_of_seed_and_step():
    rows = ordered_videos(5, 0, num_frames=6)
    clips = Clips.read(
        tiny_bench(baselines=False), rows, "image", video.read_videos(rows), rows["label"][:], 2, 2, "x"
    )
    drawn = clips.draw(200, 0, 3)
    # A clip of frames 0 and 2 can start at four of six frames.
    assert set(drawn) == {(name, start) for name in range(5) for start in range(4)}
    assert drawn == clips.draw(200, 0, 3)
    assert drawn != clips.draw(200, 1, 3) and drawn != clips.draw(200, 0, 4)


def test_a_video_has_the_class_of_most_of_its_frames():
    rows = ordered_videos(3, 0, num_frames=4, bad=[(2, frame) for frame in range(4)])
    labels = [
        {0: [2, 1, 1, 0], 1: [2, 1, 2, 1], 2: [0] * 4}[sequence][frame]
        for sequence, frame in zip(rows["sequence"], rows["frame"], strict=True)
    ]
    videos = video.read_videos(rows)
    clips = Clips.read(tiny_bench(baselines=False), rows, "image", videos, labels, 2, 1, "test")
    assert (clips.labels.tolist(), clips.skipped_videos, clips.mixed_videos) == ([1, 1], 1, 2)
    assert [rows[row]["frame"] for row in clips.rows] == [0, 0]


def test_what_cannot_be_read_is_counted():
    test = ordered_videos(10, 1, bad=[(3, 0), (3, 1), (5, 1)])
    settings = {**FAST, "steps": 2}
    result = evaluate_video(tiny_bench(baselines=False), ordered_videos(6, 0), test, **settings)
    assert result.skipped_images == {"train": 0, "test": 3}
    assert result.skipped_rows == {"test: video without a readable frame": 1}
    assert (result.protocol["num_train"], result.protocol["num_test"]) == (6, 9)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    train, test = ordered_videos(10, 0), ordered_videos(8, 1)
    settings = {**FAST, "steps": 12, "batch_size": 4}
    heads = []
    probabilities = video._probabilities

    def keep(bench, head, *rest):
        heads.append({name: value.clone() for name, value in head.state_dict().items()})
        return probabilities(bench, head, *rest)

    monkeypatch.setattr(video, "_probabilities", keep)
    whole = evaluate_video(tiny_bench(), train, test, **settings)
    monkeypatch.setattr(probe, "SAVE_SECONDS", -1)
    generator = video.step_generator

    def interrupt(seed, step):
        if step == 7:
            raise KeyboardInterrupt
        return generator(seed, step)

    monkeypatch.setattr(video, "step_generator", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate_video(tiny_bench(store=FeatureStore(tmp_path)), train, test, **settings)
    steps = []
    monkeypatch.setattr(video, "step_generator", lambda seed, step: steps.append(step) or generator(seed, step))
    resumed = evaluate_video(tiny_bench(store=FeatureStore(tmp_path)), train, test, **settings)
    assert steps == [*range(7, 12), *range(12), *range(12)]
    assert resumed.metrics == whole.metrics
    for first, second in zip(heads[:3], heads[3:], strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_runs_are_equal():
    train, test = ordered_videos(10, 0), ordered_videos(20, 1)
    settings = {**FAST, "steps": 3}
    first, second = (evaluate_video(tiny_bench(), train, test, **settings) for _ in range(2))
    pictures = [result.pictures["confusion"].tobytes() for result in (first, second)]
    hits = [result.hits for result in (first, second)]
    assert first.as_dict() == second.as_dict() and pictures[0] == pictures[1]
    assert all(torch.equal(hits[0][name], hits[1][name]) for name in ("model", "random_init", "raw_pixels"))
    other = evaluate_video(tiny_bench(seed=1), train, test, **settings)
    # After three steps the few answers may agree by chance for one encoder, not for all.
    assert any(not torch.equal(other.hits[name], hits[0][name]) for name in ("model", "random_init", "raw_pixels"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label_column": "kind"}, r"label_column: got 'kind', accepted: a column of the data set \(image, label"),
        ({"sequence_column": "scene"}, "sequence_column: got 'scene', accepted: a column of the data set"),
        ({"frame_column": "image"}, "frame_column: got 'image', accepted: a column of numbers"),
        ({"image_column": "frames"}, "image_column: got 'frames', accepted: a column"),
        ({"num_frames": 0}, "num_frames: got 0, accepted: a whole number of at least 1"),
        ({"num_clips": 0}, "num_clips: got 0, accepted"),
        ({"frame_stride": 0}, "frame_stride: got 0, accepted"),
        ({"steps": 0}, "steps: got 0, accepted"),
        ({"lr": 0.0}, "lr: got 0.0, accepted: above 0"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_video(tiny_bench(), ordered_videos(10, 0), ordered_videos(10, 1), **{**FAST, **change})
