"""A random order by place: every number once, the same everywhere, and no trace of the old order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.labelling.shuffle import Shuffled


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 800), st.integers(0, 5))
def test_every_number_stands_in_one_place(size: int, seed: int) -> None:
    for exact in (0, size):
        order = Shuffled(size, [seed, 1], exact=exact)
        assert sorted(order[:].tolist()) == list(range(size))
        parts = np.concatenate([order[start : start + 7] for start in range(0, size, 7)])
        assert np.array_equal(parts, order[:])
        assert len(order) == size


def test_kept_orders_are_numpys() -> None:
    assert np.array_equal(Shuffled(100, [3, 2])[:], np.random.default_rng([3, 2]).permutation(100))


@pytest.mark.parametrize("size", [10_000, 65_536, 100_003])
def test_orders_of_many_are_random_enough(size: int) -> None:
    order = Shuffled(size, [0, 0], exact=0)[:]
    assert not np.array_equal(order, Shuffled(size, [0, 1], exact=0)[:])
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 4 / np.sqrt(size)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / np.sqrt(size)
    rising = int((np.diff(order) > 0).sum())  # of a random permutation: half, variance (n + 1) / 12
    assert abs(rising - size / 2) < 5 * np.sqrt(size / 12)
