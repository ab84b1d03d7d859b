"""Several data sets mixed by weight, each step's choice a pure function of the seed."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import Refused
from .streams import RowStream, StreamError


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Separates the random numbers of this choice from others drawn with the same seed.
MIXING = 0x317C


class MixedRows:
    """Rows of several data sets, for one of several readers that share them without overlap.

    Which source fills a place of the global batch depends on (seed, step, place) alone: all processes and workers
    agree without communication. With probability `homogeneous_share` a whole step is drawn from one source (DINOv3,
    section 3.1). Sources go through their epochs at their own pace and each holds a block of its own in memory; one
    that is never drawn is never opened. Raises `Refused` for invalid weights or an invalid share.
    """

    def __init__(
        self,
        sources: "list[Dataset | IterableDataset]",
        weights: list[float],
        block: int,
        seed: int,
        reader: int = 0,
        num_readers: int = 1,
        homogeneous_share: float = 0.0,
    ):
        if len(weights) != len(sources) or not all(0 < weight < float("inf") for weight in weights):
            raise Refused(f"weights: got {weights}, accepted: {len(sources)} numbers above 0, one for each source")
        if not 0 <= homogeneous_share <= 1:
            raise Refused(f"homogeneous_share: got {homogeneous_share}, accepted: a share from 0 to 1")
        self.seed, self.homogeneous_share = seed, homogeneous_share
        self.bounds = np.cumsum(weights) / np.sum(weights)
        self.streams = [RowStream(rows, block, seed, reader, num_readers) for rows in sources]
        self.iterators = [iter(stream) for stream in self.streams]

    def source_of(self, step: int, places: range) -> np.ndarray:
        """Return which source fills each of `places` in the global batch of `step`, int64 [len(places)]."""
        draws = np.random.default_rng([self.seed, MIXING, step]).random(2 + places.stop)
        if draws[0] < self.homogeneous_share:
            chosen = np.full(len(places), draws[1])
        else:
            chosen = draws[2:][places.start : places.stop : places.step]
        # The last bound may be rounded to just below 1.
        return np.searchsorted(self.bounds[:-1], chosen, side="right")

    def next_row(self, source: int) -> dict:
        """Return the next row of one source; raises `StreamError` if it cannot be read."""
        try:
            return next(self.iterators[source])
        except StreamError as error:
            raise StreamError(f"source {source + 1} of {len(self.streams)}: {error}") from error

    def state_dict(self) -> dict:
        return {"sources": [stream.state_dict() for stream in self.streams]}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`; raises ValueError if it was saved with another number of sources or readers."""
        if len(state["sources"]) != len(self.streams):
            raise ValueError(f"data: got a state of {len(state['sources'])} sources, accepted: {len(self.streams)}")
        for stream, place in zip(self.streams, state["sources"], strict=True):
            stream.load_state_dict(place)
        self.iterators = [iter(stream) for stream in self.streams]

    @staticmethod
    def restart_state(states: list[dict], num_readers: int) -> dict:
        """Return the state from which each of `num_readers` readers continues; see `RowStream.restart_state`."""
        sources = zip(*(state["sources"] for state in states), strict=True)
        return {"sources": [RowStream.restart_state(list(places), num_readers) for places in sources]}
