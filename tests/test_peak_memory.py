"""The peak of this process alone, and counted anew."""

import sys

import numpy as np
import pytest

from hkd.peak_memory import forget_peak, peak_mb


def test_the_peak_rises_with_what_is_held() -> None:
    before = peak_mb()
    held = np.ones(64 << 20, np.uint8)
    assert held.sum() == held.size
    assert peak_mb() >= before
    assert peak_mb() > 64


@pytest.mark.skipif(sys.platform != "linux", reason="proc(5)")
def test_a_peak_that_is_over_is_forgotten() -> None:
    held = np.ones(256 << 20, np.uint8)
    high = peak_mb()
    del held
    now = forget_peak()
    assert now < high - 200
    assert now <= peak_mb() < now + 50


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim(3)")
def test_what_was_freed_in_pieces_is_forgotten_too() -> None:
    pieces = [bytes(4000) for _ in range(60_000)]
    last = bytes(4000)  # keeps the heap's end, so that nothing before it goes back by itself
    high = peak_mb()
    del pieces
    forget_peak()
    assert peak_mb() < high - 150
    assert last == bytes(4000)
