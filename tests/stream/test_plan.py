"""The plan is a permutation, a function of (seed, epoch), and knows nothing of processes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.errors import UserError
from hkd.stream.plan import BatchPlan

lengths = st.lists(st.integers(1, 3000), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(50, 20000), st.integers(0, 5), st.integers(0, 3), st.integers(1, 5))
def test_every_utterance_stands_once_in_an_epoch_at_any_world_size(
    length_U: list[int], batch_frames: int, seed: int, epoch: int, world_size: int
) -> None:
    plan = BatchPlan(length_U, batch_frames=batch_frames, seed=seed)
    first = epoch * plan.batches_per_epoch
    steps = range(first, first + plan.batches_per_epoch)
    assert all(plan.epoch_of(step) == epoch and len(plan.batch(step)) for step in steps)
    seen = np.concatenate([plan.share(step, rank, world_size) for step in steps for rank in range(world_size)])
    assert sorted(seen.tolist()) == list(range(len(length_U)))
    again = BatchPlan(length_U, batch_frames=batch_frames, seed=seed)  # asked out of order
    assert all((again.batch(step) == plan.batch(step)).all() for step in reversed(steps))


def test_batches_are_of_even_length_and_little_is_padded_and_epochs_differ() -> None:
    length_U = np.random.default_rng(0).integers(100, 2000, 1000)
    plan = BatchPlan(length_U, batch_frames=12000, seed=0)
    batches = [plan.batch(step) for step in range(plan.batches_per_epoch)]
    totals = np.array([length_U[rows].sum() for rows in batches])
    assert totals.max() < 12000 + 2000
    assert totals.min() > 12000 - 4000
    padded = sum(len(rows) * length_U[rows].max() for rows in batches)
    assert padded < 1.25 * length_U.sum()
    neighbours = {frozenset(rows.tolist()) for rows in batches}
    later = [frozenset(plan.batch(plan.batches_per_epoch + step).tolist()) for step in range(plan.batches_per_epoch)]
    assert not neighbours & set(later)


def test_seed_zero_is_a_seed_and_nothing_is_refused() -> None:
    length_U = list(range(1, 40))
    order = [BatchPlan(length_U, batch_frames=100, seed=seed).batch(0).tolist() for seed in (0, 0, 1)]
    assert order[0] == order[1] != order[2]
    with pytest.raises(UserError, match="there is none"):
        BatchPlan([], batch_frames=100, seed=0)
    with pytest.raises(UserError, match="`batch_seconds` must be positive"):
        BatchPlan([1], batch_frames=0, seed=0)
