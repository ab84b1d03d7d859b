"""Measures of collapse against numpy, the probe against a naive k-NN, and alarms on histories made for each."""

import copy
import inspect
import io
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from PIL import Image as PILImage

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.recipe import fields_of
from dinov3_hf.training import health
from dinov3_hf.training.arguments import PretrainRecipe
from dinov3_hf.training.health import (
    CollapseAlarm,
    OnlineProbe,
    assignment_entropy,
    cls_patch_cosine,
    prototype_usage,
    rankme,
)
from dinov3_hf.training.losses import sinkhorn_knopp


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def softmax(rows, prototypes, scale, seed=0):
    return (torch.randn(rows, prototypes, generator=torch.Generator().manual_seed(seed)) * scale).softmax(dim=1)


def entropy(p):
    p = np.asarray(p, dtype=np.float64)
    return float(-sum(x * math.log(x) for x in p.ravel() if x > 0))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_usage_and_entropy_equal_numpy(scale):
    p = softmax(20, 12, scale)
    assert prototype_usage(p).item() == pytest.approx(math.exp(entropy(p.numpy().mean(axis=0))) / 12, rel=1e-5)
    expected = np.mean([entropy(row) for row in p.numpy()]) / math.log(12)
    assert assignment_entropy(p).item() == pytest.approx(expected, rel=1e-5)


def test_usage_and_entropy_at_their_ends():
    one, each, uniform = torch.eye(8)[[3] * 16], torch.eye(8).repeat(2, 1), torch.full((16, 8), 1 / 8)
    assert [prototype_usage(p).item() for p in (one, each, uniform)] == pytest.approx([1 / 8, 1, 1])
    assert [assignment_entropy(p).item() for p in (one, each, uniform)] == pytest.approx([0, 0, 1])
    assert prototype_usage(each.bfloat16()).dtype == torch.float32


def test_sinkhorn_would_hide_the_collapse_that_the_student_shows():
    """All images alike, all logits on one prototype: targets look perfect, the student's softmax does not."""
    logits = torch.tensor([3.0] + [0.0] * 15) + 0.01 * torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert prototype_usage(sinkhorn_knopp(logits, 0.1)).item() == pytest.approx(1, abs=1e-3)
    assert prototype_usage((logits / 0.1).softmax(dim=1)).item() < 1.01 / 16


def test_usage_over_processes_of_unequal_rows_equals_one():
    """Two members of a real Gloo group, threads here: nothing but the group tells them of each other."""
    whole, store = softmax(10, 6, 3.0), dist.HashStore()
    parts = whole.split([7, 3])

    def work(rank):
        group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=20))
        return prototype_usage(parts[rank], group)

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(work, range(2)):
            assert found.item() == pytest.approx(prototype_usage(whole).item(), rel=1e-6)
            assert abs(found - sum(map(prototype_usage, parts)) / 2) > 1e-3


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_rankme_equals_numpy(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -4, shape[1])
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    expected = math.exp(entropy(values / np.abs(values).sum() + 1e-7))
    assert rankme(features).item() == pytest.approx(expected, rel=1e-5)
    assert rankme(1000 * features).item() == pytest.approx(expected, rel=1e-5)


def test_rankme_at_its_ends():
    assert rankme(torch.eye(6, 9) * 5).item() == pytest.approx(6, rel=1e-4)
    assert rankme(torch.ones(50, 9)).item() == pytest.approx(1, rel=1e-4)
    # The paper's epsilon, seen where most singular values are zero.
    one = torch.diag(torch.eye(300)[0])
    assert rankme(one).item() == pytest.approx(math.exp(-299e-7 * math.log(1e-7)), rel=1e-5)
    assert math.isnan(rankme(torch.tensor([[1.0, torch.nan], [0.0, 1.0]])).item())


def test_cosine_equals_a_loop_and_stays_fp32():
    generator = torch.Generator().manual_seed(0)
    cls, patches = torch.randn(3, 5, generator=generator), torch.randn(3, 4, 5, generator=generator)
    found = [
        cls[b].numpy() @ patches[b, p].numpy() / np.linalg.norm(cls[b]) / np.linalg.norm(patches[b, p])
        for b in range(3)
        for p in range(4)
    ]
    assert cls_patch_cosine(cls, patches).item() == pytest.approx(np.mean(found), abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert cls_patch_cosine(cls, patches).item() == pytest.approx(np.mean(found), abs=1e-6)


# The probe.


def make_rows(count, bad=(), labels=True, sort=False):
    rng, rows = np.random.default_rng(0), []
    for index in range(count):
        label = index * 3 // count if sort else index % 3
        pixels = np.full((20, 24, 3), 60 * label + 40) + rng.integers(-40, 40, (20, 24, 3))
        file = io.BytesIO()
        PILImage.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        data = b"broken" if index in bad else file.getvalue()
        rows.append({"image": {"bytes": data, "path": None}, "label": label, "note": "unread"})
    features = {"image": Image(), "label": ClassLabel(names=["dark", "mid", "light"]), "note": Value("string")}
    rows = Dataset.from_list(rows, features=Features(features))
    return rows if labels else rows.remove_columns("label")


def make_probe(rows, label_column="label", num_train=40, num_test=20):
    return OnlineProbe(rows, "image", label_column, 16, MEAN, STD, num_train, num_test)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Dinov3Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=8,
        num_register_tokens=2, layerscale_value=0.5, drop_path_rate=0.5,
    )  # fmt: skip
    return Dinov3Model(config)


def test_probe_equals_a_naive_one(model):
    rows = make_rows(90)
    metrics = make_probe(rows)(model)
    probe = make_probe(rows)
    pixels = (probe.images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        outputs = [copy.deepcopy(model).eval()(image[None]) for image in pixels]
    cls = torch.cat([output.pooler_output for output in outputs]).double().numpy()
    labels, hits = probe.labels.numpy(), 0
    assert probe.num_train == 40 and len(cls) == 60 and probe.images.shape == (60, 3, 16, 16)
    unit = cls / np.linalg.norm(cls, axis=1, keepdims=True)
    for query in range(40, 60):
        similarity = unit[:40] @ unit[query]
        votes = np.zeros(3)
        for neighbour in np.argsort(-similarity)[:10]:
            votes[labels[neighbour]] += math.exp(similarity[neighbour] / 0.07)
        hits += votes.argmax() == labels[query]
    assert metrics["knn"] == hits / 20 and 0.5 < hits / 20
    assert metrics["rankme"] == pytest.approx(rankme(torch.tensor(cls)).item(), rel=1e-4)
    cosine = np.mean([cls_patch_cosine(output.pooler_output, output.patch_tokens).item() for output in outputs])
    assert metrics["cls_patch_cosine"] == pytest.approx(cosine, abs=1e-6)


def test_probe_leaves_no_trace(model):
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.frozen = copy.deepcopy(model), torch.nn.Dropout()
            self.grads, self.batches = [], []

        def forward(self, pixel_values):
            torch.rand(3)
            self.batches.append(len(pixel_values))
            output = self.model(pixel_values)
            self.grads.append(output.pooler_output.requires_grad or self.training or self.model.training)
            return output

    noisy, probe = Noisy().train(), make_probe(make_rows(100), num_train=60, num_test=30)
    noisy.frozen.eval()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = probe(noisy), probe(noisy)
    assert torch.equal(torch.get_rng_state(), before) and first == second
    assert noisy.training and noisy.model.training and noisy.model.layer[0].training and not noisy.frozen.training
    assert noisy.batches == [64, 26] * 2 and not any(noisy.grads)
    noisy.model.forward = None
    with pytest.raises(TypeError):
        probe(noisy)
    assert noisy.model.training


def test_probe_enters_a_pretraining_network_whole(model):
    """Sharded, the backbone inside it cannot be called by itself."""
    config = copy.deepcopy(model.config)
    for head in ("dino_head", "ibot_head"):
        for part in ("num_prototypes", "hidden_size", "bottleneck_size"):
            setattr(config, f"{head}_{part}", 8)
    whole, probe = Dinov3ForPreTraining(config).train(), make_probe(make_rows(60))
    whole.dinov3.load_state_dict(model.state_dict())
    entered = []
    whole.register_forward_pre_hook(lambda *_: entered.append(1))
    assert probe(whole) == pytest.approx(probe(model), rel=1e-5) and len(entered) == 1 and whole.training


def test_autocast_reaches_the_model_but_not_the_neighbours(model, monkeypatch):
    seen, plain = [], health.knn_classify
    monkeypatch.setattr(health, "knn_classify", lambda *a: seen.append(torch.is_autocast_enabled("cpu")) or plain(*a))
    model = copy.deepcopy(model)
    model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        make_probe(make_rows(60))(model)
    assert seen == [True, False]


def test_bad_images_are_skipped_and_nothing_more_is_read():
    read = []

    def stream():
        for index, row in enumerate(make_rows(100, bad=(3, 30)).cast_column("image", Image(decode=False))):
            read.append(index)
            yield row

    probe = make_probe(IterableDataset.from_generator(stream))
    assert len(probe.images) == len(probe.labels) == 58 and probe.num_train == 38
    assert read == list(range(60))


def test_rows_in_order_of_class_are_mixed(model):
    """First rows of a data set sorted by class would be one class, those of a stream a bank without the last."""
    sorted_rows = make_rows(90, sort=True)
    for rows in (sorted_rows, sorted_rows.to_iterable_dataset()):
        probe = make_probe(rows, num_train=60, num_test=20)
        assert set(probe.labels[:60].tolist()) == set(probe.labels[60:].tolist()) == {0, 1, 2}
    assert torch.equal(make_probe(sorted_rows).images, make_probe(sorted_rows).images)
    assert set(make_probe(sorted_rows, num_train=20, num_test=10).labels.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="label_column: all 30 probe images have label 0"):
        make_probe(sorted_rows.to_iterable_dataset(), num_train=20, num_test=10)


def test_probe_without_labels_gives_no_knn(model):
    assert set(make_probe(make_rows(60, labels=False), None)(model)) == {"rankme", "cls_patch_cosine"}


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="label_column: got 'kind', accepted: a column of the data set"):
        make_probe(make_rows(60), "kind")
    with pytest.raises(ValueError, match="probe_data: got 8 train and 5 test images"):
        make_probe(make_rows(60, bad=range(13, 60)))
    unlabelled = make_rows(60).remove_columns("label").add_column("label", [None] * 60)
    with pytest.raises(ValueError, match="label_column: 'label' is not one class a row"):
        make_probe(unlabelled)


# Alarms.

HEALTHY = {
    "dino_global": 3.7, "dino_local": 3.6, "ibot": 1.8, "koleo": 0.9, "prototype_usage": 0.97, "rankme": 12.0,
    "cls_patch_cosine": 0.25, "knn": 0.3,
}  # fmt: skip


def history(steps=1000, every=50, **changes):
    """A healthy run of 64 prototypes; `changes` are functions of the step or numbers that hold throughout."""
    lines = []
    for step in range(every, steps + 1, every):
        line = {"step": step} | HEALTHY
        for name, value in changes.items():
            line[name] = value(step) if callable(value) else value
        lines.append(line)
    return lines


def alarms(lines, num_prototypes=64, num_rows=128, warmup_steps=50):
    alarm = CollapseAlarm(num_prototypes, num_rows, warmup_steps)
    return [sentence for line in lines for sentence in alarm.check(line)]


def late(value, healthy, step=500):
    return lambda now: value if now >= step else healthy


CASES = {
    "plateau": ({"dino_global": 4.155}, 350, "still ln K = 4.159 .*dino_head_num_prototypes, now 64"),
    "zero_loss": ({"dino_global": late(0.01, 3.7)}, 550, "almost 0"),
    "non_finite": ({"koleo": late(math.inf, 0.9)}, 500, "koleo not finite"),
    "koleo": ({"koleo": late(16.0, 0.9)}, 550, "koleo is 16.0: nearest neighbours"),
    "prototypes": ({"prototype_usage": late(1.02 / 64, 0.97)}, 550, "1.0 prototypes are in use, of 64"),
    "rankme": ({"rankme": late(3.3, 12.0)}, 550, "RankMe is 3.3"),
    "cosine": ({"cls_patch_cosine": lambda step: 0.1 + 0.001 * step}, 600, "from 0.40 to 0.70.*gram_teacher"),
    "knn": ({"knn": late(0.26, 0.3)}, 550, "from 0.300 at the start to 0.260.*lower lr.*heads.*LoRA"),
}


def test_a_healthy_run_is_silent():
    assert alarms(history()) == []
    assert alarms([{"step": step, "loss": 4.0, "lr": 1e-3} for step in range(1000)]) == []


@pytest.mark.parametrize("kind", CASES)
def test_each_trouble_is_told_once_and_alone(kind):
    changes, step, pattern = CASES[kind]
    found = alarms(history(**changes))
    assert len(found) == 1 and "\n" not in found[0]
    assert re.fullmatch(f"step {step}: .*{pattern}.*", found[0])


def test_what_is_normal_at_the_start_is_no_alarm():
    """The plateau, a RankMe of one and a rising cosine are where a run from random weights begins."""
    start = {
        "dino_global": late(3.7, 4.159, 250),
        "rankme": late(12.0, 1.0, 250),
        "cls_patch_cosine": lambda step: min(step / 500, 0.5),
        "koleo": late(0.9, 12.0, 51),
    }
    assert alarms(history(**start, every=10)) == []
    # A longer warm-up gives longer.
    assert alarms(history(dino_global=late(3.7, 4.159, 900)), warmup_steps=450) == []
    assert len(alarms(history(dino_global=late(3.7, 4.159, 1000)), warmup_steps=400)) == 1


@pytest.mark.parametrize("kind", sorted(set(CASES) - {"non_finite", "plateau"}))
def test_one_line_is_noise(kind):
    changes, step, _ = CASES[kind]
    name = next(iter(changes))
    lines = history()
    lines[15][name] = changes[name](1000)
    assert alarms(lines) == []


def test_small_falls_and_noise_of_knn_are_no_alarm():
    assert alarms(history(knn=late(0.275, 0.3))) == []
    # 15 % of ten per cent is less than the sampling error.
    assert alarms(history(knn=late(0.085, 0.1))) == []
    assert alarms(history(knn=late(0.71, 0.8))) != []


def test_few_rows_cannot_use_many_prototypes():
    """128 images on 65536 prototypes: 100 in use is healthy, 3 are not; of 64 prototypes 3 are not either."""
    few = {"num_prototypes": 65536, "num_rows": 128}
    rest = {"dino_global": 9.0}
    assert alarms(history(prototype_usage=100 / 65536, **rest), **few) == []
    assert len(alarms(history(prototype_usage=3 / 65536, **rest), **few)) == 1
    assert len(alarms(history(prototype_usage=3 / 64))) == 1


def test_resumed_alarms_go_on_as_if_never_stopped():
    """Through the metrics file as it is written: JSON, with null for what is not finite."""
    changes = {name: value for case, *_ in CASES.values() for name, value in case.items() if callable(value)}
    lines = json.loads(
        json.dumps([{k: v if math.isfinite(v) else None for k, v in line.items()} for line in history(**changes)])
    )
    whole = alarms(lines)
    assert len(whole) >= 5
    for cut in range(len(lines)):
        before, after = CollapseAlarm(64, 128, 50), CollapseAlarm(64, 128, 50)
        told = [sentence for line in lines[:cut] for sentence in before.check(line)]
        for line in lines[:cut]:
            after.check(line)
        assert told + [sentence for line in lines[cut:] for sentence in after.check(line)] == whole
        assert list(after.told.values()) == whole


def test_advice_names_fields_that_exist():
    """Words with an underscore in the sentences are recipe fields, or names of metrics."""
    source = inspect.getsource(CollapseAlarm._symptoms)
    texts = " ".join(re.findall(r'f?"([^"]*)"', source))
    words = set(re.findall(r"[a-z]+(?:_[a-z]+)+", re.sub(r"\{[^}]*\}", "", texts)))
    known = set(fields_of(PretrainRecipe)) | set(HEALTHY) | set(CASES)
    assert {"koleo_weight", "gram_teacher"} <= words <= known
    assert set(health.LOSS_PARTS) >= {"koleo", "dino_global"}
