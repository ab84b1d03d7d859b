"""Schedules of learning rate, weight decay, momentum, temperature and loss weights, one value per step."""

import math

import numpy as np

from .arguments import GramArguments, OptimizationArguments


def warmup_cosine(
    start: float, peak: float, end: float, warmup_steps: int, cosine_steps: int, total_steps: int
) -> np.ndarray:
    """Return linear warm-up [start, peak), then a cosine from peak to end (both included), then end: [total_steps]."""
    warmup = np.linspace(start, peak, warmup_steps, endpoint=False)
    phase = np.linspace(0, math.pi, cosine_steps) if cosine_steps > 1 else np.zeros(cosine_steps)
    cosine = end + (peak - end) * (1 + np.cos(phase)) / 2
    values = np.concatenate([warmup, cosine])[:total_steps]
    return np.concatenate([values, np.full(total_steps - len(values), end)])


class StepValues:
    """Scheduled values of a run, arrays [steps] by name; steps beyond the end have the last value."""

    def __init__(self, values: dict[str, np.ndarray]):
        self.values = values

    def values_at(self, step: int) -> dict[str, float]:
        """Return every scheduled value of a step (counted from 0)."""
        return {name: float(values[min(step, len(values) - 1)]) for name, values in self.values.items()}


class Schedules(StepValues):
    """The schedules of pretraining."""

    def __init__(
        self,
        arguments: OptimizationArguments,
        global_batch_size: int,
        gram: GramArguments | None = None,
        head_warmup_steps: int = 0,
    ):
        scale = 4 * math.sqrt(global_batch_size / 1024) if arguments.lr_scaling == "sqrt_wrt_1024" else 1.0
        steps = arguments.steps

        def schedule(peak: float, end: float | None, warmup: int = 0, start: float = 0.0) -> np.ndarray:
            cosine = 0 if end is None else steps - warmup
            return warmup_cosine(start, peak, peak if end is None else end, warmup, cosine, steps)

        peak, end = arguments.lr * scale, None if arguments.lr_end is None else arguments.lr_end * scale
        self.values = {
            "lr": schedule(peak, end, arguments.lr_warmup_steps),
            "weight_decay": schedule(arguments.weight_decay, arguments.weight_decay_end),
            "momentum": schedule(arguments.momentum, arguments.momentum_end),
            "teacher_temperature": schedule(
                arguments.teacher_temperature,
                None,
                arguments.teacher_temperature_warmup_steps,
                arguments.teacher_temperature_start,
            ),
            "local_weight": schedule(arguments.local_weight, arguments.local_weight_end),
        }
        self.values["gram_weight"] = np.zeros(steps)
        if gram is not None and gram.gram_teacher != "none":
            since = np.arange(steps) - gram.gram_start_step
            phase = np.clip((since + 1) / (gram.gram_ramp_steps + 1), 0, 1) * math.pi
            self.values["gram_weight"] = gram.gram_weight * (1 - np.cos(phase)) / 2 * (since >= 0)
        self.values["last_layer_lr"] = self.values["lr"].copy()
        self.values["last_layer_lr"][: arguments.freeze_last_layer_steps] = 0.0
        # At a learning rate of 0 the backbone is frozen, and so is the teacher's; only AdamW's moments are updated.
        self.values["backbone_lr"] = self.values["lr"].copy()
        self.values["backbone_lr"][:head_warmup_steps] = 0.0
