"""The house: rooms import downwards, no file imports in a circle, nothing asks an objective what it is."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDERS = {
    "dinov3_hf": ROOT / "src" / "dinov3_hf",
    "dinov3_hf.spaces": ROOT / "spaces",
    "dinov3_hf.text_alignment": ROOT / "text_alignment",
    "dinov3_hf.training": ROOT / "training",
}
# From the ground up. A room may import those on lower floors, and no others.
FLOORS = (
    ("_lazy", "_version", "errors", "terminal"),
    ("launch", "recipe"),
    ("provenance",),
    ("models",),
    ("data",),
    ("checkpoints", "visualization"),
    ("pipelines",),
    ("evaluation",),
    ("finetuning", "spaces", "training"),
    ("text_alignment",),
    ("__init__", "_auto_classes", "cli", "commands"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# The door may import every room.
DOOR = ("__init__", "_auto_classes", "cli", "commands")


def modules() -> dict[str, Path]:
    """Return every module of the package, by its name once installed."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = file
    return found


MODULES = modules()


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(module: str) -> set[str]:
    """Return the package's modules that a module imports, inside functions too."""
    file, found = MODULES[module], set()
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found |= {inner} if inner in MODULES else {source} & set(MODULES)
    return found - {module}


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES} <= set(FLOOR)


@pytest.mark.parametrize("module", sorted(module for module in MODULES if room_of(module) not in DOOR))
def test_arrows_run_down(module):
    room = room_of(module)
    for other in imported(module):
        below = FLOOR[room_of(other)] < FLOOR[room]
        assert below or room_of(other) == room, f"{module} imports {other}, which is not below it"


def test_the_law_can_be_broken():
    """The rule sees what it is there to forbid."""
    assert FLOOR["evaluation"] < FLOOR["training"] < FLOOR["text_alignment"] < FLOOR["commands"]
    assert "dinov3_hf.training.objective" in imported("dinov3_hf.text_alignment.alignment")
    assert "dinov3_hf.checkpoints" in imported("dinov3_hf.training.initialization")
    # Inside a function.
    assert "dinov3_hf.training.pretrain" in imported("dinov3_hf.commands.pretrain")


def test_no_circles():
    arrows = {module: imported(module) for module in MODULES}
    # A package that gathers its files is no circle with them: what counts is who a file asks for a name.
    arrows = {
        module: {other for other in others if not module.startswith(f"{other}.")} for module, others in arrows.items()
    }
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != "open", f"a circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in state:
            state[module] = "open"
            for other in sorted(arrows[module]):
                visit(other, (*path, module))
            state[module] = "closed"

    for module in sorted(arrows):
        visit(module, ())


@pytest.mark.parametrize("file", sorted((ROOT / "training").rglob("*.py")), ids=lambda file: file.name)
def test_objectives_are_not_asked_what_they_are(file):
    """Law 4: what the loop may call is in training/objective.py; it neither asks with getattr nor sets attributes."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            assert getattr(node.args[0], "id", "") != "objective", f"{file.name}:{node.lineno}"
        targets = node.targets if isinstance(node, ast.Assign) else ()
        for target in targets:
            assert getattr(getattr(target, "value", None), "id", "") != "objective", f"{file.name}:{node.lineno}"


def test_the_engine_alone_sets_processes_up():
    """Law 5: in training only the engine knows Accelerate and creates process groups."""
    forbidden = {
        "accelerate",
        "torch.distributed.fsdp",
        "torch.distributed.device_mesh",
        "torch.distributed.checkpoint",
    }
    for file in (ROOT / "training").rglob("*.py"):
        if file.parent.name == "engine":
            continue
        text = file.read_text()
        for node in ast.walk(ast.parse(text)):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not forbidden & set(names), f"{file.name}:{node.lineno} imports {names}"
        assert "new_group" not in text and "new_subgroups" not in text, file.name


def test_mains_do_not_import_each_other():
    mains = {"dinov3_hf.training.pretrain", "dinov3_hf.training.distill", "dinov3_hf.text_alignment.align"}
    for main in mains:
        assert not imported(main) & mains
        assert len(MODULES[main].read_text().splitlines()) < 200
