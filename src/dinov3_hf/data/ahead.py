"""Reading by threads, some batches ahead of the one that is worked on."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar


Result = TypeVar("Result")


def read_ahead(
    read: Callable[..., Result], batches: Iterable[Sequence[tuple]], ahead: int = 1
) -> Iterator[list[Result]]:
    """Yield, for every batch of calls, what `read` gives for each; threads are already at work on the next `ahead` ones.

    A call is a tuple of arguments. An error of a call is raised where its batch is yielded.
    """
    waiting = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for calls in batches:
            waiting.append([pool.submit(read, *call) for call in calls])
            if len(waiting) > ahead:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]


class StepReader:
    """From a step's number to what its calls of `read` give; the next step's are read meanwhile.

    `calls_of(step)` lists a step's calls. Steps are mostly asked for in order, and may begin anywhere.
    """

    def __init__(self, read: Callable[..., Result], calls_of: Callable[[int], Sequence[tuple]], num_steps: int):
        self.read, self.calls_of, self.num_steps = read, calls_of, num_steps
        self.next_step, self.stream = None, None

    def __call__(self, step: int) -> list[Result]:
        if step != self.next_step:
            self.stream = read_ahead(self.read, map(self.calls_of, range(step, self.num_steps)))
        self.next_step = step + 1
        return next(self.stream)
