"""Metrics of a run: one JSON line per logged step, and an optional experiment tracker."""

import json
import math
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator


class Alarm(Protocol):
    """Checks each line of metrics for signs that a run fails."""

    def check(self, line: dict) -> list[str]:
        """Return new alarms, one sentence each."""


class Monitor:
    """Append metrics to `metrics.jsonl` and pass them to Accelerate's tracker.

    On a resume, lines after `first_step` are removed from the file, so that it contains no step twice.
    """

    def __init__(
        self,
        output_dir: Path,
        accelerator: Accelerator,
        first_step: int,
        recipe: dict,
        report_to: str,
        alarm: Alarm | None = None,
    ):
        self.path = Path(output_dir) / "metrics.jsonl"
        self.accelerator, self.alarm = accelerator, alarm
        self.kept = [line for line in read_metrics(self.path) if line["step"] <= first_step] if first_step else []
        if alarm is not None:
            for line in self.kept:
                alarm.check(line)  # alarms reported before the stop are not repeated
        if accelerator.is_main_process:
            self.path.write_text("".join(json.dumps(line) + "\n" for line in self.kept))
        if report_to != "none":
            flat = {
                key: str(value) if isinstance(value, list) or value is None else value for key, value in recipe.items()
            }
            accelerator.init_trackers("dinov3-hf", config=flat)

    def last(self) -> dict:
        """Return the metrics of the last line before the resume; empty without one."""
        return {key: value for key, value in self.kept[-1].items() if key != "step"} if self.kept else {}

    def log(self, step: int, values: dict[str, float]) -> list[str]:
        """Write the metrics after `step` optimizer steps; returns new alarms."""
        line = {"step": step} | {key: value if math.isfinite(value) else None for key, value in values.items()}
        if self.accelerator.is_main_process:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
        self.accelerator.log({key: value for key, value in line.items() if value is not None}, step=step)
        return [] if self.alarm is None else self.alarm.check(line)


def read_metrics(path: Path) -> list[dict]:
    """Read a metrics file; an incomplete last line, as a killed run leaves it, is skipped."""
    lines = []
    if Path(path).is_file():
        for text in Path(path).read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
