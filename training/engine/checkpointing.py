"""Checkpoints of a run: written aside, renamed when whole, and read back exactly."""

import contextlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from dinov3_hf.errors import Failed, Refused

from ..arguments import RunArguments
from ..objective import Objective
from .sharding import place_in_group


STATE_FILE = "state.json"
TENSORS = "tensors"


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint written after `step` optimizer steps."""
    return Path(output_dir) / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """List the whole checkpoints of a run, oldest first (a half-written one carries another name)."""
    folder = Path(output_dir) / "checkpoints"
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8}", path.name)]
    return sorted(path for path in found if (path / STATE_FILE).is_file())


def checkpoint_tensors(objective: Objective, optimizer: torch.optim.AdamW) -> dict:
    """Return every tensor of a run by name: networks, and AdamW's moments, allocated where no step was taken yet.

    These are the run's own tensors (shards of them where a network is sharded): reading into them restores the run.
    """
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    moments = {}
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        moments |= {f"optimizer.{names[id(parameter)]}.{key}": tensor for key, tensor in state.items()}
    tensors = {f"objective.{name}": tensor for name, tensor in objective.state_dict().items()} | moments
    # The safetensors reader cannot slice a number without dimensions; a view shares its memory.
    return {name: tensor.view(1) if tensor.ndim == 0 else tensor for name, tensor in tensors.items()}


def checkpoint_parts(objective: Objective, optimizer: torch.optim.AdamW) -> dict[str, dict]:
    """Return the tensors of a run by part, each a folder of its own: one without a name, or those of `part_of`."""
    parts = {}
    for name, tensor in checkpoint_tensors(objective, optimizer).items():
        parts.setdefault(objective.part_of(name.partition(".")[2]), {})[name] = tensor
    return parts


def check_parts(output_dir: Path, objective: Objective) -> None:
    """Raise `Refused` where the newest checkpoint lacks what an objective of several parts would resume."""
    found = list_checkpoints(output_dir)
    for part in {objective.part_of(name) for name in objective.state_dict()} if found else ():
        if not any((found[-1] / TENSORS / part).glob("*.safetensors")):
            raise Refused(f"resume: {found[-1]} has no part {part!r}, accepted: what the run trained before")


class Checkpoints:
    """Save and resume one run.

    A checkpoint holds `tensors/` (torch's distributed checkpoint in safetensors files, a folder for each part: each
    process writes its shards, any number of processes reads them), `state.json`, one `loader_RANK.pt` a process, and `model/`,
    the usable export.
    """

    def __init__(self, run: RunArguments, accelerator: Accelerator, objective: Objective, optimizer):
        self.run, self.accelerator, self.objective, self.optimizer = run, accelerator, objective, optimizer
        self.output_dir = Path(run.output_dir)
        # Parts are written and read by the processes that train them.
        self.distribution = {"process_group": objective.group, "no_dist": place_in_group(objective)[1] == 1}

    def last_good(self) -> str:
        """Say which checkpoint a run can go on from."""
        found = list_checkpoints(self.output_dir)
        return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was written yet"

    def resume(self, build_loader) -> tuple[dict, object]:
        """Restore the newest checkpoint if the run resumes; returns the run's state and its loader.

        With as many processes, workers and images a batch as before, the loader goes on with the very next row;
        with others it goes on from the next epoch, since no row can then be told from one already seen.
        """
        state = {"step": 0, "images_read": 0, "bad_images": 0, "epoch": 0, "readers": None, "start": [0, 0]}
        found = list_checkpoints(self.output_dir) if self.run.resume else []
        if not found:
            return state, build_loader(0, 0)
        path = found[-1]
        state = json.loads((path / STATE_FILE).read_text())
        for part, tensors in checkpoint_parts(self.objective, self.optimizer).items():
            with quiet():
                reader = HuggingFaceStorageReader(str(path / TENSORS / part))
                dcp.load(tensors, storage_reader=reader, **self.distribution)
        # The loader counts from where these readers began: the run's start, or the last change of readers.
        loader = build_loader(*state["start"])
        if state["readers"] == loader.readers:
            file = path / f"loader_{self.accelerator.process_index:05d}.pt"
            loader.load_state_dict(torch.load(file, weights_only=True))
        else:
            state["start"] = [state["step"], state["epoch"] + 1]
            loader = build_loader(*state["start"])
            self.accelerator.print(
                f"resume: written by {describe(state['readers'])}, read by {describe(loader.readers)}: the data goes on "
                f"from epoch {state['epoch'] + 1}, and the run is no longer equal to one without a stop"
            )
        return state, loader

    def save(self, state: dict, loader, export) -> Path:
        """Write a checkpoint of all processes; `export` is called with the folder the usable model goes into.

        It is written beside its place and renamed at the end, so that a kill or a full disk leaves the one before it
        untouched; then all but the newest `keep_checkpoints` and the milestones are deleted.
        """
        target = checkpoint_folder(self.output_dir, state["step"])
        partial = target.with_name(target.name + ".partial")
        main = self.accelerator.is_main_process
        try:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            export(partial / "model")
            for part, tensors in checkpoint_parts(self.objective, self.optimizer).items():
                writer = HuggingFaceStorageWriter(str(partial / TENSORS / part), save_distributed=True)
                with quiet():
                    dcp.save(tensors, storage_writer=writer, **self.distribution)
            file = partial / f"loader_{self.accelerator.process_index:05d}.pt"
            write(file, lambda handle: torch.save(loader.state_dict(), handle))
            self.accelerator.wait_for_everyone()
            if main:
                text = json.dumps(state | {"readers": loader.readers}, indent=2) + "\n"
                write(partial / STATE_FILE, lambda handle: handle.write(text.encode()))
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
        except Exception as error:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
            # A full disk comes as an OSError, or wrapped in one of torch's checkpoint errors.
            raise Failed(
                f"checkpoint of step {state['step']} could not be written ({first_line(error)}); {self.last_good()}"
            ) from error
        if main:
            self.forget_old()
        return target

    def forget_old(self) -> None:
        """Delete all but the newest checkpoints and the milestones."""
        every = self.run.milestone_every
        for old in list_checkpoints(self.output_dir)[: -self.run.keep_checkpoints]:
            if every is None or int(old.name.removeprefix("step_")) % every:
                shutil.rmtree(old)


@contextlib.contextmanager
def quiet():
    """Keep torch from warning that one process is alone, which it was told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def write(path: Path, fill) -> None:
    """Write a file and see it on the disk."""
    with open(path, "wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def describe(readers: list[int]) -> str:
    """Say in words who read the data: [processes, workers, images a batch]."""
    processes, workers, batch_size = readers
    return f"{processes} processes of {workers} workers with {batch_size} images a batch"


def first_line(error: Exception) -> str:
    """Return the first line of an error, or its name."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
