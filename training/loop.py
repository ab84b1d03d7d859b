"""The training loop: one for every objective, and the only place that knows devices, precision and checkpoints.

The order of a step is the paper's: schedules, forward, backward, clip each network, AdamW, then the objective's own
`after_step` (the teacher's moving average).
"""

import contextlib
import math
import signal
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from .arguments import OptimizationArguments, RunArguments
from .checkpointing import Checkpoints
from .monitor import Monitor
from .sharding import compute_precision, distribute, place_in_group, set_gradient_sync


MAX_NON_FINITE_STEPS = 3
# Bad images that are named; the rest is only counted.
SHOWN_BAD_IMAGES = 5


@dataclass
class RunResult:
    """How a run ended: steps applied, images read, images that could not be decoded, and whether it got to the end."""

    steps: int
    images_read: int
    bad_images: int
    finished: bool


class NonFiniteLoss(RuntimeError):
    """Several losses in a row were not finite."""


class LostProcess(RuntimeError):
    """Another process of the run is gone."""


class StopRequest:
    """Turn SIGTERM and SIGINT into a request that the loop answers between two steps; a second one stops at once."""

    def __enter__(self):
        self.received = None
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number, frame):
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def name_lost_process(state: dict, checkpoints: Checkpoints):
    """Turn the error of a collective whose other end is gone into one line: `LostProcess`."""
    try:
        yield
    except RuntimeError as error:
        # NCCL's errors have a type; gloo's are plain, with its source file in front.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise LostProcess(
            f"a process of the run was lost in step {state['step']} ({str(error).strip().splitlines()[0]}); "
            f"{checkpoints.last_good()}; start all processes again with --resume"
        ) from error


def build_optimizer(groups: list[dict], betas: list[float]) -> torch.optim.AdamW:
    """Build AdamW over parameter groups; `set_rates` gives each its learning rate and weight decay every step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=tuple(betas), eps=1e-8, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, values: dict[str, float]) -> None:
    """Write this step's learning rate and weight decay into every group, by the group's multipliers."""
    for group in optimizer.param_groups:
        kind = "last_layer_lr" if group["is_last_layer"] else "backbone_lr" if group["is_backbone"] else "lr"
        group["lr"] = values[kind] * group["lr_multiplier"]
        group["weight_decay"] = values["weight_decay"] * group["wd_multiplier"]


def clip_gradients(networks: dict[str, torch.nn.Module], max_norm: float | None) -> dict[str, torch.Tensor]:
    """Clip each network's gradient by itself and return its norm before clipping."""
    limit, norms = math.inf if max_norm is None else max_norm, {}
    for name, network in networks.items():
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
        norms[name] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return norms


def train(
    objective: torch.nn.Module,
    build_groups,
    build_loader,
    schedules,
    accelerator: Accelerator,
    optimization: OptimizationArguments,
    run: RunArguments,
    recipe: dict,
    export,
    probe=None,
    alarm=None,
) -> RunResult:
    """Train an objective to the last step of its schedules, or until a signal asks to stop.

    `build_groups()` gives the optimizer's parameter groups, once the networks are where they stay; `build_loader(step,
    epoch)` a stateful loader whose batches begin there; `schedules.values_at(step)` the numbers of a step; `export`
    writes the usable model, with the run's state and last metrics, into the folder it is given; `probe()` measures the
    features, at the start and every `run.probe_every` steps; `alarm.check(line)` gives sentences on what goes wrong.
    Raises `NonFiniteLoss` after three non-finite losses in a row, and `LostProcess` when another process is gone.
    """
    device, accumulation = accelerator.device, optimization.gradient_accumulation_steps
    float8 = compute_precision(run.mixed_precision) == "fp8"
    module = distribute(objective, accelerator, run.activation_checkpointing, float8)
    place, companions = place_in_group(objective)
    optimizer = build_optimizer(build_groups(), optimization.adam_betas)
    checkpoints = Checkpoints(run, accelerator, objective, optimizer)
    state, loader = checkpoints.resume(build_loader)
    monitor = Monitor(Path(run.output_dir), accelerator, state["step"], recipe, run.report_to, alarm)
    networks, last_metrics = objective.networks(), monitor.last()
    if probe is not None and state["step"] == 0:
        state["first_probe"] = probe()
    objective.train()
    saved_at, non_finite, batches = state["step"], 0, iter(loader)
    bar = tqdm(
        total=optimization.steps,
        initial=state["step"],
        desc="train",
        unit="step",
        dynamic_ncols=True,
        disable=not accelerator.is_main_process,
    )

    def save() -> None:
        checkpoints.save(state, loader, lambda folder: export(folder, state, last_metrics))

    window_start, window_images, stopping = time.perf_counter(), 0, False
    with StopRequest() as stop, bar, name_lost_process(state, checkpoints):
        while state["step"] < optimization.steps and not stopping:
            step = state["step"]
            # Drop path and RoPE augmentation draw from torch's generator: seeding it by step makes a resume exact.
            torch.manual_seed(run.seed * 1_000_003 + step + (place << 40))
            values = schedules.values_at(step)
            set_rates(optimizer, values)
            objective.before_step(step)
            optimizer.zero_grad(set_to_none=True)
            # The sums that all processes agree on: the loss (a mean over those that train the same networks), images
            # read, bad images, who was asked to stop, and gradients that are not finite.
            sums = torch.zeros(5, dtype=torch.float64)
            for part in range(accumulation):
                batch = next(batches)
                for example in batch["bad_examples"][: max(0, SHOWN_BAD_IMAGES - state["bad_images"])]:
                    tqdm.write(f"left out: {example}")
                state["epoch"] = max(state["epoch"], batch["epoch"])
                tensors = {
                    key: value.to(device, non_blocking=True) for key, value in batch.items() if torch.is_tensor(value)
                }
                window_images += batch["num_images"]
                set_gradient_sync(module, objective, part == accumulation - 1)
                with accelerator.autocast():
                    output = module(tensors, values)
                share = output.loss.item() / accumulation / companions
                sums[:3] += torch.tensor([share, batch["images_read"], batch["bad_images"]])
                (output.loss / accumulation).backward()
            norms = clip_gradients(networks, optimization.clip_grad_norm)
            sums[3] = float(stop.received is not None)
            sums[4] = sum(not math.isfinite(norm.item()) for norm in norms.values())
            sums = accelerator.reduce(sums.to(device), "sum").tolist()
            loss, stopping = sums[0], sums[3] > 0
            state["images_read"] += int(sums[1])
            state["bad_images"] += int(sums[2])
            if math.isfinite(loss) and not sums[4]:
                optimizer.step()
                objective.after_step(step, values)
                non_finite = 0
            else:
                # A non-finite step is never applied: the weights and the teacher stay as they are.
                norms, non_finite = {}, non_finite + 1
                if non_finite >= MAX_NON_FINITE_STEPS:
                    raise NonFiniteLoss(
                        f"loss: {non_finite} non-finite steps in a row at step {step}; {checkpoints.last_good()}"
                    )
            state["step"] = step + 1
            bar.update()
            is_last = state["step"] == optimization.steps
            if state["step"] % run.log_every == 0 or is_last:
                now = time.perf_counter()
                speed = window_images * accelerator.num_processes / (now - window_start)
                window_start, window_images = now, 0
                norms = {f"grad_norm_{name}": norm for name, norm in norms.items()}
                metrics = average(output.metrics | norms)
                last_metrics = {"loss": loss, **metrics, **values}
                if probe is not None and (state["step"] % run.probe_every == 0 or is_last):
                    measured = probe()
                    last_metrics |= measured
                    for name in (name for name in measured if name.endswith("knn")):
                        last_metrics[f"{name}_drift"] = measured[name] - state["first_probe"][name]
                last_metrics |= {"images_read": state["images_read"], "bad_images": state["bad_images"]}
                for sentence in monitor.log(state["step"], last_metrics | {"images_per_second": speed}):
                    state["alarms"] = [*state.get("alarms", []), sentence]
                    if accelerator.is_main_process:
                        tqdm.write(f"alarm: {sentence}")
                shown = {name: f"{metrics[name]:.3f}" for name in objective.shown_metrics if name in metrics}
                bar.set_postfix(loss=f"{loss:.3f}", images=f"{speed:.0f}/s", **shown)
            # A process alone need not wait for the next step's sums to know.
            stopping = stopping or (accelerator.num_processes == 1 and stop.received is not None)
            if state["step"] % run.save_every == 0 or is_last:
                save()
                saved_at = state["step"]
        if stopping and saved_at < state["step"]:
            save()
    finished = state["step"] >= optimization.steps
    if finished:
        export(Path(run.output_dir) / "model", state, last_metrics)
    elif stopping and accelerator.is_main_process:
        name = stop.received or "another process's signal"
        print(f"{name}: stopped after step {state['step']}; checkpoint saved, rerun with --resume to go on")
    return RunResult(state["step"], state["images_read"], state["bad_images"], finished)


def average(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the mean of each metric over the processes that have it."""
    gathered = gather_object([{name: value.item() for name, value in metrics.items()}])
    names = dict.fromkeys(name for found in gathered for name in found)
    return {name: statistics.fmean(found[name] for found in gathered if name in found) for name in names}
