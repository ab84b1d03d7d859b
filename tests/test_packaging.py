"""setup.cfg lists what the tree holds, and importing the package imports no heavy library."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
ROOMS = {
    "dinov3_hf": ROOT / "src" / "dinov3_hf",
    "dinov3_hf.spaces": ROOT / "spaces",
    "dinov3_hf.text_alignment": ROOT / "text_alignment",
    "dinov3_hf.training": ROOT / "training",
}
MODELS = ROOMS["dinov3_hf"] / "models"
LIGHT = {"torch", "torchvision", "transformers", "safetensors", "numpy", "PIL", "huggingface_hub"}
# Only tokenisers import these; ftfy, if installed, cleans texts as CLIP does.
TOKENIZERS = {"tokenizers", "ftfy"}


def setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def packages_in_tree():
    for name, folder in ROOMS.items():
        for file in folder.rglob("*.py"):
            inside = file.parent.relative_to(folder).parts
            yield ".".join((name, *inside))


def test_every_package_is_listed():
    listed = set(setup_cfg()["options"]["packages"].split())
    assert listed == set(packages_in_tree())


def test_every_package_has_an_init_file():
    for name, folder in ROOMS.items():
        for file in folder.rglob("*.py"):
            # A Space's own folder is pushed to the Hub as it is.
            is_space = name == "dinov3_hf.spaces" and file.parent != folder
            assert (file.parent / "__init__.py").exists() != is_space, f"{name}: {file.parent}"


def test_every_data_folder_is_listed():
    listed = setup_cfg()["options.package_data"]
    for name, folder in ROOMS.items():
        for file in folder.rglob("*"):
            if file.is_file() and file.suffix not in {".py", ".pyc"}:
                patterns = listed[name].split()
                assert any(file.relative_to(folder).match(pattern) for pattern in patterns), f"{file} is not listed"


def test_the_package_marks_itself_as_typed():
    """One marker (PEP 561) in the top package counts for its sub-packages, wherever their folders are."""
    assert (ROOMS["dinov3_hf"] / "py.typed").read_bytes() == b""
    assert "py.typed" in setup_cfg()["options.package_data"]["dinov3_hf"].split()


def test_what_the_library_names_stays_light():
    """What transformers' own DINOv3 imports is given (it takes accelerate if that is installed); no more than that."""
    heavy = ["datasets", "accelerate", "gradio", "matplotlib", "sklearn", "peft", "timm", "torchdata"]
    code = (
        "import sys, torchvision; from transformers import AutoBackbone, AutoImageProcessor, AutoModel, "
        "DINOv3ViTImageProcessor, DINOv3ViTModel; before = set(sys.modules); from dinov3_hf import *; "
        f"print([name for name in {heavy} if name in sys.modules and name not in before])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("file", sorted(ROOMS["dinov3_hf.spaces"].rglob("*.py")), ids=lambda file: file.parent.name)
def test_spaces_are_layout_only(file):
    assert file.name != "app.py" or len(file.read_text().splitlines()) < 150


@pytest.mark.parametrize("file", sorted(MODELS.glob("*_dino*.py")), ids=lambda file: file.name)
def test_modelling_files_are_flat(file):
    """The Hub's remote code ships these files side by side, without the package around them."""
    for name in imports(ast.parse(file.read_text())):
        local = name.startswith(".")
        assert not name.startswith("..") and not name.startswith("dinov3_hf"), f"{file.name} imports {name}"
        assert not local or "_dino" in name, f"{file.name} imports {name}"
        assert local or name.split(".")[0] in LIGHT | TOKENIZERS | set(sys.stdlib_module_names), (
            f"{file.name} imports {name}"
        )


@pytest.mark.parametrize("room", ["training", "text_alignment"])
def test_rooms_refuse_to_be_top_level_packages(room):
    result = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0 and f"dinov3_hf.{room}" in result.stderr


def test_nothing_longer_than_a_screen_of_pages():
    long = {
        str(file): count
        for file in ROOT.glob("**/*.py")
        if ".venv" not in file.parts
        and "tests" not in file.parts
        and (count := len(file.read_text().splitlines())) > 400
    }
    assert not long, f"over 400 lines, split along a concept: {long}"
