"""Which utterances make up the global batch of a step: a pure function of (seed, epoch, lengths, runs).

- An epoch is a permutation: every utterance once. It is sorted by length, jittered so that neighbours change from epoch to epoch, cut
  into batches of about equal total length, and the batches are shuffled. Little is padded, and every epoch has the same number of
  batches, so a step's place is a division and resuming is a cursor.
- Where label stores are larger than their readers' caches, an epoch goes through sections of them, drawn anew: lengths are sorted and
  batches shuffled inside a section, so that each block of labels is decoded once an epoch. A section's last batch shares its
  utterances with the next one, which is sorted the other way round.
- The global batch knows nothing of processes; share r of n takes every n-th utterance of it.

Shape letters: U utterances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError

JITTER = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """Which utterances are read together: the number of each one's run (U,), from 0, and how many runs are held at once, at least 1."""

    run_U: NDArray[np.int64]
    at_once: int


class BatchPlan:
    """Batches of about `batch_frames` frames from utterances of `length_U` frames. Raises UserError where there is none.

    runs: only where they cannot all be held at once.
    """

    def __init__(
        self, length_U: Sequence[int] | NDArray[np.int64], *, batch_frames: float, seed: int, runs: Runs | None = None
    ) -> None:
        self._length_U = np.asarray(length_U, np.int64)
        if not len(self._length_U):
            raise UserError("training needs utterances, but there is none. Check the manifest's split.")
        if batch_frames <= 0:
            raise UserError(f"`batch_seconds` must be positive, but is {batch_frames / 100} instead.")
        self._seed, self._runs = seed, runs
        total = int(self._length_U.sum())
        self.batches_per_epoch = min(len(self._length_U), max(1, -(-total // int(batch_frames))))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch that a step lies in."""
        return step // self.batches_per_epoch

    def batch(self, step: int) -> NDArray[np.int64]:
        """Rows of the utterances of a step's global batch."""
        epoch, index = divmod(step, self.batches_per_epoch)
        return self._epoch(epoch)[index]

    def share(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Every world_size-th utterance of the global batch, from `rank` on; may be empty."""
        return self.batch(step)[rank::world_size]

    def _make_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self._seed, epoch))))
        num = len(self._length_U)
        shuffled = random.permutation(num)
        key = self._length_U[shuffled] * (1 + JITTER * random.uniform(-1, 1, num))
        section_U = self._sections(random)
        odd = section_U[shuffled] % 2 == 1
        order = shuffled[np.lexsort((np.where(odd, -key, key), section_U[shuffled]))]
        ends = np.cumsum(self._length_U[order])
        count = self.batches_per_epoch
        cut = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
        least, steps = np.arange(1, count), np.arange(count - 1)
        cut = np.maximum.accumulate(np.maximum(cut, least) - steps) + steps if count > 1 else cut  # no batch is empty
        cut = np.minimum(cut, num - count + least)
        batches, places = np.split(order, cut), random.permutation(count)
        first = np.array([section_U[batches[i][0]] for i in places])
        return [batches[i] for i in places[np.argsort(first, kind="stable")]]

    def _sections(self, random: np.random.Generator) -> NDArray[np.int64]:
        """The section of each utterance, (U,): 0 for all where there are no runs."""
        if self._runs is None:
            return np.zeros(len(self._length_U), np.int64)
        rank_R = random.permutation(int(self._runs.run_U.max()) + 1)
        section_U: NDArray[np.int64] = rank_R[self._runs.run_U] // self._runs.at_once
        return section_U
