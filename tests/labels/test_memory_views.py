"""Memory is used again only where nobody holds a view of it, and only where it is the pool's own."""

import numpy as np

from hkd.labels.memory import Spares


def test_a_view_of_a_view_keeps_its_memory() -> None:
    pool = Spares()
    first = pool.allocate((1000, 128), np.uint16)
    part = first[:900].view(np.uint8)
    pool.give(first)
    del first
    assert not np.shares_memory(part, pool.allocate((1000, 128), np.uint16))
    place = part.__array_interface__["data"][0]
    del part
    assert pool.allocate((1000, 128), np.uint16).__array_interface__["data"][0] == place


def test_memory_of_others_is_never_taken() -> None:
    pool, data = Spares(), bytes(1 << 20)
    pool.give(np.frombuffer(memoryview(data), np.uint8)[:])
    assert not np.shares_memory(np.frombuffer(data, np.uint8), pool.allocate((1 << 19,), np.uint8))
