"""Read batches in threads, ahead of the one in use."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar


Result = TypeVar("Result")


def read_ahead(
    read: Callable[..., Result], batches: Iterable[Sequence[tuple]], ahead: int = 1
) -> Iterator[list[Result]]:
    """Yield the results of `read` for each batch of calls, while threads already read the next `ahead` batches.

    A call is a tuple of arguments. If a call raises an error, it is raised when its batch is due.
    """
    waiting: deque[list[Future[Result]]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for calls in batches:
            waiting.append([pool.submit(read, *call) for call in calls])
            if len(waiting) > ahead:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]


class StepReader(Generic[Result]):
    """Return the results of `read` for a step, and read those of the next step in threads meanwhile.

    `calls_of(step)` lists a step's calls. The first step may have any number; reading ahead helps where steps follow
    in order.
    """

    def __init__(self, read: Callable[..., Result], calls_of: Callable[[int], Sequence[tuple]], num_steps: int):
        self.read, self.calls_of, self.num_steps = read, calls_of, num_steps
        self.next_step: int | None = None
        self.stream: Iterator[list[Result]] = iter(())

    def __call__(self, step: int) -> list[Result]:
        if step != self.next_step:
            self.stream = read_ahead(self.read, map(self.calls_of, range(step, self.num_steps)))
        self.next_step = step + 1
        return next(self.stream)
