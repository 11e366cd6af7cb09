"""Which sentences a step sees: a pure function of (seed, step), each once an epoch, shared out among processes."""

import numpy as np
import pytest

from hkd.labelling.lm_data import BatchOrder, ConcatSentences, LmTask
from hkd.teachers.cloze import UnitLmSizes, make_unit_lm


def corpus(num):
    rng = np.random.default_rng(0)
    return ConcatSentences([[np.full(rng.integers(1, 30), i, np.int32) for i in range(num)]])


@pytest.mark.parametrize(("num", "size"), [(1, 4), (7, 3), (1000, 8)])
def test_an_epoch_is_a_permutation_and_steps_do_not_depend_on_where_one_starts(num, size):
    order = BatchOrder(corpus(num), batch_sentences=size, seed=3)
    epochs = [[order(e * order.steps_per_epoch + s).tolist() for s in range(order.steps_per_epoch)] for e in range(2)]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(num))
    if num > 100:
        assert epochs[0] != epochs[1]
    flat = [batch for epoch in epochs for batch in epoch]
    for step in np.random.default_rng(1).permutation(len(flat))[:20]:
        assert BatchOrder(corpus(num), batch_sentences=size, seed=3)(int(step)).tolist() == flat[step]


def test_shares_of_processes_make_up_the_batch():
    model = make_unit_lm(UnitLmSizes(width=4), num_units=50, direction="cloze")
    task = LmTask(model, corpus(50), batch_sentences=7, seed=0)

    def golds(rank, world_size):
        steps = task.batches(3, rank, world_size)
        return [sorted(b.gold_N.tolist()) if b is not None else [] for b in (next(steps) for _ in range(6))]

    whole = golds(0, 1)
    shares = [golds(rank, 9) for rank in range(9)]
    assert [sorted(i for share in shares for i in share[s]) for s in range(6)] == whole
    assert shares[8] == [[]] * 6  # seven sentences, nine processes


def test_sentences_of_a_batch_are_of_like_length():
    many = corpus(1000)
    order = BatchOrder(many, batch_sentences=8, seed=0)
    spread = [np.ptp([len(many[int(i)]) for i in order(step)]) for step in range(order.steps_per_epoch)]
    assert np.mean(spread) < 4
