"""The training loop, shared by all objectives.

The order of a step is that of the paper: schedules, forward, backward, gradient clipping of each network, AdamW, then
the objective's `after_step` (the moving average of the teacher).
"""

import contextlib
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from torchdata.stateful_dataloader import StatefulDataLoader
from tqdm.auto import tqdm

from dinov3_hf.data.retries import StreamError
from dinov3_hf.errors import Failed
from dinov3_hf.terminal import progress_bar

from ..arguments import RunArguments
from ..objective import Objective, ObjectiveOutput
from ..schedules import StepValues
from .checkpointing import Checkpoints
from .monitor import Alarm, Monitor
from .sharding import compute_precision, distribute, place_in_group, set_gradient_sync


MAX_NON_FINITE_STEPS = 3
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Number of unusable images that are printed; further ones are only counted.
SHOWN_BAD_IMAGES = 5


@dataclass
class RunResult:
    """Result of a run: steps taken, images read, images that could not be used, and whether it reached the last step.

    `signal` is the number of the signal that stopped the run, or None.
    """

    steps: int
    images_read: int
    bad_images: int
    finished: bool
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0, or 128 plus the number of the signal."""
        return 0 if self.finished else 128 + (self.signal or signal.SIGTERM)


class NonFiniteLoss(Failed):
    """Several consecutive losses were not finite."""


class LostProcess(Failed):
    """Another process of the run has died."""


class StopRequest:
    """Record SIGTERM and SIGINT, so that the loop can stop after the current step; a second signal stops at once."""

    def __enter__(self) -> "StopRequest":
        self.received: signal.Signals | None = None
        self.previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def name_lost_process(state: dict, checkpoints: Checkpoints) -> Iterator[None]:
    """Convert errors that end a run into one line that names the newest checkpoint.

    Raises `LostProcess` if another process of a collective operation has died, and `Failed` if data cannot be read or
    a data loading worker has died.
    """
    try:
        yield
    except StreamError as error:
        raise Failed(f"{error}; {checkpoints.last_good()}") from error
    except RuntimeError as error:
        if isinstance(error, Failed):
            raise
        if "DataLoader worker" in str(error):
            raise Failed(
                f"num_workers: a worker that reads images died in step {state['step']} "
                f"({str(error).strip().splitlines()[0]}); {checkpoints.last_good()}"
            ) from error
        # NCCL's errors have their own type; gloo's are plain RuntimeErrors that begin with its source file.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise LostProcess(
            f"a process of the run was lost in step {state['step']} ({str(error).strip().splitlines()[0]}); "
            f"{checkpoints.last_good()}; start all processes again with --resume"
        ) from error


def build_optimizer(groups: list[dict], betas: list[float]) -> torch.optim.AdamW:
    """Build AdamW over parameter groups, whose learning rate and weight decay `set_rates` sets at every step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=tuple(betas), eps=1e-8, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, values: dict[str, float]) -> None:
    """Set the learning rate and weight decay of every group: this step's values times the group's multipliers."""
    for group in optimizer.param_groups:
        kind = "last_layer_lr" if group["is_last_layer"] else "backbone_lr" if group["is_backbone"] else "lr"
        group["lr"] = values[kind] * group["lr_multiplier"]
        group["weight_decay"] = values["weight_decay"] * group["wd_multiplier"]


def clip_gradients(networks: dict[str, torch.nn.Module], max_norm: float | None) -> dict[str, torch.Tensor]:
    """Clip the gradient of each network separately; returns the norms before clipping."""
    limit, norms = math.inf if max_norm is None else max_norm, {}
    for name, network in networks.items():
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
        norms[name] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return norms


@dataclass
class Step:
    """Result of one optimizer step: loss over all processes, metrics and norms of this process, scheduled values."""

    loss: float
    metrics: dict[str, torch.Tensor]
    norms: dict[str, torch.Tensor]
    values: dict[str, float]


class LoopArguments(Protocol):
    """What the loop reads of the arguments of an optimizer."""

    steps: int
    gradient_accumulation_steps: int
    adam_betas: list[float]
    clip_grad_norm: float | None


class Loop:
    """One run of an objective, from its newest checkpoint or from the start; for the arguments see `train`."""

    def __init__(
        self,
        objective: Objective,
        build_groups: Callable[[], list[dict]],
        build_loader: Callable[[int, int], StatefulDataLoader],
        schedules: StepValues,
        accelerator: Accelerator,
        optimization: LoopArguments,
        run: RunArguments,
        recipe: dict,
        export: Callable[[Path, dict, dict], None],
        probe: Callable[[], dict[str, float]] | None,
        alarm: Alarm | None,
    ):
        self.objective, self.schedules, self.accelerator = objective, schedules, accelerator
        self.optimization, self.arguments, self.export, self.probe = optimization, run, export, probe
        float8 = compute_precision(run.mixed_precision) == "fp8"
        self.module = distribute(objective, accelerator, run.activation_checkpointing, float8)
        self.place, self.companions = place_in_group(objective)
        self.optimizer = build_optimizer(build_groups(), optimization.adam_betas)
        self.checkpoints = Checkpoints(run, accelerator, objective, self.optimizer)
        self.state, self.loader = self.checkpoints.resume(build_loader)
        self.monitor = Monitor(Path(run.output_dir), accelerator, self.state["step"], recipe, run.report_to, alarm)
        self.networks, self.last_metrics = objective.networks(), self.monitor.last()
        self.saved_at, self.non_finite = self.state["step"], 0

    def run(self) -> RunResult:
        """Train until the last step or a stop signal."""
        state, run, steps = self.state, self.arguments, self.optimization.steps
        if self.probe is not None and state["step"] == 0:
            state["first_probe"] = self.measure()
        self.objective.train()
        self.batches = iter(self.loader)
        bar = progress_bar(
            total=steps,
            initial=state["step"],
            desc="train",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        # `stopping` is the stop signal that any process of the run received.
        self.window_start, self.window_images, self.stopping = time.perf_counter(), 0, None
        with StopRequest() as stop, bar, name_lost_process(state, self.checkpoints):
            while state["step"] < steps and self.stopping is None:
                done = self.step(stop)
                bar.update()
                is_last = state["step"] == steps
                if state["step"] % run.log_every == 0 or is_last:
                    self.log(done, bar, is_last)
                # A single process need not wait for the sums of the next step to see its own signal.
                alone = self.accelerator.num_processes == 1
                self.stopping = self.stopping or (stop.received if alone else None)
                if state["step"] % run.save_every == 0 or is_last:
                    self.save()
            if self.stopping is not None and self.saved_at < state["step"]:
                self.save()
        finished = state["step"] >= steps
        if finished:
            self.export(Path(run.output_dir) / "model", state, self.last_metrics)
        elif self.stopping is not None and self.accelerator.is_main_process:
            print(
                f"{self.stopping.name}: stopped after step {state['step']}; checkpoint saved, continue with --resume"
            )
        return RunResult(state["step"], state["images_read"], state["bad_images"], finished, self.stopping)

    def step(self, stop: StopRequest) -> Step:
        """Take one optimizer step, in the order of the paper; skip it if loss or gradients are not finite."""
        state, optimization, step = self.state, self.optimization, self.state["step"]
        # Drop path and RoPE augmentation use torch's random state: seeding it at each step makes a resume exact.
        torch.manual_seed(self.arguments.seed * 1_000_003 + step + (self.place << 40))
        values = self.schedules.values_at(step)
        set_rates(self.optimizer, values)
        self.objective.before_step(step)
        self.optimizer.zero_grad(set_to_none=True)
        # Summed over all processes: the loss (a mean over those that train the same networks), images read, bad
        # images, gradients that are not finite, and received stop signals.
        sums = torch.zeros(4 + len(STOP_SIGNALS), dtype=torch.float64)
        for part in range(optimization.gradient_accumulation_steps):
            output = self.accumulate(part, values, sums)
        norms = clip_gradients(self.networks, optimization.clip_grad_norm)
        sums[3] = sum(not math.isfinite(norm.item()) for norm in norms.values())
        if stop.received is not None:
            sums[4 + STOP_SIGNALS.index(stop.received)] = 1
        sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").tolist()
        loss, asked = sums[0], [number for number, count in zip(STOP_SIGNALS, sums[4:], strict=True) if count]
        self.stopping = asked[0] if asked else None
        state["images_read"] += int(sums[1])
        state["bad_images"] += int(sums[2])
        if math.isfinite(loss) and not sums[3]:
            self.optimizer.step()
            self.objective.after_step(step, values)
            self.non_finite = 0
        else:
            # The weights and the teacher are not changed.
            norms, self.non_finite = {}, self.non_finite + 1
            if self.non_finite >= MAX_NON_FINITE_STEPS:
                last = self.checkpoints.last_good()
                raise NonFiniteLoss(f"loss: {self.non_finite} non-finite steps in a row at step {step}; {last}")
        state["step"] = step + 1
        return Step(loss, output.metrics, norms, values)

    def accumulate(self, part: int, values: dict[str, float], sums: torch.Tensor) -> ObjectiveOutput:
        """Run forward and backward on the next batch, one part of a step, and add its counts to `sums`."""
        batch, accumulation = next(self.batches), self.optimization.gradient_accumulation_steps
        for example in batch["bad_examples"][: max(0, SHOWN_BAD_IMAGES - self.state["bad_images"])]:
            tqdm.write(f"skipped: {example}")
        self.state["epoch"] = max(self.state["epoch"], batch["epoch"])
        device = self.accelerator.device
        tensors = {key: value.to(device, non_blocking=True) for key, value in batch.items() if torch.is_tensor(value)}
        self.window_images += batch["num_images"]
        set_gradient_sync(self.module, self.objective, part == accumulation - 1)
        with self.accelerator.autocast():
            output = self.module(tensors, values)
        share = output.loss.item() / accumulation / self.companions
        sums[:3] += torch.tensor([share, batch["images_read"], batch["bad_images"]])
        (output.loss / accumulation).backward()
        return output

    def log(self, done: Step, bar: tqdm, is_last: bool) -> None:
        """Write a line of metrics, evaluate the features if that is due, and print alarms."""
        state, now = self.state, time.perf_counter()
        speed = self.window_images * self.accelerator.num_processes / (now - self.window_start)
        self.window_start, self.window_images = now, 0
        metrics = average(done.metrics | {f"grad_norm_{name}": norm for name, norm in done.norms.items()})
        self.last_metrics = {"loss": done.loss, **metrics, **done.values}
        if self.probe is not None and (state["step"] % self.arguments.probe_every == 0 or is_last):
            measured = self.measure()
            self.last_metrics |= measured
            for name in (name for name in measured if name.endswith("knn")):
                self.last_metrics[f"{name}_drift"] = measured[name] - state["first_probe"][name]
        self.last_metrics |= {"images_read": state["images_read"], "bad_images": state["bad_images"]}
        for sentence in self.monitor.log(state["step"], self.last_metrics | {"images_per_second": speed}):
            state["alarms"] = [*state.get("alarms", []), sentence]
            if self.accelerator.is_main_process:
                tqdm.write(f"alarm: {sentence}")
        shown = {name: f"{metrics[name]:.3f}" for name in self.objective.shown_metrics if name in metrics}
        bar.set_postfix(loss=f"{done.loss:.3f}", images=f"{speed:.0f}/s", **shown)

    def measure(self) -> dict[str, float]:
        """Return the metrics of the probes of all processes, each of which evaluates the networks it trains."""
        assert self.probe is not None
        return {name: value for metrics in gather_object([self.probe()]) for name, value in metrics.items()}

    def save(self) -> None:
        """Write a checkpoint."""
        self.checkpoints.save(
            self.state, self.loader, lambda folder: self.export(folder, self.state, self.last_metrics)
        )
        self.saved_at = self.state["step"]


def train(
    objective: Objective,
    build_groups: Callable[[], list[dict]],
    build_loader: Callable[[int, int], StatefulDataLoader],
    schedules: StepValues,
    accelerator: Accelerator,
    optimization: LoopArguments,
    run: RunArguments,
    recipe: dict,
    export: Callable[[Path, dict, dict], None],
    probe: Callable[[], dict[str, float]] | None = None,
    alarm: Alarm | None = None,
) -> RunResult:
    """Train an objective until the last step or a stop signal.

    Args:
        build_groups: returns the optimizer's parameter groups; called after the networks were distributed.
        build_loader: returns a stateful loader whose batches begin at the given step and epoch.
        schedules: the scheduled values of each step.
        export: writes the exported model into a folder; also receives the run's state and last metrics.
        probe: returns metrics of the features; called at the start and every `run.probe_every` steps.
        alarm: checks each line of metrics for signs of failure.

    Raises `NonFiniteLoss` after three consecutive non-finite losses, and `LostProcess` if another process has died.
    """
    given = (objective, build_groups, build_loader, schedules, accelerator, optimization, run, recipe, export)
    return Loop(*given, probe, alarm).run()


def average(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the mean of each metric over the processes that have it."""
    per_process = gather_object([{name: value.item() for name, value in metrics.items()}])
    names = dict.fromkeys(name for values in per_process for name in values)
    return {name: statistics.fmean(values[name] for values in per_process if name in values) for name in names}
