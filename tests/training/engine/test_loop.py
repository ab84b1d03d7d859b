"""The loop on a tiny objective of its own: it must know nothing of DINO."""

import json
import math
import os
import signal

import pytest
import torch
from accelerate import Accelerator

from dinov3_hf.training.arguments import OptimizationArguments, RunArguments
from dinov3_hf.training.engine.checkpointing import list_checkpoints
from dinov3_hf.training.engine.loop import NonFiniteLoss, set_rates, train
from dinov3_hf.training.objective import Objective, ObjectiveOutput


class Line(Objective):
    """Fit y = 2x; notes the steps it was told about."""

    def __init__(self, spoil=()):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.spoil, self.applied = spoil, []
        torch.nn.init.zeros_(self.net.weight)

    shown_metrics = ("fit",)

    def networks(self):
        return {"line": self.net}

    def frozen_networks(self):
        return {}

    def before_step(self, step):
        self.step = step

    def after_step(self, step, values):
        self.applied.append(step)

    def forward(self, batch, values):
        x = batch["global_crops"][0].flatten(1)[:, :1]
        loss = ((self.net(x) - 2 * x + torch.rand(())) ** 2).mean()
        if self.step in self.spoil:
            loss = loss * math.nan
        return ObjectiveOutput(loss=loss, metrics={"fit": loss.detach()})


class Loader:
    """Batches that depend on nothing but their number."""

    readers = [1, 0, 4]

    def __init__(self, step, epoch):
        self.position = step

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.position)
            self.position += 1
            crops = torch.rand(1, 4, 1, 1, 1, generator=generator)
            counts = {
                "images_read": 5,
                "bad_images": 1,
                "bad_examples": ["row 3: truncated"],
                "epoch": 0,
                "num_images": 4,
            }
            yield {"global_crops": crops} | counts

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Constant:
    def values_at(self, step):
        return {"lr": 0.1, "last_layer_lr": 0.0, "weight_decay": 0.1}


def run(folder, objective=None, steps=8, on_step=None, **fields):
    torch.manual_seed(0)
    objective = objective or Line()
    if on_step:
        plain = objective.after_step
        objective.after_step = lambda step, values: (plain(step, values), on_step(step))
    groups = [
        {"params": list(objective.parameters()), "lr_multiplier": 1.0, "wd_multiplier": 0.0, "is_last_layer": False}
        | {"is_backbone": False}
    ]
    folder.mkdir(exist_ok=True)
    arguments = RunArguments(output_dir=str(folder), log_every=1, probe_every=1, **{"save_every": 3, **fields})
    optimization = OptimizationArguments(steps=steps)
    export = lambda path, state, metrics: path.mkdir()  # noqa: E731
    accelerator = Accelerator()
    result = train(objective, lambda: groups, Loader, Constant(), accelerator, optimization, arguments, {}, export)
    return objective, result


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_trains_logs_counts_and_exports(tmp_path):
    objective, result = run(tmp_path / "a", steps=60)
    assert result.finished and result.steps == 60 and result.images_read == 300 and result.bad_images == 60
    curve = losses(tmp_path / "a")
    assert [step for step, _ in curve] == list(range(1, 61)) and curve[-1][1] < curve[0][1]
    assert (tmp_path / "a" / "model").is_dir()
    assert objective.applied == list(range(60))


def test_stop_signal_saves_and_resume_equals_uninterrupted(tmp_path):
    whole, _ = run(tmp_path / "whole")
    _, stopped = run(tmp_path / "cut", on_step=lambda step: step == 4 and os.kill(os.getpid(), signal.SIGTERM))
    assert not stopped.finished and stopped.steps == 5
    again, result = run(tmp_path / "cut", resume=True)
    assert result.finished and again.applied == [5, 6, 7]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert torch.equal(again.net.weight, whole.net.weight) and torch.equal(again.net.bias, whole.net.bias)


def test_resume_cuts_the_metrics_back_to_the_checkpoint(tmp_path):
    class Killed(Exception):
        pass

    def kill(step):
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "cut", on_step=kill)
    assert [step for step, _ in losses(tmp_path / "cut")] == [1, 2, 3, 4]
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    run(tmp_path / "cut", resume=True)
    run(tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_non_finite_step_is_skipped_never_applied(tmp_path):
    objective, result = run(tmp_path / "a", Line(spoil={2, 3}))
    assert result.finished and objective.applied == [0, 1, 4, 5, 6, 7]
    assert losses(tmp_path / "a")[2] == (3, None) and torch.isfinite(objective.net.weight).all()


def test_three_non_finite_steps_abort_and_name_the_last_checkpoint(tmp_path):
    with pytest.raises(
        NonFiniteLoss, match="3 non-finite steps in a row at step 5; the last good checkpoint is .*step_00000003"
    ):
        run(tmp_path / "a", Line(spoil={3, 4, 5}))
    assert [item.name for item in list_checkpoints(tmp_path / "a")] == ["step_00000003"]


def test_rates_follow_the_groups():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [
        {"params": [weights[0]], "lr_multiplier": 0.5, "wd_multiplier": 0.0, "is_last_layer": False},
        {"params": [weights[1]], "lr_multiplier": 1.0, "wd_multiplier": 1.0, "is_last_layer": True},
        {"params": [weights[2]], "lr_multiplier": 0.5, "wd_multiplier": 1.0, "is_last_layer": False},
    ]
    for group, is_backbone in zip(groups, (False, False, True), strict=True):
        group["is_backbone"] = is_backbone
    optimizer = torch.optim.AdamW(groups)
    set_rates(optimizer, {"lr": 0.2, "last_layer_lr": 0.0, "backbone_lr": 0.1, "weight_decay": 0.3})
    found = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(0.1, 0.0), (0.0, 0.3), (0.05, 0.3)]
