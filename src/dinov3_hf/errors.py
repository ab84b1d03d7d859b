"""How a command ends that does not get to its end: refused, failed, or by a bug of ours."""


class Refused(ValueError):
    """The user's input cannot be: one line that names the field, its value and what is accepted. Nothing was written."""


class Failed(RuntimeError):
    """The work broke off (a disk, a worker, a lost process, numbers that are not finite): one line, what is still usable."""
