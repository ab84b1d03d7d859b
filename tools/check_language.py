"""Keep the field's words and the types of signatures: counts what `make quality` does not allow, and fails above zero.

    python tools/check_language.py

Words: those that ARCHITECTURE would call dialect, each with the one to write instead. Types: every parameter and every
return of the package and its benchmarks has one.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "training", "text_alignment", "spaces", "benchmarks", "tests", "docs", "tools")
TEXTS = (".py", ".md", ".yaml", ".cfg", ".toml", ".txt", ".html", ".css", ".js")
ARTICLES = "a|an|the|its|their|each|every|no|of|these|those|all|other|both|same|another|which|several|two|three|four"
# A pattern, and what to write instead.
WORDS = {
    r"\bbesides?\b": "next to, alongside; in addition to",
    r"\bcontestants?\b": "model and baselines, encoder",
    r"\buntrained\b": "randomly initialised",
    r"\btwins?\b": "randomly initialised network",
    r"\bstock\b|\bstock_|_stock\b|\bstock's\b": "the transformers implementation",
    r"\b(left|leaves?|leaving)[ _]out\b": "skipped, omitted",
    r"(?<!negative )(?<!negative_)\bcontrols?\b(?! (tokens|characters))": "baseline",
    rf"\b({ARTICLES}) measures?\b|\bmeasures?\[|\.measures\b|\"measures?\"": "metric",
    r"\bfigures?\b(?! \d)": "metric, number",
    r"\bembedded\b": "bundled",
    r"\bwhole_weights\b|\bregroup\w*|\bhold_out\b|\ballocator\b": "a name that says what it is",
    r"\bnothing in particular\b": "background",
}
# Matplotlib's figures and HTML's.
FIGURES = ("src/dinov3_hf/visualization/", "spaces/layout.py")
# As names of variables; in tests, what was found stands next to what was expected.
NAMES = {"found": "what it is"}
WHOLE_PAGE = Path("tools/check_language.py")


def files() -> list[Path]:
    """Return the project's files of text."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    paths = [path.relative_to(ROOT) for path in paths if path.suffix in TEXTS and path.is_file()]
    return sorted(path for path in paths if path != WHOLE_PAGE and "__pycache__" not in path.parts)


def old_words(path: Path, text: str) -> Iterator[str]:
    """Yield where a text has a word that has a better one."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, better in WORDS.items():
            if "figure" in pattern and str(path).startswith(FIGURES):
                continue
            for word in re.finditer(pattern, line, re.IGNORECASE):
                yield f"{path}:{number}: {word[0]!r}, write: {better}"


def old_names(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield where a variable has a name that says nothing."""
    for node in ast.walk(tree):
        stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        name = node.id if stored else node.arg if isinstance(node, ast.arg) else None
        if name in NAMES:
            yield f"{path}:{node.lineno}: variable {name!r}, write: {NAMES[name]}"


def untyped(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield every parameter and every return without a type."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = function.args
        parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        for parameter in filter(None, parameters):
            if parameter.annotation is None and parameter.arg not in ("self", "cls"):
                yield f"{path}:{parameter.lineno}: {function.name}({parameter.arg}) has no type"
        if function.returns is None and function.name != "__init__":
            yield f"{path}:{function.lineno}: {function.name} has no type of what it returns"


def main() -> int:
    """Print every finding and the counts; return 1 if there is one."""
    words: list[str] = []
    types: list[str] = []
    paths = files()
    for path in paths:
        text = (ROOT / path).read_text()
        words += old_words(path, text)
        if path.suffix == ".py" and path.parts[0] != "tests":
            tree = ast.parse(text)
            words += old_names(path, tree)
            types += untyped(path, tree)
    print(*words, *types, sep="\n", end="\n" if words or types else "")
    print(f"{len(paths)} files; old words: {len(words)}, untyped parameters and returns: {len(types)}")
    return 1 if words or types else 0


if __name__ == "__main__":
    sys.exit(main())
