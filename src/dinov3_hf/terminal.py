"""What a person reads while a verb works and when it is done: progress, and the commands to type next."""

import io
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from tqdm import tqdm


# Into a file or a pipe, one line of progress in so many seconds.
SECONDS_A_LINE = 10.0


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> "tqdm":
    """Return tqdm's bar with these options: on terminals and in notebooks as it is, elsewhere as lines.

    Lines are whole, at least ten seconds apart, and the last one tells how it ended: a log stays readable.
    """
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        from tqdm.auto import tqdm

        return tqdm(items, dynamic_ncols=True, **options)
    return _lines()(items, **options)


@cache
def _lines() -> type["tqdm"]:
    """Return the bar that writes lines; tqdm is imported when there is something to show."""
    from tqdm import tqdm

    class Lines(tqdm):
        """A bar without a bar."""

        def __init__(self, *arguments: Any, **options: Any):
            self.next_line = time.monotonic() + SECONDS_A_LINE
            layout = (
                "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            )
            # Without a total tqdm falls back to its own layout, which has no bar.
            known = options.get("total") is not None or (arguments and hasattr(arguments[0], "__len__"))
            super().__init__(*arguments, **({"bar_format": layout} if known else {}), **options)

        @staticmethod
        def status_printer(file: Any) -> Any:
            def write(text: str) -> None:
                if text.strip():
                    file.write(text.strip() + "\n")
                    file.flush()

            return write

        def refresh(self, *arguments: Any, **options: Any) -> bool | None:
            if self.disable or time.monotonic() < self.next_line:
                return None
            self.next_line = time.monotonic() + SECONDS_A_LINE
            return super().refresh(*arguments, **options)

        def moveto(self, n: int) -> None:
            """Lines follow one another: there is no cursor to move."""

        def clear(self, *arguments: Any, **options: Any) -> None:
            """Lines stay when something else is written."""

        def close(self) -> None:
            if not self.disable:
                self.display()
                # What is left of tqdm's own ending moves the cursor.
                self.sp, self.fp = self.status_printer(io.StringIO()), io.StringIO()
            super().close()

    return Lines


def quiet_libraries() -> None:
    """Turn the bars of other libraries off where they would fill a log; to be called before those are imported."""
    if not sys.stderr.isatty():
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")


def is_first_process() -> bool:
    """Say whether this is the process of a run that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def typed(command: Sequence[str]) -> str:
    """Write the arguments of `dinov3` as a line to type, with `dinov3` itself spelled as the user did."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "dinov3" else "dinov3"
    return shlex.join([program, *command])


def print_next(*commands: Sequence[str]) -> None:
    """Print commands, each the arguments of `dinov3`, as they must be typed; from the first process only."""
    if is_first_process():
        print("next:", *map(typed, commands), sep="\n  ")


def resumed(verb: str, given: Sequence[str]) -> list[str]:
    """Return the command that continues a stopped run: what was typed, and --resume."""
    flags = [flag for flag in given if flag not in ("--resume", "--overwrite", "--no-resume", "--no-overwrite")]
    return [verb, *flags, "--resume"]


def evaluation_of(model: Path, output: Path) -> list[str]:
    """Return the command that evaluates a model of a run next to its baselines, into a folder of the run's own."""
    return ["evaluate", str(model), "--output-dir", str(output / "evaluation")]
