"""The training loop: one for every objective, and the only place that knows devices, precision and checkpoints.

The order of a step is the paper's: schedules, forward, backward, clip each network, AdamW, then the objective's own
`after_step` (the teacher's moving average).
"""

import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .arguments import OptimizationArguments, RunArguments
from .checkpointing import list_checkpoints, load_checkpoint, save_checkpoint
from .monitor import Monitor


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


def build_optimizer(groups: list[dict], betas: list[float]) -> torch.optim.AdamW:
    """Build AdamW over parameter groups; `set_rates` gives each its learning rate and weight decay every step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=tuple(betas), eps=1e-8, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, values: dict[str, float]) -> None:
    """Write this step's learning rate and weight decay into every group, by the group's multipliers."""
    for group in optimizer.param_groups:
        lr = values["last_layer_lr"] if group["is_last_layer"] else values["lr"]
        group["lr"] = lr * group["lr_multiplier"]
        group["weight_decay"] = values["weight_decay"] * group["wd_multiplier"]


def clip_gradients(networks: dict[str, torch.nn.Module], max_norm: float | None) -> dict[str, torch.Tensor]:
    """Clip each network's gradient by itself and return its norm before clipping."""
    limit = math.inf if max_norm is None else max_norm
    return {name: torch.nn.utils.clip_grad_norm_(net.parameters(), limit) for name, net in networks.items()}


def train(
    objective: torch.nn.Module,
    groups: list[dict],
    loader,
    schedules,
    accelerator: Accelerator,
    optimization: OptimizationArguments,
    run: RunArguments,
    recipe: dict,
    export,
) -> RunResult:
    """Train an objective to the last step of its schedules, or until a signal asks to stop.

    `schedules.values_at(step)` gives the numbers of a step; `loader` is a stateful loader of batches; `export` writes
    the usable model into the folder it is given. Raises `NonFiniteLoss` after three non-finite losses in a row.
    """
    output_dir, device = Path(run.output_dir), accelerator.device
    objective.to(device)
    optimizer = build_optimizer(groups, optimization.adam_betas)
    state = {"step": 0, "images_read": 0, "bad_images": 0}
    checkpoints = list_checkpoints(output_dir) if run.resume else []
    if checkpoints:
        saved = load_checkpoint(checkpoints[-1])
        objective.load_state_dict(saved["objective"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        state = saved["state"]

    def save() -> Path:
        parts = {
            "objective": objective.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loader": loader.state_dict(),
        }
        return save_checkpoint(
            output_dir, state["step"], {**parts, "state": dict(state)}, export, run.keep_checkpoints
        )

    monitor = Monitor(output_dir, accelerator, state["step"], recipe, run.report_to)
    networks = objective.networks()
    objective.train()
    saved_at, non_finite, batches = state["step"], 0, iter(loader)
    bar = tqdm(total=optimization.steps, initial=state["step"], desc="train", unit="step", dynamic_ncols=True)
    window_start, window_images = time.perf_counter(), 0
    with StopRequest() as stop, bar:
        while state["step"] < optimization.steps and stop.received is None:
            step = state["step"]
            # Drop path and RoPE augmentation draw from torch's generator: seeding it by step makes a resume exact.
            torch.manual_seed(run.seed * 1_000_003 + step)
            batch = next(batches)
            state["images_read"] += batch["images_read"]
            for example in batch["bad_examples"][: max(0, SHOWN_BAD_IMAGES - state["bad_images"])]:
                tqdm.write(f"left out, cannot be decoded: {example}")
            state["bad_images"] += batch["bad_images"]
            tensors = {
                key: value.to(device, non_blocking=True) for key, value in batch.items() if torch.is_tensor(value)
            }
            window_images += tensors["global_crops"].shape[1]
            values = schedules.values_at(step)
            set_rates(optimizer, values)
            objective.before_step(step)
            optimizer.zero_grad(set_to_none=True)
            with accelerator.autocast():
                output = objective(tensors, values)
            loss = output.loss.item()
            if math.isfinite(loss):
                output.loss.backward()
                norms = clip_gradients(networks, optimization.clip_grad_norm)
            if math.isfinite(loss) and all(math.isfinite(norm.item()) for norm in norms.values()):
                optimizer.step()
                objective.after_step(step, values)
                non_finite = 0
            else:
                # A non-finite step is never applied: the weights and the teacher stay as they are.
                norms, non_finite = {}, non_finite + 1
                if non_finite >= MAX_NON_FINITE_STEPS:
                    last = list_checkpoints(output_dir)
                    place = f"the last good checkpoint is {last[-1]}" if last else "no checkpoint was written yet"
                    raise NonFiniteLoss(f"loss: {non_finite} non-finite steps in a row at step {step}; {place}")
            state["step"] = step + 1
            bar.update()
            if state["step"] % run.log_every == 0 or state["step"] == optimization.steps:
                now = time.perf_counter()
                speed = window_images * accelerator.num_processes / (now - window_start)
                window_start, window_images = now, 0
                metrics = {name: value.item() for name, value in output.metrics.items()}
                norms = {f"grad_norm_{name}": norm.item() for name, norm in norms.items()}
                monitor.log(
                    state["step"],
                    {"loss": loss, **metrics, **norms, **values, "images_per_second": speed, **counts(state)},
                )
                bar.set_postfix(
                    loss=f"{loss:.3f}", images=f"{speed:.0f}/s", **{k: f"{v:.3f}" for k, v in metrics.items()}
                )
            if state["step"] % run.save_every == 0 or state["step"] == optimization.steps:
                save()
                saved_at = state["step"]
        if stop.received is not None and saved_at < state["step"]:
            save()
    finished = state["step"] >= optimization.steps
    if finished:
        export(output_dir / "model")
    elif stop.received:
        print(f"{stop.received}: stopped after step {state['step']}; checkpoint saved, rerun with --resume to go on")
    accelerator.end_training()
    return RunResult(state["step"], state["images_read"], state["bad_images"], finished)


def counts(state: dict) -> dict[str, int]:
    """Return the running counts of images read and images that could not be decoded."""
    return {"images_read": state["images_read"], "bad_images": state["bad_images"]}
