"""`dinov3 distill` from end to end: two students of the bundled teacher, stopped, resumed, taken apart, refused."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from dinov3_hf.cli import main
from dinov3_hf.recipe import build_recipe, fields_of, folder_of
from dinov3_hf.training.arguments import PretrainRecipe
from dinov3_hf.training.distill_arguments import DistillRecipe
from dinov3_hf.training.planning.distill_plan import DistillPlan, apportion, format_plan


VIT = (
    "vits16:patch_size=8,hidden_size=16,num_hidden_layers=1,num_attention_heads=2,"
    "intermediate_size=32,layerscale_value=0.5"
)
CONV = "convnext_tiny:depths=[1,1],hidden_sizes=[8,12],layer_scale_init_value=0.5"
TINY = [
    *("distill --config distill_tiny_cpu --global-crop-size 16 --batch-size 4 --steps 6 --lr-warmup-steps 1").split(),
    *("--num-images 40 --shuffle-block 8 --log-every 1 --save-every 3 --probe-every 3 --probe-images 40").split(),
    *("--drop-path-rate 0.3").split(),
]


def run(output, *flags, students=(f"vit={VIT}", f"conv={CONV}")):
    return main([*TINY, "--students", *students, "--output-dir", str(output), *flags])


def lines_of(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights_of(output, name):
    (file,) = (output / "checkpoints" / "step_00000006" / "tensors" / name).glob("*.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("distill") / "out"
    assert run(output) == 0
    return output


def test_run_leaves_a_stock_model_for_each_student(finished):
    from transformers import AutoImageProcessor, AutoModel

    lines = lines_of(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"vit/cls", "vit/patch", "conv/koleo", "grad_norm_conv/ibot_head"} <= lines[0].keys()
    assert {"vit/knn", "conv/rankme", "conv/knn_drift"} <= lines[2].keys() and "vit/knn" not in lines[0]
    for name, kind in (("vit", "DINOv3ViTModel"), ("conv", "DINOv3ConvNextModel")):
        folder = finished / "model" / name
        model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
        assert type(model).__name__ == kind and dict(processor.size) == {"height": 16, "width": 16}
        tensors = weights_of(finished, name)
        for key, value in load_file(folder / "model.safetensors").items():
            assert torch.equal(value, tensors[f"objective.ema_{name}.backbone.{key}"])
        assert not any(key.startswith("objective.teacher.") for key in tensors)
        card = (folder / "README.md").read_text()
        assert "Distilled from `dinov3_hf.tiny_checkpoint()`" in card and "| `knn` |" in card
        assert ("ConvNeXt" in card.split("\n## ")[0]) is (name == "conv")


def test_a_student_alone_is_the_student_in_company(finished, tmp_path):
    """By the command, drop path and all: the same losses and weights to 1e-5."""
    assert run(tmp_path / "alone", students=[f"conv={CONV}"]) == 0
    for mine, theirs in zip(lines_of(tmp_path / "alone"), lines_of(finished), strict=True):
        assert mine["conv/loss"] == pytest.approx(theirs["conv/loss"], rel=1e-5)
        assert mine["loss"] == pytest.approx(theirs["conv/loss"], rel=1e-5)
    alone, together = weights_of(tmp_path / "alone", "conv"), weights_of(finished, "conv")
    assert alone.keys() == together.keys()
    assert all((value - together[key]).abs().max() < 1e-5 for key, value in alone.items())


def test_interrupted_run_equals_uninterrupted_and_a_student_can_go_on_alone(finished, tmp_path, monkeypatch):
    from dinov3_hf.training.distillation import Distillation

    plain = Distillation.after_step

    def stop(self, step, values):
        plain(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    for name in ("both", "one"):
        with monkeypatch.context() as patch:
            patch.setattr(Distillation, "after_step", stop)
            assert run(tmp_path / name) == 143
    assert run(tmp_path / "both", "--resume") == 0
    assert run(tmp_path / "one", "--resume", students=[f"vit={VIT}"]) == 0
    wanted = lines_of(finished)
    assert [line["loss"] for line in lines_of(tmp_path / "both")] == [line["loss"] for line in wanted]
    assert [line["vit/loss"] for line in lines_of(tmp_path / "one")] == [line["vit/loss"] for line in wanted]
    for folder, names in (("both", ("vit", "conv")), ("one", ("vit",))):
        for name in names:
            before, after = weights_of(finished, name), weights_of(tmp_path / folder, name)
            assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--mode", "full"], "mode: got 'full', accepted: headless or null"),
        (["--local-crops", "2"], "local_crops: got 2, accepted: 0 in headless mode"),
        (
            ["--global-crop-size", "24"],
            "global_crop_size: got 24, accepted: a multiple of the patch size of wide (16)",
        ),
        (
            ["--group-sizes", "1", "1"],
            "group_sizes: got [1, 1], accepted: sizes whose sum is the number of processes (1)",
        ),
        (["--group-sizes", "1"], "group_sizes: got [1], accepted: empty, or one for each of the 2 students"),
        (["--teacher", "./nowhere"], "teacher: no config.json in './nowhere'"),
        (["--processes", "2"], "processes: got 2, accepted: only with --plan"),
    ],
)
def test_refusals_are_one_line_before_anything_is_written(flags, message, tmp_path, capsys):
    students = [f"vit={VIT}", "wide=convnext_tiny:depths=[1,1,1],hidden_sizes=[8,8,8]"]
    assert run(tmp_path / "out", *flags, students=students) == 2
    shown = capsys.readouterr().err
    (line,) = (line for line in shown.splitlines() if "error:" in line)
    assert message in line and not (tmp_path / "out").exists()


def test_a_student_that_was_never_trained_cannot_be_resumed(finished, tmp_path, capsys):
    import shutil

    shutil.copytree(finished, tmp_path / "out")
    assert run(tmp_path / "out", "--resume", students=[f"other={VIT}"]) == 2
    assert "has no part 'other'" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(file.stem for file in folder_of(PretrainRecipe).glob("distill_*.yaml")))
def test_shipped_recipes_are_valid_and_say_what_they_cost(name):
    recipe = build_recipe(DistillRecipe, name)
    assert "Cost:" in (folder_of(PretrainRecipe) / f"{name}.yaml").read_text() and len(recipe.distillation.specs()) > 1


def test_every_field_is_read():
    folder = folder_of(PretrainRecipe).parent
    text = "\n".join(file.read_text() for file in folder.rglob("*.py") if file.name != "distill_arguments.py")
    patterned = ("pos_embed_", "dino_head_", "ibot_head_")
    for name in fields_of(DistillRecipe):
        assert f".{name}" in text or f'"{name}"' in text or name.startswith(patterned), name


@pytest.mark.parametrize(
    "costs, processes, images, sizes",
    [
        # In proportion to the cost where that divides the images.
        ([1.0, 2.0, 5.0], 8, 40, [1, 2, 5]),
        ([1.0, 1.0, 2.0], 4, 8, [1, 1, 2]),
        # Five does not divide 64.
        ([1.0, 2.0, 5.0], 8, 64, [2, 2, 4]),
        ([3.0], 4, 4, [4]),
        # Sizes 1, 2, 4 and 8: two of them do not sum to 7.
        ([1.0, 1.0], 7, 8, None),
        ([1.0, 1.0, 1.0], 2, 8, None),
    ],
)
def test_apportioning(costs, processes, images, sizes):
    assert apportion(costs, processes, images) == sizes


def test_apportioning_is_the_best_of_all_divisions():
    import itertools

    costs, processes, images = [0.7, 2.1, 1.3], 12, 24
    fitting = [
        max(cost / size for cost, size in zip(costs, sizes, strict=True))
        for sizes in itertools.product(range(1, 13), repeat=3)
        if sum(sizes) == processes and all(images % size == 0 for size in sizes)
    ]
    found = apportion(costs, processes, images)
    assert sum(found) == processes
    assert max(cost / size for cost, size in zip(costs, found, strict=True)) == min(fitting)


def test_plan_measures_and_proposes(tmp_path, capsys):
    assert run(tmp_path / "out", "--plan", "--processes", "4") == 0
    shown = capsys.readouterr().out
    assert "teacher" in shown and "group_sizes: [" in shown and not (tmp_path / "out").exists()
    # 2 s and 6 s on one and three of four processes: 8 s each, all of them busy.
    text = format_plan(DistillPlan(4, 3, 1.0, {"a": 2.0, "b": 6.0}, [1, 3]))
    assert (
        "every process trains all: 9.000 s" in text
        and "group_sizes: [1, 3]: 9.000 s a step" in text
        and "100%" in text
    )
