"""The table of tasks: one file adds one, every field belongs to those who read it, and unread fields are refused."""

import dataclasses
import json
import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.evaluation.arguments import ALWAYS, DataArguments, NetworkArguments
from dinov3_hf.evaluation.result import Result
from dinov3_hf.evaluation.results import write_results
from dinov3_hf.evaluation.rows import image_column, only_test
from dinov3_hf.evaluation.run import evaluate
from dinov3_hf.evaluation.task import Repetition, Task, make_recipe, make_table, protocols
from dinov3_hf.evaluation.tasks import TASKS, EvaluateRecipe
from dinov3_hf.recipe import build_recipe, described, fields_of


# What a new protocol's file holds -----------------------------------------------------------------------------------


@dataclass
class NormArguments:
    """Norms of class tokens."""

    power: float = described("which norm", 2.0)


def run(bench, train, test, recipe) -> Result:
    features = bench.extract(test, image_column(test, recipe), "cls", "norms", raw_pixels=False)
    power = recipe.of(NormArguments).power
    norms = {name: found.stack().norm(p=power, dim=1).mean().item() for name, found in features.items()}
    return Result("norms", {"power": power, "num_test": len(test)}, [{"metric": "mean norm", **norms}])


NORMS = Task("norms", "norms of class tokens", (NetworkArguments, NormArguments), run, "single", rows=only_test)


# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32)).eval()
    model.save_pretrained(tmp_path / "model")
    return model


def test_a_new_protocol_is_one_file_and_one_line(model, tmp_path):
    recipe_class = make_recipe(make_table([*TASKS.values(), NORMS]))
    fields = {"model": str(tmp_path / "model"), "task": ["norms"], "num_test": 6, "power": 1.0, "baselines": False}
    record = evaluate(build_recipe(recipe_class, **fields, output_dir=str(tmp_path / "out")))
    write_results(record, tmp_path / "out")
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["task"] == "norms" and result["data"]["source"] == "scenes:single"
    assert result["metrics"][0]["model"] > 0 and record["settings"]["power"] == 1.0
    with pytest.raises(ValueError, match=r"power: got 3.0, which knn does not read; accepted: .* reads it \(norms\)"):
        build_recipe(recipe_class, model="m", power=3.0)


def test_every_field_has_one_group_and_every_group_a_reader():
    groups = [group.default_factory for group in dataclasses.fields(EvaluateRecipe)]
    names = [item.name for group in groups for item in dataclasses.fields(group)]
    assert len(names) == len(set(names)) == len(fields_of(EvaluateRecipe))
    for group in groups:
        assert group in ALWAYS or any(group in task.reads for task in TASKS.values()), group
    known = {task.name for task in TASKS.values() if isinstance(task, Repetition)}
    assert {name for task in protocols(TASKS) for name in task.repeated_by} == known


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_fields_of_other_tasks_are_refused(task):
    needed = {"model": "m", "task": [task.name]} | ({"group_column": "label"} if task.name == "fairness" else {})
    recipe = build_recipe(EvaluateRecipe, **needed)
    read = recipe.groups_read()
    assert set(recipe.as_flat_dict()) == {item.name for group in read for item in dataclasses.fields(group)}
    for group in dataclasses.fields(EvaluateRecipe):
        for name, value in dataclasses.asdict(group.default_factory()).items():
            if group.default_factory in read or value is None:
                continue
            with pytest.raises(ValueError, match=rf"^{name}: got .* does not read; accepted: without it"):
                build_recipe(EvaluateRecipe, **needed, **{name: value})


def test_the_benchmarks_evaluations_read_what_they_set():
    table = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "evaluation_table.py"))
    for settings, _, _ in table["RUNS"].values():
        build_recipe(EvaluateRecipe, model="m", **{**settings, "task": [settings["task"]]})


def test_what_tasks_repeat_is_read_too():
    fields = {"model": "m", "task": ["layers"], "of": ["depth"]}
    assert build_recipe(EvaluateRecipe, **fields, depth_unit=0.01).as_flat_dict()["depth_unit"] == 0.01
    with pytest.raises(ValueError, match="k: got"):
        build_recipe(EvaluateRecipe, **fields, k=[3])


def test_rows_to_learn_from_are_not_those_measured():
    fields = {"model": "m", "train_split": "test"}
    with pytest.raises(ValueError, match="test_split: got 'test', accepted: for knn another split than train_split"):
        build_recipe(EvaluateRecipe, **fields)
    recipe = build_recipe(EvaluateRecipe, **fields, task=["retrieval"])
    assert recipe.of(DataArguments).test_split == "test"
