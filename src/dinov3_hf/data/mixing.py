"""Several data sets mixed by weight, each step's choice a pure function of the seed."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import Refused
from .streams import RowStream, StreamError


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Separates the random numbers of this choice from others drawn with the same seed.
MIXING = 0x317C
# Sums of shares are compared with 1 to this.
TOLERANCE = 1e-6


def homogeneous_error(shares: Sequence[float], num_sources: int) -> str | None:
    """Return what would be accepted as the shares of homogeneous steps, one a source; None if `shares` is."""
    if not len(shares):
        return None
    if len(shares) != num_sources or not all(0 <= share <= 1 for share in shares):
        return f"empty, or a share of the steps from 0 to 1 for each of the {num_sources} sources"
    total, zeros = math.fsum(shares), sum(share == 0 for share in shares)
    if total > 1 + TOLERANCE:
        return f"shares whose sum is at most 1 (here {total:g})"
    if not zeros and total < 1 - TOLERANCE:
        return f"shares whose sum is 1 (here {total:g}) if all sources have one: no source is left for mixed steps"
    if zeros and total > 1 - TOLERANCE:
        return "shares whose sum is below 1 if a source has the share 0: it is in mixed steps only, and there are none"
    return None


class MixedRows:
    """Rows of several data sets, for one of several readers that share them without overlap.

    Which source fills a place of the global batch depends on (seed, step, place) alone: all processes and workers
    agree without communication. A step is homogeneous or mixed (DINOv3, section 3.1): with probability
    `homogeneous[i]` it is drawn wholly from source i, else from the sources without a share, by their weights; a
    source with a share is never in a mixed step, and its weight is not used. Sources go through their epochs at their
    own pace and each holds a block of its own in memory; one that is never drawn is never opened. Raises `Refused` for
    invalid weights or shares.
    """

    def __init__(
        self,
        sources: "list[Dataset | IterableDataset]",
        weights: list[float],
        block: int,
        seed: int,
        reader: int = 0,
        num_readers: int = 1,
        homogeneous: Sequence[float] = (),
    ):
        if len(weights) != len(sources) or not all(0 < weight < float("inf") for weight in weights):
            raise Refused(f"weights: got {weights}, accepted: {len(sources)} numbers above 0, one for each source")
        if wrong := homogeneous_error(homogeneous, len(sources)):
            raise Refused(f"data_homogeneous: got {list(homogeneous)}, accepted: {wrong}")
        self.seed = seed
        shares = np.array(homogeneous or np.zeros(len(sources)), np.float64)
        self.mixed = np.flatnonzero(shares == 0)
        self.share_bounds = np.cumsum(shares)
        kept = np.array(weights, np.float64)[self.mixed]
        self.bounds = np.cumsum(kept) / kept.sum() if len(kept) else kept
        self.streams = [RowStream(rows, block, seed, reader, num_readers) for rows in sources]
        self.iterators = [iter(stream) for stream in self.streams]

    def source_of(self, step: int, places: range) -> np.ndarray:
        """Return which source fills each of `places` in the global batch of `step`, int64 [len(places)]."""
        # The second number is not used: it stays so that runs without homogeneous steps keep their order.
        draws = np.random.default_rng([self.seed, MIXING, step]).random(2 + places.stop)
        alone = int(np.searchsorted(self.share_bounds, draws[0], side="right"))
        if alone < len(self.share_bounds) or not len(self.mixed):
            # If all sources have a share, rounding may have left the last bound just below 1.
            return np.full(len(places), min(alone, len(self.share_bounds) - 1), np.int64)
        # The last bound may be rounded to just below 1.
        chosen = np.searchsorted(self.bounds[:-1], draws[2:][places.start : places.stop : places.step], side="right")
        return self.mixed[chosen].astype(np.int64)

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
