"""The command `dinov3 <verb>`; each verb is a module of `dinov3_hf.commands`."""

import argparse
import difflib
import errno
import importlib
import logging
import os
import signal
import sys
from typing import NoReturn

from ._version import __version__
from .errors import Failed, Refused
from .terminal import quiet_libraries


VERBS = {
    "quickstart": "train and evaluate a tiny ViT and text tower on rendered scenes, in minutes on a CPU, and report",
    "pretrain": "pretrain a DINOv3 model on your images, without labels",
    "distill": "distill one frozen teacher into one or several smaller students",
    "align": "train a text tower for a frozen backbone (dino.txt), for zero-shot tasks",
    "evaluate": "evaluate a checkpoint: frozen features against baselines, zero-shot tasks against chance",
    "finetune": "fine-tune a checkpoint on your labels: the head alone, LoRA, DoRA or all weights",
    "export": "convert a checkpoint to another layout: transformers, Meta, timm or ONNX",
    "inspect": "read every image of a source and report what they are: sizes, values, skipped files, duplicates",
    "compare": "compare the metrics of several evaluations in one table",
    "demo": "explore a model in the browser: dense features, segmentation by words, matching, tracking, search",
}


# Optional modules and the extra that installs each; the error for a missing one names the extra.
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
# Errors of a full, broken or read-only disk: not bugs of this package.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the list of every flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def one_line(message: object) -> str:
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

    Any other exception is a bug of this package: it passes through, and Python prints its traceback and exits with 1.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # With torchao installed, torch logs warnings about its classes at every import.
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
    arguments.given = rest
    quiet_libraries()
    try:
        return command.run(arguments) or 0
    except (Refused, Failed, OSError, ModuleNotFoundError) as error:
        # Users need only the message; DINOV3_TRACEBACK=1 shows developers where the error was raised.
        code, message = ending(error)
        if code is None or os.environ.get("DINOV3_TRACEBACK"):
            raise
        print(f"{prog}: error: {one_line(message)}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def ending(error: Exception) -> tuple[int | None, str]:
    """Return the exit code and the message of an error; no code if it is a bug of this package."""
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
