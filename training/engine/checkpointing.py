"""Checkpoints of a run: written to a temporary folder, renamed when complete, and restored exactly."""

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torchdata.stateful_dataloader import StatefulDataLoader

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
    """Return the complete checkpoints of a run, oldest first (an incomplete one has another name)."""
    folder = Path(output_dir) / "checkpoints"
    folders = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8}", path.name)]
    return sorted(path for path in folders if (path / STATE_FILE).is_file())


def checkpoint_tensors(objective: Objective, optimizer: torch.optim.AdamW) -> dict:
    """Return every tensor of a run by name: networks and AdamW's moments, allocated if they do not exist yet.

    These are the tensors of the run themselves (shards if a network is sharded): loading into them restores the run.
    """
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    moments: dict[str, torch.Tensor] = {}
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
    """Return the tensors of a run by part of the checkpoint (`Objective.part_of`), each saved in its own folder."""
    parts: dict[str, dict] = {}
    for name, tensor in checkpoint_tensors(objective, optimizer).items():
        parts.setdefault(objective.part_of(name.partition(".")[2]), {})[name] = tensor
    return parts


def check_parts(output_dir: Path, objective: Objective) -> None:
    """Raise `Refused` if the newest checkpoint lacks a part of the objective."""
    checkpoints = list_checkpoints(output_dir)
    for part in {objective.part_of(name) for name in objective.state_dict()} if checkpoints else ():
        if not any((checkpoints[-1] / TENSORS / part).glob("*.safetensors")):
            raise Refused(f"resume: {checkpoints[-1]} has no part {part!r}, accepted: what the run trained before")


class Checkpoints:
    """Save and resume one run.

    A checkpoint contains `tensors/` (torch's distributed checkpoint in safetensors files, one folder per part, which
    can be read by another number of processes), `state.json`, one `loader_RANK.pt` per process, and `model/`, the
    exported model.
    """

    def __init__(
        self, run: RunArguments, accelerator: Accelerator, objective: Objective, optimizer: torch.optim.AdamW
    ):
        self.run, self.accelerator, self.objective, self.optimizer = run, accelerator, objective, optimizer
        self.output_dir = Path(run.output_dir)
        # Each part is written and read by the processes that train it.
        self.distribution = {"process_group": objective.group, "no_dist": place_in_group(objective)[1] == 1}

    def last_good(self) -> str:
        """Return a sentence that names the newest checkpoint, from which the run can be resumed."""
        checkpoints = list_checkpoints(self.output_dir)
        return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was written yet"

    def resume(self, build_loader: Callable[[int, int], StatefulDataLoader]) -> tuple[dict, StatefulDataLoader]:
        """Restore the newest checkpoint if the run resumes; returns the run's state and its loader.

        With the same number of processes, workers and images per batch as before, the loader continues with the next
        row. Otherwise it continues with the next epoch, because the rows already seen of the current one are unknown.
        """
        state = {"step": 0, "images_read": 0, "bad_images": 0, "epoch": 0, "readers": None, "start": [0, 0]}
        checkpoints = list_checkpoints(self.output_dir) if self.run.resume else []
        if not checkpoints:
            return state, build_loader(0, 0)
        path = checkpoints[-1]
        state = json.loads((path / STATE_FILE).read_text())
        for part, tensors in checkpoint_parts(self.objective, self.optimizer).items():
            with quiet():
                reader = HuggingFaceStorageReader(str(path / TENSORS / part))
                dcp.load(tensors, storage_reader=reader, **self.distribution)
        # The loader counts from the start of the run, or from the last change of readers.
        loader = build_loader(*state["start"])
        if state["readers"] == loader.readers:
            file = path / f"loader_{self.accelerator.process_index:05d}.pt"
            loader.load_state_dict(torch.load(file, weights_only=True))
        else:
            state["start"] = [state["step"], state["epoch"] + 1]
            loader = build_loader(*state["start"])
            self.accelerator.print(
                f"resume: written by {describe(state['readers'])}, read by {describe(loader.readers)}: the data "
                f"continues from epoch {state['epoch'] + 1}, and the run is not identical to an uninterrupted one"
            )
        return state, loader

    def save(self, state: dict, loader: StatefulDataLoader, export: Callable[[Path], None]) -> Path:
        """Write a checkpoint of all processes; `export` writes the exported model into the folder it is called with.

        The checkpoint is written to a temporary folder and renamed at the end, so that a killed process or a full disk
        does not damage the previous one. Then old checkpoints are deleted, see `forget_old`.
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
            # A full disk raises an OSError, or one of torch's checkpoint errors.
            raise Failed(
                f"checkpoint of step {state['step']} could not be written ({first_line(error)}); {self.last_good()}"
            ) from error
        if main:
            self.forget_old()
        return target

    def forget_old(self) -> None:
        """Delete all but the newest `keep_checkpoints` checkpoints and the milestones."""
        every = self.run.milestone_every
        for old in list_checkpoints(self.output_dir)[: -self.run.keep_checkpoints]:
            if every is None or int(old.name.removeprefix("step_")) % every:
                shutil.rmtree(old)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress torch's warning that a checkpoint is saved or loaded by a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Open a file, let `fill` write into it, and flush it to the disk."""
    with open(path, "wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def describe(readers: list[int]) -> str:
    """Describe the readers of the data, [processes, workers, images per batch], in words."""
    processes, workers, batch_size = readers
    return f"{processes} processes of {workers} workers with {batch_size} images per batch"


def first_line(error: Exception) -> str:
    """Return the first line of an error message, or the name of the error if it has no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
