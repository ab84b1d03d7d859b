"""Recipes: every wrong value is refused in one line that names the field, the value and what is accepted."""

import argparse
import ast
import dataclasses
from pathlib import Path

import pytest

from dinov3_hf.errors import Refused
from dinov3_hf.recipe import add_recipe_flags, build_recipe, fields_of, folder_of, groups_of, recipe_from_flags
from dinov3_hf.training import arguments
from dinov3_hf.training.arguments import PretrainRecipe


def from_flags(*argv):
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser, PretrainRecipe)
    return recipe_from_flags(parser.parse_args(list(argv)), PretrainRecipe)


def write(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return str(file)


PRETRAINING = sorted(
    file.stem for file in folder_of(PretrainRecipe).glob("*.yaml") if not file.stem.startswith("distill_")
)


@pytest.mark.parametrize("name", PRETRAINING)
def test_shipped_recipes_are_valid(name):
    assert build_recipe(PretrainRecipe, name).optimization.steps > 0


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    file = write(
        tmp_path,
        "steps: 7\nlr: 1e-3\nmask_ratio: [0.2, 0.4]\nsize: null\nlr_warmup_steps: 0\n"
        "teacher_temperature_warmup_steps: 0\nfreeze_last_layer_steps: 0\n",
    )
    recipe = from_flags(
        "--config", file, "--steps", "9", "--resume", "--clip-grad-norm", "null", "--global-crop-scale", "0.1", "1"
    )
    assert recipe.optimization.steps == 9 and recipe.optimization.lr == 1e-3 and recipe.run.resume is True
    assert recipe.model.size is None and recipe.optimization.clip_grad_norm is None
    assert recipe.crops.mask_ratio == [0.2, 0.4] and recipe.crops.global_crop_scale == [0.1, 1.0]
    assert recipe.crops.local_crops == 8


def test_text_fields_keep_their_text():
    assert from_flags("--data", "10", "--split", "no").data.data == ["10"]
    assert from_flags("--data", "10", "--split", "no").data.split == "no"


def test_unknown_key_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"unknown field 'momentun'.*did you mean momentum\?"):
        build_recipe(PretrainRecipe, write(tmp_path, "momentun: 0.9\n"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("steps: many", "steps: got 'many', accepted: a whole number of at least 1"),
        ("steps: 1.5", "steps: got 1.5, accepted: a whole number of at least 1"),
        ("steps: true", "steps: got True, accepted: a whole number of at least 1"),
        ("streaming: 1", "streaming: got 1, accepted: true or false"),
        ("lr: fast", "lr: got 'fast', accepted: a number of at least 0"),
        ("lr_scaling: cubic", "lr_scaling: got 'cubic', accepted: none or sqrt_wrt_1024"),
        ("mask_ratio: 0.3", "mask_ratio: got 0.3, accepted: a list of numbers from 0 to 1"),
        ("mask_ratio: [0.5, 0.1]", "mask_ratio: got [0.5, 0.1], accepted: two shares"),
        ("drop_path_rate: 1.0", "drop_path_rate: got 1.0, accepted: a number from 0 to below 1"),
        ("batch_size: 0", "batch_size: got 0"),
        ("blur_kernel_size: 4", "blur_kernel_size: got 4, accepted: an odd number"),
        ("koleo_group_size: 16", "koleo_group_size: got 16, accepted: null unless koleo_distributed"),
        ("steps: 5", "lr_warmup_steps: got 12500, accepted: from 0 to steps (5)"),
        (
            "steps: 13000\nfreeze_last_layer_steps: 0",
            "teacher_temperature_warmup_steps: got 37500, accepted: from 0 to steps",
        ),
        ("data: []", "data: got [], accepted: at least one"),
        ("data: [scenes, 3]", "data: got ['scenes', 3], accepted: a list of texts"),
        (
            "data: [a, b]\ndata_weights: [1]",
            "data_weights: got [1.0], accepted: empty, or a number above 0 for each of the 2",
        ),
        ("data_homogeneous: [2]", "data_homogeneous: got [2], accepted: a list of numbers from 0 to 1"),
        ("data_homogeneous: [0.1]", "data_homogeneous: got [0.1], accepted: shares whose sum is 1 (here 0.1) if all"),
        ("data: [a, b]\ndata_homogeneous: [0.1]", "data_homogeneous: got [0.1], accepted: empty, or a share of the"),
        (
            "data: [a, b]\ndata_homogeneous: [1, 0]",
            "accepted: shares whose sum is below 1 if a source has the share 0",
        ),
        ("homogeneous_share: 0.1", "homogeneous_share"),
        ("crop_size_sets: [[64, 32]]", "crop_size_sets: got [64, 32], accepted: three sizes"),
        ("crop_size_sets: [a]", "crop_size_sets: got ['a'], accepted: a list of lists of whole numbers of at least 1"),
        (
            "crop_size_probabilities: [1]",
            "crop_size_probabilities: got [1.0], accepted: empty, or a share for each of the 0",
        ),
        (
            "gram_checkpoint: x",
            "gram_checkpoint: got 'x', accepted: a model folder or hub id with gram_teacher: checkpoint",
        ),
        ("gram_teacher: checkpoint", "gram_checkpoint: missing, accepted: a model folder"),
        ("gram_teacher: fixed", "gram_teacher: got 'fixed', accepted: none, checkpoint, ema_copy or ema"),
        ("gram_crop_size: 512", "gram_crop_size: got 512, accepted: null while gram_teacher is none"),
        ("gram_teacher: ema\ngram_crop_size: 512", "gram_crop_size: got 512, accepted: null with gram_teacher: ema"),
        ("gram_teacher: ema\ngram_update_every: 5", "gram_update_every: got 5, accepted: null with gram_teacher: ema"),
        (
            "gram_teacher: ema_copy\ngram_max_updates: 5",
            "gram_max_updates: got 5, accepted: null while gram_update_every",
        ),
        (
            "gram_teacher: ema_copy\ngram_crop_size: 112",
            "gram_crop_size: got 112, accepted: at least the size of the global crops (224)",
        ),
        (
            "gram_teacher: ema_copy\ngram_start_step: 9\ngram_update_every: 5",
            "gram_first_update: got 0, accepted: at least gram_start_step (9)",
        ),
        (
            "gram_teacher: ema\ngram_start_step: 125000",
            "gram_start_step: got 125000, accepted: a start and ramp that end",
        ),
        ("gram_teacher: ema\ngram_weight: -1", "gram_weight: got -1, accepted: a number of at least 0"),
        ("gram_teacher: ema_copy\ngram_crop_size: 256\ncrop_size_sets: [[64, 32, 64]]", "null with crop_size_sets"),
        (
            "gram_teacher: ema_copy\ncrop_size_sets: [[64, 32, 48]]",
            "crop_size_sets: got 48, accepted: at least the size of the global",
        ),
        ("milestone_every: 750", "milestone_every: got 750, accepted: null or a multiple of save_every (500)"),
        ("probe_every: 25", "probe_every: got 25, accepted: a multiple of log_every (10)"),
        ("head_warmup_steps: 125001", "head_warmup_steps: got 125001, accepted: from 0 to steps (125000)"),
        ("- steps", "holds a list, accepted: a YAML file, one `field: value` a line"),
    ],
)
def test_wrong_values_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(Refused) as error:
        build_recipe(PretrainRecipe, write(tmp_path, text + "\n"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_recipe_lists_the_known():
    with pytest.raises(Refused, match="no recipe 'huge'.*tiny_cpu"):
        build_recipe(PretrainRecipe, "huge")


def test_field_names_are_unique_over_groups():
    names = [item.name for group in groups_of(arguments.PretrainRecipe).values() for item in dataclasses.fields(group)]
    assert len(names) == len(set(names)) == len(fields_of(arguments.PretrainRecipe))


def test_every_field_is_read_somewhere():
    """A field that nothing reads is a promise the package breaks."""
    root = Path(arguments.__file__).parent
    read = set()
    for file in root.rglob("*.py"):
        if file.name in ("arguments.py", "gram_arguments.py", "source_arguments.py", "recipe.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    # The fields of the model's group go to `Dinov3Config`, which refuses a name it does not have.
    read |= {item.name for item in dataclasses.fields(arguments.ModelArguments)}
    assert not set(fields_of(arguments.PretrainRecipe)) - read


def test_one_source_needs_no_brackets():
    assert build_recipe(PretrainRecipe, data="folder").data.data == ["folder"]
    assert from_flags("--data", "a", "b", "--data-weights", "1", "2").data.data_weights == [1.0, 2.0]


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_recipe_is_valid_and_says_what_it_costs(name):
    recipe = build_recipe(PretrainRecipe, name)
    assert "Cost:" in (folder_of(PretrainRecipe) / f"{name}.yaml").read_text()
    for size, _, gram_size in recipe.crops.sizes(recipe.gram.gram_crop_size):
        assert size % (recipe.model.patch_size or 16) == 0 and (gram_size or 0) % (recipe.model.patch_size or 16) == 0
