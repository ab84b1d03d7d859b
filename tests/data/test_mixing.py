"""The mix of sources: its shares, its agreement between processes, its exact resume."""

import json

import datasets
import numpy as np
import pytest

from dinov3_hf.data.mixing import MixedRows
from dinov3_hf.data.streams import RowStream, StreamError


def rows_of(source, count=10, shards=2):
    """A stream of rows that know their source and number."""
    columns = {"source": [source] * count, "number": list(range(count))}
    return datasets.Dataset.from_dict(columns).to_iterable_dataset(num_shards=shards)


def read(mixed, steps, batch=8, rank=0, ranks=1):
    """The rows of some steps of one process, as a training loader takes them."""
    places = range(rank * batch // ranks, (rank + 1) * batch // ranks)
    rows = [mixed.next_row(source) for step in steps for source in mixed.source_of(step, places)]
    return [(row["source"], row["number"]) for row in rows]


def test_shares_are_the_weights():
    mixed = MixedRows([None, None, None], [6, 3, 1], 4, 0)
    drawn = np.concatenate([mixed.source_of(step, range(64)) for step in range(500)])
    assert np.abs(np.bincount(drawn) / len(drawn) - [0.6, 0.3, 0.1]).max() < 0.01
    assert np.array_equal(drawn[:64], mixed.source_of(0, range(64))) and len(set(drawn[:64])) == 3


def test_a_place_has_one_source_whoever_asks():
    sources, weights = [None, None, None], [1.0, 2.0, 3.0]
    whole = MixedRows(sources, weights, 4, 0, homogeneous=[0.5, 0, 0])
    other = MixedRows(sources, weights, 4, 0, reader=3, num_readers=4, homogeneous=[0.5, 0, 0])
    for step in range(50):
        expected = whole.source_of(step, range(16))
        assert expected.dtype == np.int64 and np.array_equal(other.source_of(step, range(16)), expected)
        assert np.array_equal(
            np.concatenate([other.source_of(step, range(s, s + 4)) for s in range(0, 16, 4)]), expected
        )
        assert np.array_equal(other.source_of(step, range(1, 16, 5)), expected[1:16:5])
    assert len(other.source_of(0, range(0))) == 0
    steps = [tuple(MixedRows(sources, weights, 4, seed).source_of(0, range(64))) for seed in (0, 1)]
    assert steps[0] != steps[1] and steps[0] != tuple(MixedRows(sources, weights, 4, 0).source_of(1, range(64)))


@pytest.mark.parametrize("homogeneous", [[0.1, 0, 0], [0, 0.03, 0.2], [0, 0, 0], [0.2, 0.3, 0.5], [0.1] * 10])
def test_in_20000_steps_every_source_is_alone_as_often_as_its_share_and_then_never_mixed(homogeneous):
    """DINOv3, section 3.1: in 10% of the steps ImageNet-1k alone, and in no other step."""
    count, steps, batch = len(homogeneous), 20_000, 16
    weights = [5.0, 3.0, 1.0] if count == 3 else [1.0] * count
    mixed = MixedRows([None] * count, weights, 4, 0, homogeneous=homogeneous)
    alone, places = np.zeros(count, int), np.zeros(count, int)
    for step in range(steps):
        sources = mixed.source_of(step, range(batch))
        assert sources.dtype == np.int64
        if homogeneous[sources[0]]:
            assert (sources == sources[0]).all()
            alone[sources[0]] += 1
        else:
            assert not any(homogeneous[source] for source in set(sources.tolist()))
            places += np.bincount(sources, minlength=count)
    # Four standard deviations of a share of 20,000 steps.
    for share, found in zip(homogeneous, alone / steps, strict=True):
        assert abs(found - share) <= 4 * (share * (1 - share) / steps) ** 0.5
    kept = np.array([0.0 if share else weight for share, weight in zip(homogeneous, weights, strict=True)])
    if kept.any():
        assert alone.sum() * batch + places.sum() == steps * batch
        assert np.abs(places / places.sum() - kept / kept.sum()).max() < 0.005


def test_without_homogeneous_steps_the_choice_is_what_it_was():
    """The first draws of a seed, recorded before homogeneous steps were declared source by source."""
    drawn = MixedRows([None, None, None], [6, 3, 1], 4, 7).source_of(3, range(24))
    draws = np.random.default_rng([7, 0x317C, 3]).random(26)[2:]
    assert drawn.tolist() == [0 if draw < 0.6 else 1 if draw < 0.9 else 2 for draw in draws]


def test_one_source_is_a_plain_stream():
    mixed = MixedRows([rows_of(0)], [0.3], 4, 5, reader=1, num_readers=2, homogeneous=[1])
    plain = iter(RowStream(rows_of(0), 4, 5, 1, 2))
    assert [number for _, number in read(mixed, range(3))] == [next(plain)["number"] for _ in range(24)]


def test_each_source_keeps_its_own_order_and_epochs():
    mixed = MixedRows([rows_of(0, 5), rows_of(1, 50)], [1, 1], 4, 0)
    found = read(mixed, range(10))
    for source in (0, 1):
        plain = iter(RowStream(rows_of(source, (5, 50)[source]), 4, 0))
        numbers = [number for other, number in found if other == source]
        assert len(numbers) > 25 and numbers == [next(plain)["number"] for _ in numbers]


def test_readers_of_a_mix_share_every_source():
    seen = []
    for reader in range(2):
        mixed = MixedRows([rows_of(0), rows_of(1)], [1, 1], 4, 0, reader, 2)
        seen += [(source, mixed.next_row(source)["number"]) for source in (0, 1) for _ in range(5)]
    assert sorted(seen) == [(source, number) for source in (0, 1) for number in range(10)]


def test_resume_is_exact():
    def make():
        return MixedRows([rows_of(0), rows_of(1, 7, 1), rows_of(2, 3)], [5, 3, 1], 4, 0, homogeneous=[0, 0.2, 0])

    whole = read(make(), range(12))
    for stop in range(12):
        mixed = make()
        head = read(mixed, range(stop))
        state = json.loads(json.dumps(mixed.state_dict()))
        assert mixed.state_dict() == state
        again = make()
        again.load_state_dict(state)
        assert head + read(again, range(stop, 12)) == whole


def test_a_source_never_drawn_is_never_opened():
    def opened():
        raise AssertionError("opened")
        yield

    never = datasets.IterableDataset.from_generator(
        opened, features=datasets.Features({"number": datasets.Value("int64")})
    )
    mixed = MixedRows([rows_of(0), never], [1, 1e-12], 4, 0)
    assert len(read(mixed, range(5))) == 40 and mixed.state_dict()["sources"][1]["source"] is None
    with pytest.raises(AssertionError, match="opened"):
        mixed.next_row(1)


def test_another_number_of_readers_starts_every_source_in_its_next_epoch():
    states = []
    for reader in range(2):
        mixed = MixedRows([rows_of(0), rows_of(1)], [1, 1], 4, 0, reader, 2)
        for _ in range(12 + 5 * reader):
            mixed.next_row(1)
        states.append(mixed.state_dict())
    assert [state["sources"][1]["epoch"] for state in states] == [2, 3]
    more = [MixedRows([rows_of(0), rows_of(1)], [1, 1], 4, 0, reader, 3) for reader in range(3)]
    for mixed in more:
        mixed.load_state_dict(json.loads(json.dumps(MixedRows.restart_state(states, 3))))
    assert [stream.epoch for stream in more[0].streams] == [1, 4]
    with pytest.raises(ValueError, match="num_readers: got 3, accepted: 2"):
        more[0].load_state_dict(states[0])


@pytest.mark.parametrize(
    "weights, homogeneous, message",
    [
        ([1.0], [], r"weights: got \[1.0\], accepted: 2 numbers above 0"),
        ([1.0, 0.0], [], "weights: got .*0.0"),
        ([1.0, -1.0], [], "weights: got .*-1.0"),
        ([1.0, float("nan")], [], "weights: got .*nan"),
        ([1.0, float("inf")], [], "weights: got .*inf"),
        (
            [1.0, 1.0],
            [1.5, 0],
            r"data_homogeneous: got \[1.5, 0\], accepted: empty, or a share of the steps from 0 to 1",
        ),
        ([1.0, 1.0], [-0.1, 0], "data_homogeneous: got .*-0.1"),
        ([1.0, 1.0], [float("nan"), 0], "data_homogeneous: got .*nan"),
        ([1.0, 1.0], [0.1], r"got \[0.1\], accepted: empty, or a share .* for each of the 2 sources"),
        ([1.0, 1.0], [0.1, 0, 0], "for each of the 2 sources"),
        ([1.0, 1.0], [0.6, 0.6], r"whose sum is at most 1 \(here 1.2\)"),
        ([1.0, 1.0], [0.1, 0.2], r"whose sum is 1 \(here 0.3\) if all sources have one"),
        ([1.0, 1.0], [1, 0], "whose sum is below 1 if a source has the share 0"),
    ],
)
def test_senseless_mixes_are_refused(weights, homogeneous, message):
    with pytest.raises(ValueError, match=message):
        MixedRows([rows_of(0), rows_of(1)], weights, 4, 0, homogeneous=homogeneous)


def test_errors_name_the_source_and_other_states_are_refused():
    mixed = MixedRows([rows_of(0), rows_of(1, 1, 1)], [1, 1], 4, 0, 1, 2)
    with pytest.raises(StreamError, match="^source 2 of 2: data: reader 1 of 2 gets no rows"):
        mixed.next_row(1)
    assert mixed.next_row(0)["source"] == 0
    with pytest.raises(ValueError, match="data: got a state of 1 sources, accepted: 2"):
        mixed.load_state_dict({"sources": mixed.state_dict()["sources"][:1]})
