"""A fixed random order of the numbers below N, by place, in constant memory.

Up to `EXACT` numbers it is a permutation that is kept. Above, a Feistel network of four rounds over the next power of four, walked until it
falls below N (Black & Rogaway 2002, Ciphers with arbitrary finite domains, section 4): every number still stands in exactly one place.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EXACT = 1 << 22
_ROUNDS = 4
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64's finaliser (Steele, Lea & Flood 2014)


class Shuffled:
    """`order[start:stop]`: the numbers at these places. The same size and seed give the same order everywhere."""

    def __init__(self, size: int, seed: Sequence[int], *, exact: int = EXACT) -> None:
        self.size = size
        random = np.random.default_rng(list(seed))
        self._kept_N = random.permutation(size) if size <= exact else None
        self._key_R = random.integers(0, 1 << 63, _ROUNDS, dtype=np.uint64)
        self._half = np.uint64(max(1, (size - 1).bit_length() + 1 >> 1))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, places: slice) -> NDArray[np.int64]:
        start, stop, step = places.indices(self.size)
        if self._kept_N is not None:
            return np.asarray(self._kept_N[places], np.int64)
        found_M = self._round_trip(np.arange(start, stop, step, dtype=np.uint64))
        while len(outside_M := np.flatnonzero(found_M >= self.size)):
            found_M[outside_M] = self._round_trip(found_M[outside_M])
        return found_M.astype(np.int64)

    def _round_trip(self, number_M: NDArray[np.uint64]) -> NDArray[np.uint64]:
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left_M, right_M = number_M >> self._half, number_M & mask
        for key in self._key_R:
            mixed_M = right_M ^ key
            for shift, factor in zip((30, 27), _MIX, strict=True):
                mixed_M = (mixed_M ^ (mixed_M >> np.uint64(shift))) * np.uint64(factor)
            left_M, right_M = right_M, left_M ^ ((mixed_M ^ (mixed_M >> np.uint64(31))) & mask)
        return (left_M << self._half) | right_M
