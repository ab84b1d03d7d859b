"""Threads read ahead: results in order, errors where their batch is, steps from anywhere."""

import threading

import pytest

from dinov3_hf.data.ahead import StepReader, read_ahead


def test_batches_come_in_order_while_the_next_are_read():
    begun = [threading.Event() for _ in range(4)]

    def read(batch: int, item: int) -> int:
        begun[batch].set()
        return 10 * batch + item

    stream = read_ahead(read, ([(batch, item) for item in range(3)] for batch in range(4)), ahead=2)
    assert next(stream) == [0, 1, 2]
    # Two are on their way, and none beyond them.
    assert begun[1].wait(5) and begun[2].wait(5) and not begun[3].is_set()
    assert list(stream) == [[10, 11, 12], [20, 21, 22], [30, 31, 32]]


def test_an_error_is_raised_where_its_batch_is():
    stream = read_ahead(lambda value: 1 // value, [[(1,)], [(0,)], [(1,)]])
    assert next(stream) == [1]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_steps_begin_anywhere_and_each_is_read_once():
    asked = []

    def calls_of(step: int) -> list[tuple]:
        asked.append(step)
        return [(step,), (step + 1,)]

    reader = StepReader(lambda value: value * value, calls_of, num_steps=9)
    assert [reader(step) for step in (5, 6, 7, 8)] == [[25, 36], [36, 49], [49, 64], [64, 81]]
    assert asked == [5, 6, 7, 8]
    assert reader(2) == [4, 9] and asked == [5, 6, 7, 8, 2, 3]
