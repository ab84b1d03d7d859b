"""Wrong calls of every verb, and the files they name; most calls are made from the fields' own metadata."""

import importlib
import json
import os
import re
import shutil
import typing
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from dinov3_hf import tiny_checkpoint
from dinov3_hf.recipe import fields_of, hints_of
from dinov3_hf.recipe.fields import bounds_of, choices_of, takes_text


VISION, TEXT = tiny_checkpoint(), tiny_checkpoint("text")
RECIPES = {
    "pretrain": "dinov3_hf.training.arguments.PretrainRecipe",
    "distill": "dinov3_hf.training.distill_arguments.DistillRecipe",
    "align": "dinov3_hf.text_alignment.arguments.AlignRecipe",
    "finetune": "dinov3_hf.finetuning.arguments.FinetuneRecipe",
    "evaluate": "dinov3_hf.evaluation.tasks.EvaluateRecipe",
    "quickstart": "dinov3_hf.commands.quickstart.QuickstartRecipe",
    "export": "dinov3_hf.commands.export.ExportRecipe",
    "compare": "dinov3_hf.commands.compare.CompareRecipe",
    "inspect": "dinov3_hf.commands.inspect.InspectRecipe",
    "demo": "dinov3_hf.commands.demo.DemoRecipe",
}
# What a call that is right but for one thing holds, so that it is refused for that thing.
RIGHT = {
    "pretrain": ["--config", "tiny_cpu"],
    "distill": ["--config", "distill_tiny_cpu"],
    "align": ["--config", "tiny_cpu"],
    "finetune": [VISION, "--num-train", "8", "--num-test", "4"],
    "evaluate": [VISION, "--task", "knn"],
    "quickstart": ["--text-steps", "0"],
    "export": [VISION, "--output-dir", "out"],
    "compare": ["right"],
    "inspect": ["images"],
    "demo": ["dense_features", "--no-browser"],
}
LONG = "n" * 300


def recipe_of(verb: str) -> type:
    module, _, name = RECIPES[verb].rpartition(".")
    return getattr(importlib.import_module(module), name)


def numbers_in(hint) -> set:
    """Return the types of numbers that a field takes, in lists too."""
    found = {part for part in (hint, *typing.get_args(hint)) if part in (int, float)}
    return found.union(*(numbers_in(part) for part in typing.get_args(hint)), set())


def is_optional(hint) -> bool:
    return type(None) in typing.get_args(hint)


def beyond(bounds) -> list[str]:
    """Return numbers just outside of a range."""
    found = []
    if bounds.at_least is not None:
        found.append(str(bounds.at_least - 1))
    if bounds.above is not None:
        found += [str(bounds.above), str(bounds.above - 1)]
    if bounds.at_most is not None:
        found.append(str(bounds.at_most + 1))
    if bounds.below is not None:
        found += [str(bounds.below), str(bounds.below + 1)]
    return found


def generated() -> list[tuple[str, list[str], str]]:
    """Return a wrong call of every kind for every field: the verb, its flags, and what its line holds."""
    calls = []
    for verb in RECIPES:
        known, hints = fields_of(recipe_of(verb)), hints_of(recipe_of(verb))
        for name, item in known.items():
            flag, hint = "--" + name.replace("_", "-"), hints[name]
            is_nested = "list[list" in str(hint)
            wrong = ["", "  "]
            if numbers_in(hint):
                wrong += [".nan", ".inf", "-.inf", "nan", "many", "1e999", "1:30", "٣", *beyond(bounds_of(item))]
            if numbers_in(hint) == {int}:
                wrong += ["1.5", str(2**70)]
            if hint is bool:
                wrong += ["yes", "1", "maybe"]
            if choices_of(hint) and not takes_text(hint):
                wrong += ["nothing_of_this_name", "1"]
            if takes_text(hint):
                wrong += ["a\nb", "\udcff"]
            if not str(hint).startswith("list") and not takes_text(hint):
                wrong += ["[1, 2]", "{a: b}"]
            if not is_optional(hint):
                wrong += ["null"]
            calls += [(verb, [f"{flag}={f'[[{value}]]' if is_nested else value}"], name) for value in wrong]
        calls += [(verb, [f"--{name[:-1]}x", "1"], "unknown flag") for name in known if len(name) > 4]
    return calls


# Files that are wrong, by the name under which the calls below find them.
def make_files(folder: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    (folder / "images").mkdir()
    for index in range(4):
        pixels = torch.randint(0, 256, (48, 48, 3), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "images" / f"{index}.png")
    (folder / "text.txt").write_text("words\n")
    (folder / "empty").mkdir()
    (folder / "no_images").mkdir()
    (folder / "no_images" / "notes.txt").write_text("words\n")
    shutil.copyfile(folder / "images" / "0.png", folder / "picture.safetensors")
    shutil.copyfile(folder / "images" / "0.png", folder / "picture.pth")
    (folder / "words.pth").write_text("no weights\n")
    (folder / "nothing.safetensors").write_bytes(b"")
    (folder / "nothing.pth").write_bytes(b"")
    torch.save({"function": os.path.join}, folder / "code.pth")
    torch.save([1, 2], folder / "list.pth")
    save_file({"other.weight": torch.zeros(2)}, folder / "other.safetensors")
    (folder / "broken.parquet").write_bytes(b"PAR1 no more")
    (folder / "broken.tar").write_bytes(b"no tar")
    (folder / "dangling").symlink_to(folder / "nowhere")
    make_models(folder)
    make_configs(folder)
    right = {"task": "knn", "metrics": [], "protocol": {}}
    for name, content in {
        "right": {"results": [right], "model": {}, "settings": {}},
        "list": [],
        "number": 3,
        "others": {"results": "none"},
    }.items():
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(json.dumps(content))
    (folder / "cut").mkdir()
    (folder / "cut" / "results.json").write_text('{"results": [')


def make_models(folder: Path) -> None:
    """Write models that are broken each in one way, of the tiny one's files."""
    source, text = Path(VISION), Path(TEXT)
    config = json.loads((source / "config.json").read_text())
    weights = (source / "model.safetensors").read_bytes()
    changes = {
        "list_config": {"config.json": b"[]"},
        "no_json": {"config.json": b"{"},
        "binary_config": {"config.json": b"\xff\xfe\x00"},
        "no_type": {"config.json": json.dumps({k: v for k, v in config.items() if k != "model_type"}).encode()},
        "bert": {"config.json": b'{"model_type": "bert"}'},
        "null_type": {"config.json": b'{"model_type": null}'},
        "typed_wrong": {"config.json": json.dumps(config | {"hidden_size": "wide"}).encode()},
        "misfit": {"config.json": json.dumps(config | {"hidden_size": 192}).encode()},
        "deeper": {"config.json": json.dumps(config | {"num_hidden_layers": 9}).encode()},
        "cut_weights": {"model.safetensors": weights[: len(weights) // 2]},
        "empty_weights": {"model.safetensors": b""},
        "png_weights": {"model.safetensors": (folder / "images" / "0.png").read_bytes()},
        "no_weights": {"model.safetensors": None},
        "cut_processor": {"preprocessor_config.json": b'{"image_mean": [0.1'},
        "list_processor": {"preprocessor_config.json": b"[1]"},
        "text_mean": {
            "preprocessor_config.json": b'{"image_processor_type": "DINOv3ViTImageProcessor", "image_mean": "no"}'
        },
        "zero_std": {
            "preprocessor_config.json": b'{"image_processor_type": "DINOv3ViTImageProcessor", "image_std": [0, 0, 0]}'
        },
    }
    for name, files in changes.items():
        shutil.copytree(source, folder / name)
        for file, content in files.items():
            (folder / name / file).unlink(missing_ok=True)
            if content is not None:
                (folder / name / file).write_bytes(content)
    shutil.copytree(text, folder / "cut_text")
    file = folder / "cut_text" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


CONFIGS = {
    "twice.yaml": b"seed: 1\nseed: 2\n",
    "tag.yaml": b"seed: !!python/object/apply:os.getpid []\n",
    "set.yaml": b"seed: !!set {1}\n",
    "syntax.yaml": b"seed: [1\n",
    "tab.yaml": b"seed:\n\t- 1\n",
    "bomb.yaml": b"a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "latin.yaml": "data: caf\u00e9\n".encode("latin-1"),
    "nul.yaml": b"data: a\0b\n",
    "list.yaml": b"- seed\n",
    "scalar.yaml": b"seed\n",
    "two.yaml": b"seed: 1\n---\nseed: 2\n",
    "number_key.yaml": b"1: 2\n",
    "list_key.yaml": b"[a]: 2\n",
    "deep.yaml": b"seed: " + b"[" * 5000 + b"\n",
    "unknown.yaml": b"sede: 1\n",
    "binary.yaml": bytes(range(256)),
    "digits.yaml": b"seed: " + b"9" * 5000 + b"\n",
    "yes.yaml": b"overwrite: yes\n",
    "null_dir.yaml": b"output_dir:\n",
    "quoted.yaml": b"output_dir: ''\n",
}
MISSING_CONFIGS = (
    "nowhere.yaml",
    "nowhere",
    "empty",
    "text.txt/below.yaml",
    f"{LONG}.yaml",
    "dangling",
    "/proc/self/mem",
)


def make_configs(folder: Path) -> None:
    for name, content in CONFIGS.items():
        (folder / name).write_bytes(content)
    (folder / "large.yaml").write_bytes(b"# words\n" * 200_000)


def of_configs() -> list[tuple[str, list[str], str]]:
    known = {verb: fields_of(recipe_of(verb)) for verb in RECIPES}
    calls = []
    for verb in RECIPES:
        for name, content in CONFIGS.items():
            field = re.match(rb"\w+", content)
            is_value = name in ("yes.yaml", "null_dir.yaml", "quoted.yaml")
            if name == "null_dir.yaml" and is_optional(hints_of(recipe_of(verb)).get("output_dir", str)):
                continue
            # A field that this verb does not have is refused too, as an unknown one.
            expected = field[0].decode() if is_value and field[0].decode() in known[verb] else "config"
            calls.append((verb, ["--config", name], expected))
        calls += [(verb, ["--config", name], "config") for name in (*MISSING_CONFIGS, "large.yaml", "", " ")]
    return calls


MODELS = (
    *("list_config", "no_json", "binary_config", "no_type", "bert", "null_type", "typed_wrong", "misfit", "deeper"),
    *("cut_weights", "empty_weights", "png_weights", "no_weights", "empty", "nowhere/at/all", "./nowhere", "text.txt"),
    *("picture.safetensors", "picture.pth", "words.pth", "nothing.safetensors", "nothing.pth", "code.pth", "list.pth"),
    *("other.safetensors", "dangling", "nobody/nothing", LONG, f"./{LONG}"),
)
PROCESSORS = ("cut_processor", "list_processor", "text_mean", "zero_std")
# Where a verb takes a model: what stands before it and behind.
TAKES_MODEL = {
    "pretrain": (
        ["--config", "tiny_cpu", "--hidden-size", "null", "--num-hidden-layers", "null", "--init-from"],
        "init_from",
    ),
    "distill": (["--config", "distill_tiny_cpu", "--teacher"], "teacher"),
    "align": (["--config", "tiny_cpu", "--backbone"], "backbone"),
    "finetune": (["--num-train", "8", "--num-test", "4", "--model"], "model"),
    "evaluate": (["--task", "knn", "--num-train", "20", "--num-test", "10", "--output-dir", "out"], "model"),
    "export": (["--output-dir", "out", "--model"], "model"),
    "demo": (["dense_features", "--no-browser", "--model"], "model"),
}


def of_models() -> list[tuple[str, list[str], str]]:
    calls = []
    for verb, (flags, field) in TAKES_MODEL.items():
        calls += [(verb, [*flags, name], field) for name in MODELS]
        # A training of one's own has its own statistics.
        if verb not in ("pretrain", "distill"):
            calls += [(verb, [*flags, name], field) for name in PROCESSORS]
    flags = ["--config", "tiny_cpu", "--gram-teacher", "checkpoint", "--gram-checkpoint"]
    calls += [("pretrain", [*flags, name], "gram_checkpoint") for name in MODELS]
    calls += [
        ("distill", [*RIGHT["distill"], "--students", name], "students")
        for name in (
            "vits99",
            "vits16:depth=2",
            "vits16:hidden_size=no",
            "no_json",
            "list_config",
            "cut_weights",
            "typed_wrong",
            "a=vits16:hidden_size=100",
            "vits16:{",
        )
    ]
    calls += [("demo", ["open_vocabulary_segmentation", "--model", name], "model") for name in ("cut_text", VISION)]
    return calls


OUTPUTS = (
    "text.txt",
    "text.txt/below",
    LONG,
    f"new/{LONG}",
    "dangling",
    "dangling/below",
    "/proc/nothing",
    "n/" * 2500,
)


def of_outputs() -> list[tuple[str, list[str], str]]:
    verbs = [verb for verb in RECIPES if verb != "demo"]
    calls = [(verb, [*RIGHT[verb], "--output-dir", name], "output_dir") for verb in verbs for name in OUTPUTS]
    return calls + [("align", [*RIGHT["align"], "--cache-features", name], "cache_features") for name in OUTPUTS]


DATA = (
    "nowhere/at/all",
    "no_images",
    "empty",
    "text.txt",
    "broken.parquet",
    "missing-*.parquet",
    "scenes:busy",
    "nobody/nothing",
    "images/0.png",
    LONG,
    "scenes:",
)


def of_data() -> list[tuple[str, list[str], str]]:
    calls = []
    for verb in ("pretrain", "distill", "align", "finetune", "evaluate"):
        calls += [(verb, [*RIGHT[verb], "--data", name], "") for name in DATA]
        calls += [(verb, [*RIGHT[verb], "--data", "images", "--image-column", "picture"], "image_column")]
    calls += [("inspect", ["--data", name], "") for name in DATA]
    calls += [("pretrain", [*RIGHT["pretrain"], "--data", "images", "--split", "dev"], "") for _ in range(0)]
    calls += [("align", [*RIGHT["align"], "--data", "images"], "caption_columns")]
    calls += [
        ("demo", ["image_search", "--no-browser", "--data", name], "") for name in ("nowhere/at/all", "no_images")
    ]
    return calls


# Contradictions, things that are missing, and whatever only one verb has.
SINGLE = [
    ("pretrain", ["--steps", "5"], "lr_warmup_steps"),
    ("pretrain", ["--config", "tiny_cpu", "--resume", "--overwrite"], "resume"),
    ("pretrain", ["--config", "tiny_cpu", "--lora-rank", "4"], "lora_rank"),
    ("pretrain", ["--config", "tiny_cpu", "--hidden-size", "97"], "hidden_size"),
    ("pretrain", ["--config", "tiny_cpu", "--global-crop-size", "50"], "global_crop_size"),
    ("pretrain", ["--config", "tiny_cpu", "--koleo-group-size", "4"], "koleo_group_size"),
    ("pretrain", ["--config", "tiny_cpu", "--mask-ratio", "0.5", "0.1"], "mask_ratio"),
    ("pretrain", ["--config", "tiny_cpu", "--mask-ratio", "0.5"], "mask_ratio"),
    ("pretrain", ["--config", "tiny_cpu", "--mask-ratio", "[[0.1, 0.5]]"], "mask_ratio"),
    ("pretrain", ["--config", "tiny_cpu", "--color-jitter", "0.1", "0.1", "0.1", "0.9"], "color_jitter"),
    ("pretrain", ["--config", "tiny_cpu", "--data", "[]"], "data"),
    ("pretrain", ["--config", "tiny_cpu", "--data", "scenes", "", "--data-weights", "1", "1"], "data"),
    ("pretrain", ["--config", "tiny_cpu", "--gram-teacher", "ema", "--gram-start-step", "600"], "gram_start_step"),
    ("pretrain", ["--config", "tiny_cpu", "--processes", "2"], "processes"),
    ("pretrain", ["--config", "tiny_cpu", "--plan", "--processes", "0"], "processes"),
    ("pretrain", ["--config", "tiny_cpu", "--plan", "--processes", "two"], "processes"),
    ("pretrain", ["--config", "tiny_cpu", "--plan", "--device-memory", ".inf"], "device_memory"),
    ("pretrain", ["--config", "tiny_cpu", "--plan", "--device-memory", "nan"], "device_memory"),
    ("pretrain", ["--config", "tiny_cpu", "--steps"], "--steps"),
    ("pretrain", ["--config", "tiny_cpu", "something"], "something"),
    ("pretrain", ["--config", "tiny_cpu", "--no\nsense"], "unknown flag"),
    ("pretrain", ["--config", "tiny_cpu", "--probe-data", "no_images"], ""),
    (
        "pretrain",
        ["--config", "tiny_cpu", "--data", "images", "--probe-data", "images", "--probe-images", "20"],
        "probe",
    ),
    ("distill", ["--config", "distill_tiny_cpu", "--group-sizes", "1"], "group_sizes"),
    ("distill", ["--config", "distill_tiny_cpu", "--students", "vits16", "vits16"], "students"),
    ("distill", ["--config", "distill_tiny_cpu", "--mode", "full", "--teacher", VISION], "mode"),
    ("distill", ["--config", "distill_tiny_cpu", "--processes", "2"], "processes"),
    ("distill", ["--config", "distill_tiny_cpu", "--plan", "--processes", "-1"], "processes"),
    ("align", ["--config", "tiny_cpu", "--projection-dim", "33"], "projection_dim"),
    ("align", ["--config", "tiny_cpu", "--text-hidden-size", "97"], "text_hidden_size"),
    ("align", ["--config", "tiny_cpu", "--image-size", "50"], "image_size"),
    ("align", ["--config", "tiny_cpu", "--train-tokenizer", "false", "--tokenizer", "nowhere"], "tokenizer"),
    ("align", ["--config", "tiny_cpu", "--train-tokenizer", "false", "--tokenizer", "empty"], "tokenizer"),
    ("align", ["--config", "tiny_cpu", "--train-tokenizer", "false", "--tokenizer", "text.txt"], "tokenizer"),
    ("align", ["--config", "tiny_cpu", "--caption-columns", "words"], "caption_columns"),
    ("finetune", [], "model"),
    ("finetune", [VISION, "--model", VISION], "model"),
    ("finetune", [VISION, "--method", "full", "--train-tokens"], "train_tokens"),
    ("finetune", [VISION, "--head", "dpt"], "head"),
    (
        "finetune",
        [VISION, "--num-train", "8", "--num-test", "4", "--task", "segmentation", "--head", "upernett"],
        "head",
    ),
    ("finetune", [VISION, "--test-split", "train"], "test_split"),
    ("finetune", [VISION, "--num-train", "8", "--num-test", "4", "--target-modules", "nothing"], "target_modules"),
    ("finetune", [VISION, "--num-train", "8", "--num-test", "4", "--target-modules", "("], "target_modules"),
    ("finetune", [VISION, "--num-train", "8", "--num-test", "4", "--label-column", "kind"], "label_column"),
    ("finetune", [VISION, "--num-train", "8", "--num-test", "4", "--image-size", "50"], "image_size"),
    ("finetune", [VISION, "--export", "everything"], "export"),
    ("quickstart", ["--recipe", "nowhere"], "config"),
    ("quickstart", ["--recipe", "syntax.yaml"], "config"),
    ("quickstart", ["--resume", "--overwrite"], "resume"),
    ("quickstart", ["--steps", "7", "--seed", "-1"], "seed"),
    ("export", [], "model"),
    ("export", [VISION], "output_dir"),
    ("export", [VISION, "--output-dir", "images"], "output_dir"),
    ("export", ["./bert", "--output-dir", "bert", "--overwrite"], "output_dir"),
    ("export", [VISION, "--layout", "onx", "--output-dir", "out"], "layout"),
    ("export", [TEXT, "--output-dir", "out"], "model"),
    ("compare", [], "results"),
    ("compare", ["nowhere"], "results"),
    ("compare", ["empty"], "results"),
    ("compare", ["list"], "results"),
    ("compare", ["number"], "results"),
    ("compare", ["others"], "results"),
    ("compare", ["cut"], "results"),
    ("compare", ["images/0.png"], "results"),
    ("compare", ["bert/config.json"], "results"),
    ("compare", ["right", "right", "--names", "a"], "names"),
    ("compare", ["right", "list", "--names", "a", "a"], "names"),
    ("compare", ["right", "right"], "results"),
    ("inspect", [], "data"),
    ("inspect", ["images", "--data", "images"], "data"),
    ("inspect", ["images", "--label-column", "kind"], "label_column"),
    ("inspect", ["images", "--image-column", "kind"], "image_column"),
    ("inspect", ["scenes", "--split", "dev"], "split"),
    ("demo", ["dense_feature"], "name"),
    ("demo", ["dense_features", "--data", "images"], "data"),
    ("demo", ["dense_features", "--host", "no.such.host.invalid"], "host"),
    ("demo", ["dense_features", "--host", "203.0.113.7"], "host"),
    ("demo", ["dense_features", "--host", "ü" * 80], "host"),
    ("demo", ["dense_features", "--host", "203.0.113.7", "--port", "7861"], "port"),
    ("demo", ["dense_features", "--port", "65536"], "port"),
    ("demo", ["dense_features", "--model", "./nowhere"], "model"),
]
