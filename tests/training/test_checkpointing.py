"""A checkpoint is whole or absent, and the newest ones are kept."""

import pytest
import torch

from dinov3_hf.training import checkpointing
from dinov3_hf.training.checkpointing import list_checkpoints, load_checkpoint, save_checkpoint


def export(directory):
    directory.mkdir()
    (directory / "weights").write_text("w")


def save(folder, step, keep=2, export=export):
    return save_checkpoint(
        folder, step, {"state": {"step": step}, "weight": torch.full((3,), float(step))}, export, keep
    )


def test_round_trip_and_pruning(tmp_path):
    for step in (5, 10, 15):
        path = save(tmp_path, step)
    assert [item.name for item in list_checkpoints(tmp_path)] == ["step_00000010", "step_00000015"]
    loaded = load_checkpoint(path)
    assert loaded["state"] == {"step": 15} and torch.equal(loaded["weight"], torch.full((3,), 15.0))
    assert (path / "model" / "weights").read_text() == "w"


def test_half_written_checkpoint_is_never_chosen(tmp_path):
    save(tmp_path, 5)
    partial = tmp_path / "checkpoints" / "step_00000010.partial"
    partial.mkdir()
    (partial / checkpointing.STATE_FILE).write_bytes(b"half")
    (tmp_path / "checkpoints" / "step_00000011").mkdir()
    assert [item.name for item in list_checkpoints(tmp_path)] == ["step_00000005"]
    save(tmp_path, 10)
    assert not partial.exists()


def test_full_disk_keeps_the_last_good_one_and_names_it(tmp_path, monkeypatch):
    good = save(tmp_path, 5)

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing.torch, "save", full)
    with pytest.raises(
        OSError, match="step 10 could not be written.*No space left.*last good checkpoint is .*step_00000005"
    ):
        save(tmp_path, 10)
    assert list_checkpoints(tmp_path) == [good]
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["step_00000005"]


def test_pickles_from_outside_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("run",))

    path = save(tmp_path, 5)
    torch.save({"state": Payload()}, path / checkpointing.STATE_FILE)
    with pytest.raises(Exception, match="(?i)weights.only"):
        load_checkpoint(path)
