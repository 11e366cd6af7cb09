"""A unit LM as a task of the trainer: which sentences a step sees, and their loss.

The sentences of a step are a pure function of (seed, step): an epoch is a permutation of the corpus; pools of it are sorted by length, cut
into batches, and the batches shuffled, so that little is padded.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hkd.labelling.lm_data import Corpus
from hkd.labelling.shuffle import Shuffled
from hkd.teachers.cloze import UnitBatch, UnitLm, collate

Numbers = NDArray[np.int64]
_POOL = 64  # batches sorted together


class BatchOrder:
    """Step → numbers of the sentences, in constant memory."""

    def __init__(self, corpus: Corpus, *, batch_sentences: int, seed: int) -> None:
        self._corpus, self._size, self._seed = corpus, batch_sentences, seed
        self.steps_per_epoch = -(-len(corpus) // batch_sentences)
        self._epoch, self._pool = -1, -1
        self._order = Shuffled(0, [seed])
        self._batches: list[Numbers] = []

    def __call__(self, step: int) -> Numbers:
        """The sentences of a step (0 first)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = Shuffled(len(self._corpus), [self._seed, epoch])
            self._epoch, self._pool = epoch, -1
        pool, index = divmod(place, _POOL)
        if pool != self._pool:
            self._batches = self._make(epoch, pool)
            self._pool = pool
        return self._batches[index]

    def _make(self, epoch: int, pool: int) -> list[Numbers]:
        width = _POOL * self._size
        member = self._order[pool * width : (pool + 1) * width]
        length = np.array([len(self._corpus[int(number)]) for number in member])
        member = member[np.argsort(length, kind="stable")]
        batches = [member[start : start + self._size] for start in range(0, len(member), self._size)]
        return [batches[i] for i in np.random.default_rng([self._seed, epoch, pool]).permutation(len(batches))]


class LmTask:
    """Fits the loop's Task: one loss term, `nll`, divided by positions."""

    def __init__(self, model: UnitLm, corpus: Corpus, *, batch_sentences: int, seed: int) -> None:
        self._model, self._corpus = model, corpus
        self._order = BatchOrder(corpus, batch_sentences=batch_sentences, seed=seed)

    @property
    def model(self) -> nn.Module:
        """The LM."""
        return self._model

    def batches(self, start_step: int, rank: int, world_size: int) -> Iterator[UnitBatch | None]:
        """Endless shares; None where this process gets no sentence."""
        step = start_step
        while True:
            member = self._order(step)[rank::world_size]
            if len(member):
                yield collate([self._corpus[int(number)] for number in member], senones=self._model.senones)
            else:
                yield None
            step += 1

    def counts(self, batch: UnitBatch) -> Mapping[str, float]:
        """Positions."""
        return {"nll": float(len(batch.gold_N))}

    def losses(self, batch: UnitBatch, step: int) -> Mapping[str, Tensor]:
        """Summed over this share."""
        return {"nll": self._model.loss_sum(batch)}

    def weights(self, step: int) -> Mapping[str, float]:
        """One term."""
        return {"nll": 1.0}
