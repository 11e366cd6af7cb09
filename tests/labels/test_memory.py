"""Memory that is used again: never while somebody looks at it."""

import threading

import numpy as np
import pytest

from hkd.labels.memory import LARGE_BYTES, SMALL_BYTES, Buffers, Spares

SHAPE = (SMALL_BYTES, 2)


def test_a_buffer_is_used_again_only_when_nobody_holds_a_view() -> None:
    pool = Buffers(2)
    first = pool.allocate(SHAPE, np.uint8)
    view = first[5:7].view(np.uint16)
    place = first.ctypes.data
    del first
    assert pool.allocate(SHAPE, np.uint8).ctypes.data != place
    del view
    assert place in {pool.allocate(SHAPE, np.float32 if big else np.uint8).ctypes.data for big in (False, False)}


@pytest.mark.parametrize("num_bytes", [0, SMALL_BYTES - 1, LARGE_BYTES + 1])
def test_small_and_large_arrays_are_ordinary(num_bytes: int) -> None:
    for pool in (Buffers(), Spares()):
        assert pool.allocate((num_bytes,), np.uint8).base is None


def test_spares_are_what_was_given_back() -> None:
    pool = Spares(2)
    first = pool.allocate(SHAPE, np.uint8)
    place = first.ctypes.data
    columns = [first[:, 0], first[:, 1]]
    del first
    for column in columns:  # twice the same memory
        pool.give(column)
    assert pool.allocate(SHAPE, np.uint8).ctypes.data != place  # still looked at
    del columns, column
    again = [pool.allocate(SHAPE, np.uint8) for _ in range(2)]
    assert [array.ctypes.data == place for array in again].count(True) == 1
    for foreign in (np.zeros(SHAPE, np.uint8), np.frombuffer(bytes(9), np.uint8)[2:], np.zeros(9)[1:]):
        pool.give(foreign)
    assert pool.allocate(SHAPE, np.uint8) is not None


def test_threads_never_share_a_buffer() -> None:
    pool, wrong = Buffers(4), []

    def work(number: int) -> None:
        for _ in range(200):
            array = pool.allocate(SHAPE, np.uint8)
            array[::997] = number
            if not (array[::997] == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_of_others_is_never_taken() -> None:
    pool, data = Spares(), bytes(1 << 20)
    pool.give(np.frombuffer(memoryview(data), np.uint8)[:])
    assert not np.shares_memory(np.frombuffer(data, np.uint8), pool.allocate((1 << 19,), np.uint8))
