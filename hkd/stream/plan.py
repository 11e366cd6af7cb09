"""Which utterances make up the global batch of a step: a pure function of (seed, epoch, lengths).

- An epoch is a permutation: every utterance once. It is sorted by length, jittered so that neighbours change from epoch to epoch, cut
  into batches of about equal total length, and the batches are shuffled. Little is padded, and every epoch has the same number of
  batches, so a step's place is a division and resuming is a cursor.
- The global batch knows nothing of processes; share r of n takes every n-th utterance of it.

Shape letters: U utterances.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError

JITTER = 0.1


class BatchPlan:
    """Batches of about `batch_frames` frames from utterances of `length_U` frames. Raises UserError where there is none."""

    def __init__(self, length_U: Sequence[int] | NDArray[np.int64], *, batch_frames: float, seed: int) -> None:
        self._length_U = np.asarray(length_U, np.int64)
        if not len(self._length_U):
            raise UserError("training needs utterances, but there is none. Check the manifest's split.")
        if batch_frames <= 0:
            raise UserError(f"`batch_seconds` must be positive, but is {batch_frames / 100} instead.")
        self._seed = seed
        total = int(self._length_U.sum())
        self.batches_per_epoch = min(len(self._length_U), max(1, -(-total // int(batch_frames))))
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
        order = shuffled[np.argsort(key, kind="stable")]
        ends = np.cumsum(self._length_U[order])
        count = self.batches_per_epoch
        cut = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
        least, steps = np.arange(1, count), np.arange(count - 1)
        cut = np.maximum.accumulate(np.maximum(cut, least) - steps) + steps if count > 1 else cut  # no batch is empty
        cut = np.minimum(cut, num - count + least)
        batches = np.split(order, cut)
        return [batches[i] for i in random.permutation(count)]
