"""Errors that users see as one line: refused input, and failed work. Any other error is a bug of this package."""


class Refused(ValueError):
    """Invalid input of the user. The message names the field, its value and what is accepted; nothing was written."""


class Failed(RuntimeError):
    """Work that broke off (disk, worker, lost process, non-finite loss). The message says what is still usable."""
