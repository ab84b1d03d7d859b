"""Run an evaluation: from its recipe to the record for results.json."""

import datetime
import os
from typing import TYPE_CHECKING, Any

from ..provenance import versions
from .arguments import DataArguments, TrainArguments, WhatArguments
from .loading import Aligned, load_bench, load_evaluated_text_model
from .result import Result
from .results import drop_no_metrics
from .rows import ANNOUNCED, describe_rows
from .task import Evaluation, Repetition, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from .bench import Bench


def join_processes() -> dict:
    """Return rank, number and barrier of the processes that a launcher started; empty for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    import torch
    from accelerate import PartialState

    # Without `cpu`, Accelerate does not connect processes that have no GPU.
    state = PartialState(cpu=not torch.cuda.is_available())
    return {"rank": state.process_index, "num_processes": state.num_processes, "wait": state.wait_for_everyone}


def evaluate(recipe: Evaluation, processes: dict | None = None) -> dict:
    """Run the tasks and return the record for results.json; `processes` are arguments of `FeatureStore`.

    All rows are loaded before the model, so that wrong columns raise `Refused` early.
    """
    ANNOUNCED.clear()
    rows = {task.name: task.rows(task, recipe) for task in recipe.measured()}
    # A `Bench` or an `Aligned`, whichever the chosen tasks take.
    subject: Any
    if recipe.has_text:
        model = recipe.of(WhatArguments).model
        assert model is not None, "checked by validate"
        subject, provenance = load_evaluated_text_model(model)
    else:
        subject, provenance = load_bench(recipe, processes or {})
    results = []
    for task in recipe.chosen:
        if isinstance(task, Repetition):
            results += [repeat(task, inner, subject, *rows[inner.name], recipe) for inner in recipe.repeated(task)]
        else:
            results.append(measure(task, subject, *rows[task.name], recipe))
    return {
        "results": results,
        "model": provenance,
        "settings": recipe.as_flat_dict(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def measure(
    task: Task, subject: "Bench | Aligned", train: "Dataset | None", test: "Dataset", recipe: Evaluation
) -> Result:
    """Run one task on its rows."""
    return described(task.run(subject, train, test, recipe), task, train, test, recipe)


def repeat(
    task: Repetition, inner: Task, bench: "Bench", train: "Dataset | None", test: "Dataset", recipe: Evaluation
) -> Result:
    """Run `task`, which repeats the task `inner`."""
    result = task.run(bench, lambda other: inner.run(other, train, test, recipe), test, recipe)
    return described(result, inner, train, test, recipe)


def described(result: Result, task: Task, train: "Dataset | None", test: "Dataset", recipe: Evaluation) -> Result:
    """Add to a result the data it was measured on, and the Hub's name of the task; return it.

    Metrics in which an answer without looking is perfect are removed (see `drop_no_metrics`).
    """
    result = drop_no_metrics(result)
    data = recipe.of(DataArguments)
    result.data = {"source": task.source(data.data)}
    if train is not None:
        result.data["train"] = describe_rows(recipe.of(TrainArguments).train_split, train)
    result.data["test"] = describe_rows(data.test_split, test)
    result.hub_task = task.hub_task
    return result
