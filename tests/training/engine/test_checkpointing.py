"""A checkpoint is whole or absent; the newest ones and the milestones are kept."""

import json

import pytest
import torch
from accelerate import Accelerator

from dinov3_hf.errors import Failed
from dinov3_hf.training.arguments import RunArguments
from dinov3_hf.training.engine import checkpointing
from dinov3_hf.training.engine.checkpointing import Checkpoints, list_checkpoints
from dinov3_hf.training.objective import Objective


class Line(Objective):
    """The smallest objective: one layer, and a count of its updates."""

    def __init__(self, value=0.0):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(self.net.weight, value)
        self.register_buffer("updates", torch.tensor(int(value)))


class Loader:
    def __init__(self, step=0, epoch=0, readers=(1, 0, 4)):
        self.start, self.loaded, self.readers = (step, epoch), None, list(readers)

    def state_dict(self):
        return {"position": 7}

    def load_state_dict(self, state):
        self.loaded = state


def export(folder):
    folder.mkdir()
    (folder / "weights").write_text("w")


def build(folder, value=0.0, **fields):
    objective = Line(value)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1)
    run = RunArguments(output_dir=str(folder), **{"keep_checkpoints": 2, "save_every": 5, **fields})
    return Checkpoints(run, Accelerator(), objective, optimizer)


def save(folder, step, export=export, **fields):
    checkpoints = build(folder, float(step), **fields)
    checkpoints.objective.net(torch.ones(1, 3)).sum().backward()
    checkpoints.optimizer.step()
    state = {"step": step, "images_read": 2 * step, "bad_images": 0, "epoch": 3, "start": [0, 0]}
    return checkpoints, checkpoints.save(state, Loader(), export)


def names(folder):
    return [item.name for item in list_checkpoints(folder)]


def test_round_trip_and_pruning(tmp_path):
    for step in (5, 10, 15):
        saved, path = save(tmp_path, step)
    assert names(tmp_path) == ["step_00000010", "step_00000015"]
    assert (path / "model" / "weights").read_text() == "w"
    fresh = build(tmp_path, resume=True)
    state, loader = fresh.resume(Loader)
    assert state["step"] == 15 and state["images_read"] == 30 and loader.start == (0, 0)
    assert loader.loaded == {"position": 7}
    assert torch.equal(fresh.objective.net.weight, saved.objective.net.weight) and fresh.objective.updates == 15
    for mine, theirs in zip(fresh.objective.parameters(), saved.objective.parameters(), strict=True):
        for name, tensor in saved.optimizer.state[theirs].items():
            assert torch.equal(fresh.optimizer.state[mine][name], tensor), name
        assert fresh.optimizer.state[mine]["exp_avg"].abs().sum() > 0


def test_milestones_are_kept(tmp_path):
    for step in range(5, 40, 5):
        save(tmp_path, step, milestone_every=15)
    assert names(tmp_path) == ["step_00000015", "step_00000030", "step_00000035"]


def test_other_readers_go_on_from_the_next_epoch_and_say_so(tmp_path, capsys):
    save(tmp_path, 5)
    state, loader = build(tmp_path, resume=True).resume(lambda step, epoch: Loader(step, epoch, (2, 0, 4)))
    assert loader.start == (5, 4) and loader.loaded is None and state["start"] == [5, 4]
    assert "written by 1 processes" in capsys.readouterr().out


def test_half_written_checkpoint_is_never_chosen(tmp_path):
    save(tmp_path, 5)
    partial = tmp_path / "checkpoints" / "step_00000010.partial"
    partial.mkdir()
    (partial / checkpointing.STATE_FILE).write_text(json.dumps({"step": 10}))
    (tmp_path / "checkpoints" / "step_00000011").mkdir()
    assert names(tmp_path) == ["step_00000005"]
    save(tmp_path, 10)
    assert not partial.exists()


@pytest.mark.parametrize("what", ["torch.save", "dcp.save"])
def test_full_disk_keeps_the_last_good_one_and_names_it(tmp_path, monkeypatch, what):
    _, good = save(tmp_path, 5)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    module, name = what.split(".")
    monkeypatch.setattr(getattr(checkpointing, module), name, full)
    with pytest.raises(
        Failed, match="step 10 could not be written.*No space left.*last good checkpoint is .*step_00000005"
    ):
        save(tmp_path, 10)
    assert list_checkpoints(tmp_path) == [good]
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["step_00000005"]


def test_pickles_from_outside_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("run",))

    _, path = save(tmp_path, 5)
    assert all(file.suffix in (".safetensors", ".json", ".pt", "") for file in path.rglob("*") if file.is_file())
    torch.save({"state": Payload()}, path / "loader_00000.pt")
    with pytest.raises(Exception, match="(?i)weights.only"):
        build(tmp_path, resume=True).resume(Loader)
