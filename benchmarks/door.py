"""How many CPU seconds does `dinov3` take to start, or a DataLoader's workers to return a first batch?

Each line is measured in a process of its own, including its child processes: user and system seconds, which other work
on the machine disturbs less than wall time. Rounds are interleaved; printed are medians and the number of lines on
stderr. To compare two versions of the package, run this with one, then the other, on PYTHONPATH.

    python benchmarks/door.py --rounds 5
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version


VERB = ["-m", "dinov3_hf.cli"]
COMMANDS = {
    "dinov3 --help": [*VERB, "--help"],
    "dinov3 --version": [*VERB, "--version"],
    "dinov3 pretrain --help": [*VERB, "pretrain", "--help"],
    "dinov3 evaluate --help": [*VERB, "evaluate", "--help"],
    "dinov3 finetune --help": [*VERB, "finetune", "--help"],
    "dinov3 pretrain --nonsense 1": [*VERB, "pretrain", "--nonsense", "1"],
    "import dinov3_hf": ["-c", "import dinov3_hf"],
    "first batch, 4 spawned workers": [__file__, "--first-batch", "spawn"],
    "first batch, 4 forked workers": [__file__, "--first-batch", "fork"],
}


def make_first_batch(context: str) -> None:
    """Take one batch of eight scenes from a loader with four workers, and stop the workers."""
    from dinov3_hf.training.arguments import CropArguments, DataArguments
    from dinov3_hf.training.batches.collate import TrainingBatches, make_loader
    from dinov3_hf.training.run import open_sources

    data = DataArguments(data=["scenes"], num_images=256, shuffle_block=8)
    crops = CropArguments(global_crop_size=64, local_crop_size=32, local_crops=2)
    loader = make_loader(TrainingBatches(open_sources(data), data, crops, batch_size=8, seed=0, patch_size=8), 4)
    loader.multiprocessing_context = context
    batches = iter(loader)
    assert next(batches)["global_crops"].shape == (2, 8, 3, 64, 64)
    # Waits for the workers to end, which is when their CPU seconds are counted.
    del batches


def run(command: list[str]) -> tuple[float, int]:
    """Run Python with these arguments; return its CPU seconds and the number of lines it wrote to stderr."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read().decode()
    if process.returncode not in (0, 2):
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
    return used.ru_utime + used.ru_stime, len(text.splitlines())


def measure(runs: dict[str, Callable[[], tuple[float, int]]], rounds: int) -> dict[str, tuple[float, int]]:
    """Return each run's median CPU seconds and largest number of lines on stderr."""
    measured: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name in list(runs)[index % len(runs) :] + list(runs)[: index % len(runs)]:
            measured[name].append(runs[name]())
    # Without the first round, which compiles modules to bytecode.
    return {
        name: (statistics.median(seconds for seconds, _ in values[1:]), max(lines for _, lines in values[1:]))
        for name, values in measured.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-batch", choices=["spawn", "fork"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.first_batch:
        make_first_batch(arguments.first_batch)
        return
    measured = measure({name: partial(run, command) for name, command in COMMANDS.items()}, arguments.rounds)
    print(
        f"torch {version('torch')}, transformers {version('transformers')}; median CPU seconds of {arguments.rounds}"
    )
    for name, (seconds, lines) in measured.items():
        print(f"{name:32} {seconds:7.2f}   {lines} lines on stderr")


if __name__ == "__main__":
    main()
