"""The command `dinov3 <verb>`: one module of `dinov3_hf.commands` a verb."""

import argparse
import difflib
import errno
import importlib
import logging
import os
import signal
import sys

from ._version import __version__
from .errors import Failed, Refused


VERBS = {
    "quickstart": "train a tiny ViT on rendered scenes, teach it words, measure and report, in minutes on a CPU",
    "pretrain": "train a DINOv3 on your images",
    "distill": "train small students from one fixed teacher",
    "align": "train a text tower beside a frozen backbone, for zero-shot use",
    "evaluate": "measure a checkpoint: frozen features beside their controls, zero-shot tasks beside chance",
    "finetune": "adapt a checkpoint to your labels: head alone, LoRA, DoRA or all of it",
    "export": "write a checkpoint in another layout: transformers, Meta, timm or ONNX",
    "compare": "lay the figures of several evaluations side by side",
    "demo": "look at a model in the browser: its features, words, matches, tracks, search",
}


# Modules of extras: a verb that misses one says which extra brings it.
EXTRAS = {
    "accelerate": "train",
    "av": "spaces",
    "datasets": "train",
    "gradio": "spaces",
    "matplotlib": "eval",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "open_clip": "text",
    "peft": "finetune",
    "scipy": "eval",
    "sklearn": "eval",
    "torchao": "fp8",
    "torchdata": "train",
    "tqdm": "train",
    "yaml": "train",
}
# A full, broken or locked disk: no bug of ours.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the list of every flag."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def one_line(message) -> str:
    """Return a message as one line that any terminal can show."""
    return " ".join(str(message).split()).encode("utf-8", "backslashreplace").decode()


def build_parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {verb:<12}{text}" for verb, text in VERBS.items())
    parser = OneLineParser(
        prog="dinov3",
        usage="dinov3 <verb> [flags]",
        description=f"Train DINOv3 on your own images with the Hugging Face stack.\n\nverbs:\n{listing}",
        epilog="dinov3 <verb> --help lists the flags of a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code: 0 done, 2 refused, 3 failed, 128 + n stopped by signal n.

    Whatever else is raised is a bug of ours: it passes through, and Python prints its traceback and exits 1.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # With torchao installed, torch warns of its classes at every import.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    parser = build_parser()
    if not argv or argv[0].startswith("-"):
        parser.parse_args(argv)
        parser.print_help()
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        parser.error(f"verb: got {verb!r}, accepted: {', '.join(VERBS)}{hint}")
    prog = f"dinov3 {verb}"
    verb_parser = OneLineParser(prog=prog, usage=f"{prog} [flags]", description=VERBS[verb], allow_abbrev=False)
    command = importlib.import_module(f"dinov3_hf.commands.{verb}")
    command.add_arguments(verb_parser)
    arguments, unknown = verb_parser.parse_known_args(rest)
    if unknown:
        flags = [option for action in verb_parser._actions for option in action.option_strings]
        close = difflib.get_close_matches(unknown[0], flags, n=1)
        what = "unknown flag" if unknown[0].startswith("-") else "unknown argument"
        verb_parser.error(f"{what} {unknown[0]}" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        return command.run(arguments) or 0
    except (Refused, Failed, OSError, ModuleNotFoundError) as error:
        # DINOV3_TRACEBACK=1 shows where a refusal came from; users need the sentence, developers the place.
        code, message = ending(error)
        if code is None or os.environ.get("DINOV3_TRACEBACK"):
            raise
        print(f"{prog}: error: {one_line(message)}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def ending(error: Exception) -> tuple[int | None, str]:
    """Return the exit code of an error and what is said of it; no code for a bug of ours."""
    if isinstance(error, Refused):
        return 2, str(error)
    if isinstance(error, Failed):
        return 3, str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] in EXTRAS:
        name = error.name.split(".")[0]
        return 2, f"{name} is not installed, accepted: after pip install 'dinov3-hf[{EXTRAS[name]}]'"
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return 3, f"{error.strerror}: {error.filename}; what was written before is still there"
    return None, ""


if __name__ == "__main__":
    sys.exit(main())
