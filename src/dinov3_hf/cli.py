"""The command `dinov3 <verb>`: one module of `dinov3_hf.commands` a verb."""

import argparse
import difflib
import importlib
import os
import sys

from ._version import __version__
from .errors import Failed


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


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the list of every flag."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


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
    """Run one verb and return its exit code: 0 done, 2 refused input, 3 broken off, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
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
        verb_parser.error(f"unknown flag {unknown[0]}" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        return command.run(arguments) or 0
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        # DINOV3_TRACEBACK=1 shows where a refusal came from; users need the sentence, developers the place.
        if os.environ.get("DINOV3_TRACEBACK"):
            raise
        message = " ".join(str(error).split())
        print(f"dinov3 {verb}: error: {message}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"dinov3 {verb}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 3
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("dinov3_hf"):
            raise
        extras = "spaces" if verb == "demo" else "train,eval,finetune"
        print(
            f"dinov3 {verb}: error: {error.name} is not installed: pip install 'dinov3-hf[{extras}]'", file=sys.stderr
        )
        return 2
    except ImportError as error:
        if os.environ.get("DINOV3_TRACEBACK"):
            raise
        print(f"dinov3 {verb}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"dinov3 {verb}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
