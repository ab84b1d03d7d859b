"""Checkpoints of a run: written aside, renamed when whole, and read back exactly."""

import os
import re
import shutil
from pathlib import Path

import torch


STATE_FILE = "state.pt"


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint written after `step` optimizer steps."""
    return Path(output_dir) / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """List the whole checkpoints of a run, oldest first (a half-written one carries another name)."""
    folder = Path(output_dir) / "checkpoints"
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8}", path.name)]
    return sorted(path for path in found if (path / STATE_FILE).is_file())


def save_checkpoint(output_dir: Path, step: int, state: dict, export, keep: int) -> Path:
    """Write `state` and the exported model of one step, then drop all but the newest `keep` checkpoints.

    `export` is called with the folder the usable model goes into. The checkpoint is written beside its place and
    renamed at the end, so that a kill or a full disk leaves the one before it untouched.
    """
    target = checkpoint_folder(output_dir, step)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        export(partial / "model")
        with open(partial / STATE_FILE, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = list_checkpoints(output_dir)
        kept = f"the last good checkpoint is {last[-1]}" if last else "there is no earlier checkpoint"
        raise OSError(f"checkpoint of step {step} could not be written ({error}); {kept}") from error
    for old in list_checkpoints(output_dir)[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(path: Path) -> dict:
    """Read the state that `save_checkpoint` wrote; nothing but tensors and plain values is unpickled."""
    return torch.load(Path(path) / STATE_FILE, map_location="cpu", weights_only=True)
