"""Retry network reads after temporary failures; raise permanent errors at once."""

import contextlib
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ..errors import Failed


Result = TypeVar("Result")
# Seconds waited before each further try.
DELAYS = (1, 2, 4, 8, 16, 32)
# Left alone, `datasets` tries one read 20 times, 5 to 60 s apart. A few quick tries of its own are kept: they fetch
# the failed range of bytes again, while ours go back to the start of a shard.
DATASETS_RETRIES = {
    "STREAMING_OPEN_MAX_RETRIES": 3,
    "STREAMING_OPEN_RETRY_INTERVAL": 1,
    "STREAMING_READ_MAX_RETRIES": 3,
    "STREAMING_READ_RETRY_INTERVAL": 1,
    "STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL": 1,
    "STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL": 1,
}
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# Whatever else these libraries raise is about a connection.
HTTP_LIBRARIES = {"aiohttp", "botocore", "http", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}


class StreamError(Failed):
    """A stream of rows that cannot continue; the message is one line.

    A data loader passes on its worker's whole traceback as the message; only its last line is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.strip().splitlines()[-1].split(f"{type(self).__name__}: ")[-1])


def with_retries(read: Callable[[], Result], what: str) -> Result:
    """Return `read()`, called again after each of `DELAYS` while it fails with a temporary error.

    Prints a line before each further try. Raises `StreamError`, with a message that starts with `what`, if the last
    try fails too, or if a server refuses or has no such file; other permanent errors are raised as they are.
    """
    from tqdm import tqdm

    tries = len(DELAYS) + 1
    number = 0
    while True:
        number += 1
        try:
            with _own_retries_of_datasets():
                return read()
        except Exception as error:
            cause = error.__cause__ or error
            reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
            if not is_transient(error):
                if cause is error and not isinstance(error, LASTING):
                    raise
                raise StreamError(f"{what}: cannot be read: {reason}") from error
            if number == tries:
                raise StreamError(f"{what}: could not be read in {tries} tries: {reason}") from error
        # Outside the handler, where the error would keep the failed reader alive during the wait.
        delay = DELAYS[number - 1]
        tqdm.write(f"{what}: try {number} of {tries} failed, the next in {delay} s: {reason}", file=sys.stderr)
        time.sleep(delay)


def is_transient(error: BaseException) -> bool:
    """Say whether an error may be temporary (connection, server, cut file), not permanent (missing, forbidden)."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, (*LASTING, OfflineModeIsEnabled)):
        return False
    # `datasets` hides the answer of a server behind a ConnectionError.
    link: BaseException | None = error
    while link is not None:
        status = getattr(link, "status", None) or getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status in (408, 425, 429) or status >= 500
        link = link.__cause__
    if isinstance(error, ValueError):
        return False
    libraries = {base.__module__.split(".")[0] for base in type(error).__mro__}
    return isinstance(error, OSError | EOFError | tarfile.ReadError) or bool(libraries & HTTP_LIBRARIES)


@contextlib.contextmanager
def _own_retries_of_datasets() -> Iterator[None]:
    """Limit the retries that `datasets` makes by itself to a few quick ones."""
    from datasets import config

    before = {name: getattr(config, name) for name in DATASETS_RETRIES}
    for name, value in DATASETS_RETRIES.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
