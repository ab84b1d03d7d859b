"""The door is light: no torch for help, names and recipes. Whatever is imported first, the Auto classes know ours."""

import ast
import configparser
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

import dinov3_hf
from dinov3_hf._auto_classes import MAPPINGS, LazyEntries
from dinov3_hf.cli import VERBS


ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "transformers", "scipy", "sklearn", "datasets", "matplotlib", "accelerate", "gradio")
LAZY_PACKAGES = ("", ".checkpoints", ".data", ".pipelines")
FOLDERS = {"": "src/dinov3_hf", ".training": "training", ".text_alignment": "text_alignment"}
# Every file that holds fields of a recipe.
ARGUMENTS = sorted(
    ".".join(("dinov3_hf" + package, *file.relative_to(ROOT / folder).with_suffix("").parts))
    for package, folder in FOLDERS.items()
    for file in (ROOT / folder).rglob("*arguments.py")
)
ROOMS = ("checkpoints", "data", "evaluation", "finetuning", "models", "pipelines", "recipe", "spaces",
         "text_alignment", "training", "visualization")  # fmt: skip
# One process takes these steps, one after the other, and says after each what heavy library it brought.
STEPS = {
    "the package": "import dinov3_hf",
    "its names": "dir(dinov3_hf); dinov3_hf.__version__; dinov3_hf.tiny_checkpoint()",
    "its rooms, not imported before": f"assert [getattr(dinov3_hf, room).__package__ for room in {ROOMS}]",
    "what they share": "import dinov3_hf.errors, dinov3_hf.provenance, dinov3_hf.recipe",
    **{module: f"import {module}" for module in ARGUMENTS},
    "a recipe": "from dinov3_hf.recipe import build_recipe; from dinov3_hf.training.arguments import PretrainRecipe; "
    "build_recipe(PretrainRecipe, 'tiny_cpu')",
    "dinov3 --help": "call('--help')",
    **{f"dinov3 {verb} --help": f"call('{verb}', '--help')" for verb in VERBS},
    "dinov3 pretrain --nonsense 1": "call('pretrain', '--nonsense', '1')",
}
STEPPER = f"""
import contextlib, io, json, sys
def call(*argv):
    from dinov3_hf.cli import main
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main(list(argv))
        except SystemExit:
            pass
    lines = errors.getvalue().splitlines()
    assert len(lines) == ("--nonsense" in argv), lines
seen, found = set(), {{}}
for name, code in json.load(sys.stdin).items():
    exec(code)
    found[name] = [heavy for heavy in {HEAVY} if heavy in sys.modules and heavy not in seen]
    seen.update(found[name])
json.dump(found, sys.stdout)
"""


def run_python(*arguments: str, **options) -> subprocess.CompletedProcess:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def brought():
    result = run_python("-c", STEPPER, input=json.dumps(STEPS))
    assert not result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("step", STEPS)
def test_the_door_imports_nothing_heavy(step, brought):
    assert brought[step] == []


def test_the_door_can_be_found_heavy():
    """The test sees what it is there to forbid, and every file of fields."""
    assert len(ARGUMENTS) >= 7 and "dinov3_hf.training.gram_arguments" in ARGUMENTS
    found = json.loads(run_python("-c", STEPPER, input=json.dumps({"numbers": "import scipy"})).stdout)
    assert found == {"numbers": ["scipy"]}


def test_the_command_runs_as_a_module():
    result = run_python("-m", "dinov3_hf.cli", "--version")
    assert result.stdout.strip() == dinov3_hf.__version__ and not result.stderr


# What is imported before the checks: each may come first, and either may come while the other is half-way.
# Both orders of importing, in every run of the tests; each order takes a process that imports all of transformers.
QUICK_ORDERS = ("transformers' Auto classes first", "dinov3_hf first")
ORDERS = {
    "transformers' Auto classes first": (
        "from transformers import AutoModel, AutoProcessor, pipeline; import dinov3_hf"
    ),
    "transformers alone first": "import transformers; import dinov3_hf",
    # Its model files import the Auto classes before they are complete themselves, and our networks import those files.
    "dinov3_hf first": "import dinov3_hf, transformers.modeling_layers; from transformers import DINOv3ViTConfig",
    "both at once": """
from threading import Thread
names = ["transformers.models.auto.modeling_auto", "dinov3_hf", "transformers.pipelines", "dinov3_hf.pipelines.dense"]
threads = [Thread(target=__import__, args=(name,)) for name in names]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""",
    "loaded again": """
import importlib, sys, dinov3_hf
import transformers.models.auto.configuration_auto, transformers.models.auto.modeling_auto, transformers.pipelines
finders = len(sys.meta_path)
importlib.reload(sys.modules["transformers.models.auto.modeling_auto"])
importlib.reload(sys.modules["transformers.pipelines"])
importlib.reload(dinov3_hf)
assert len(sys.meta_path) == finders
""",
}
CHECKS = """
import pickle, sys
import dinov3_hf, transformers
from transformers.models.auto import modeling_auto
def named(thing):
    return (thing if isinstance(thing, type) else type(thing)).__name__
folder, text = sys.argv[1:]
config = transformers.AutoConfig.from_pretrained(folder)
assert named(config) == "Dinov3Config"
for name, expected in {
    "AutoModel": "Dinov3Model",
    "AutoBackbone": "Dinov3Backbone",
    "AutoModelForImageClassification": "Dinov3ForImageClassification",
}.items():
    assert named(getattr(modeling_auto, name).from_config(config)) == expected, name
assert named(modeling_auto.AutoModel.from_pretrained(folder)) == "Dinov3Model"
from transformers import AutoConfig, AutoModelForZeroShotImageClassification, pipeline
convnext = AutoConfig.for_model("dinov3_hf_convnext", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
assert named(modeling_auto.AutoModel.from_config(convnext)) == "Dinov3ConvNextModel"
assert named(AutoConfig.for_model("dinov3_hf_pyramid")) == "Dinov3PyramidConfig"
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
assert named(AutoImageProcessor.from_pretrained(folder)) == "Dinov3ImageProcessor"
assert named(AutoProcessor.from_pretrained(text)) == "DinoTxtProcessor"
assert named(AutoTokenizer.from_pretrained(text)) == "DinoTxtTokenizer"
assert named(AutoModelForZeroShotImageClassification.from_pretrained(text)) == "DinoTxtModel"
for task, expected in {
    "zero-shot-image-segmentation": "ZeroShotImageSegmentationPipeline",
    "zero-shot-image-classification": "ZeroShotImageClassificationPipeline",
}.items():
    assert named(pipeline(task, model=text, device="cpu")) == expected, task
for value in (config, dinov3_hf.Dinov3Model, modeling_auto.MODEL_MAPPING):
    assert type(pickle.loads(pickle.dumps(value))) is type(value)
# What transformers asks for by other names is none of ours.
assert named(AutoConfig.for_model("dinov3_vit")) == "DINOv3ViTConfig"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network with our image processor."""
    place = str(tmp_path_factory.mktemp("network"))
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    dinov3_hf.Dinov3Model(dinov3_hf.Dinov3Config(**sizes, patch_size=8, image_size=32)).save_pretrained(place)
    dinov3_hf.Dinov3ImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place)
    return place


@pytest.mark.parametrize(
    "order",
    [name if name in QUICK_ORDERS else pytest.param(name, marks=pytest.mark.slow) for name in ORDERS],
)
def test_auto_classes_know_ours_in_every_order(order, folder):
    run_python("-c", ORDERS[order] + CHECKS, folder, dinov3_hf.tiny_checkpoint("text"))


WORKER = """
import pickle, sys
from multiprocessing import get_context
import dinov3_hf

def heavy_after_reading(batches):
    next(iter(batches))
    return [name for name in ("torch", "torchvision", "transformers") if name in sys.modules]

def loaded_by_auto(config, folder):
    from transformers import AutoModel
    return type(AutoModel.from_pretrained(folder)) is dinov3_hf.Dinov3Model and type(config) is dinov3_hf.Dinov3Config

if __name__ == "__main__":
    from dinov3_hf.training.arguments import CropArguments, DataArguments
    from dinov3_hf.training.batches.collate import TrainingBatches
    from dinov3_hf.training.run import open_sources
    data, crops = DataArguments(num_images=8, shuffle_block=2), CropArguments(global_crop_size=32, local_crop_size=16)
    with get_context("spawn").Pool(1) as pool:
        batches = TrainingBatches(open_sources(data), data, crops, batch_size=2, seed=0, patch_size=8)
        assert pool.apply(heavy_after_reading, (batches,)) == ["torch"]
        assert pool.apply(loaded_by_auto, (dinov3_hf.Dinov3Config(), sys.argv[1]))
"""


def test_spawned_workers_start_light_and_know_ours(tmp_path, folder):
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    run_python(str(script), folder)


@pytest.mark.parametrize("package", LAZY_PACKAGES)
def test_every_name_resolves_and_is_listed(package):
    module = importlib.import_module(f"dinov3_hf{package}")
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec(f"from {module.__name__} import nonsense")


@pytest.mark.parametrize("package", LAZY_PACKAGES)
def test_type_checkers_see_the_names_that_are_lazy(package):
    file = Path(importlib.import_module(f"dinov3_hf{package}").__file__)
    (branch,) = (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.If))
    seen = {"." * node.level + node.module: {alias.name for alias in node.names} for node in branch.body}
    call = branch.orelse[0].value
    assert seen == {source: set(names) for source, names in ast.literal_eval(call.args[1]).items()}
    # A file of that name would hide it once it is imported.
    assert not {name for names in seen.values() for name in names} & {path.stem for path in file.parent.iterdir()}


def test_the_rooms_named_are_all_there_are():
    (branch,) = (node for node in ast.parse(Path(dinov3_hf.__file__).read_text()).body if isinstance(node, ast.If))
    (rooms,) = (ast.literal_eval(keyword.value) for keyword in branch.orelse[0].value.keywords)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    found = {package.split(".")[1] for package in config["options"]["packages"].split() if "." in package}
    assert set(rooms) == set(ROOMS) == found - {"commands"}


@pytest.mark.parametrize("module", MAPPINGS)
def test_names_in_the_mappings_are_those_of_classes(module):
    for mapping, own in MAPPINGS[module].items():
        entries = getattr(importlib.import_module(module), mapping)._extra_content
        assert isinstance(entries, LazyEntries)
        for key, value in entries.items():
            if entries.has_types:
                assert value.model_type == key
            assert key in entries and entries[key] == value
        assert len(entries) >= len(own)


def test_what_others_register_takes_our_place():
    ours = MAPPINGS["transformers.models.auto.modeling_auto"]["MODEL_MAPPING"]
    entries = LazyEntries({}, ours)
    key = dinov3_hf.Dinov3Config
    assert entries[key] is dinov3_hf.Dinov3Model and list(entries) == list(map(vars(dinov3_hf).get, ours))
    entries[key] = entries[AutoConfig] = int
    assert entries[key] is entries[AutoConfig] is int and len(entries) == len(ours) + 1
    del entries[key]
    assert entries[key] is dinov3_hf.Dinov3Model
    # As the Hub's remote code has it: another class of the same name.
    assert type("Dinov3Config", (key,), {"__module__": "transformers_modules.x"}) not in entries
    del entries[key]
    assert key not in entries and key.__name__ in ours
