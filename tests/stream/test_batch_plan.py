"""The plan is a permutation, a function of (seed, epoch), and knows nothing of processes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.errors import UserError
from hkd.labels.store import LabelReader
from hkd.sparse import TopK
from hkd.stream.loader import BatchPlan, Runs, runs_of
from hkd.testing.store import random_rows, same_rows, spec_for, write_store

lengths = st.lists(st.integers(1, 3000), min_size=1, max_size=60)
readings = st.none() | st.tuples(st.integers(1, 9), st.integers(1, 4))


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(50, 20000), st.integers(0, 5), st.integers(0, 3), st.integers(1, 5), readings)
def test_every_utterance_stands_once_in_an_epoch_at_any_world_size(
    length_U: list[int], batch_frames: int, seed: int, epoch: int, world_size: int, reading: tuple[int, int] | None
) -> None:
    runs = None if reading is None else Runs(run_U=np.arange(len(length_U)) // reading[0], at_once=reading[1])
    plan = BatchPlan(length_U, batch_frames=batch_frames, seed=seed, runs=runs)
    first = epoch * plan.batches_per_epoch
    steps = range(first, first + plan.batches_per_epoch)
    assert all(plan.epoch_of(step) == epoch and len(plan.batch(step)) for step in steps)
    seen = np.concatenate([plan.share(step, rank, world_size) for step in steps for rank in range(world_size)])
    assert sorted(seen.tolist()) == list(range(len(length_U)))
    again = BatchPlan(length_U, batch_frames=batch_frames, seed=seed, runs=runs)  # asked out of order
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


def test_sections_keep_batches_even_and_little_padded_and_change_with_the_epoch() -> None:
    length_U = np.random.default_rng(0).integers(100, 2000, 1000)
    plan = BatchPlan(length_U, batch_frames=12000, seed=0, runs=Runs(run_U=np.arange(1000) // 20, at_once=10))
    batches = [plan.batch(step) for step in range(plan.batches_per_epoch)]
    totals = np.array([length_U[rows].sum() for rows in batches])
    assert totals.max() < 12000 + 2000
    assert sum(len(rows) * length_U[rows].max() for rows in batches) < 1.3 * length_U.sum()
    early = {int(row) // 20 for rows in batches[: len(batches) // 5] for row in rows}
    assert len(early) <= 20  # of 50 runs: two sections'
    later = [plan.batch(plan.batches_per_epoch + step) for step in range(len(batches) // 5)]
    assert early != {int(row) // 20 for rows in later for row in rows}


def test_a_store_larger_than_its_readers_cache_is_decoded_once_an_epoch(tmp_path: Path) -> None:
    spec = spec_for(50, block_positions=100, utterances_per_shard=64)
    random = np.random.default_rng(2)
    length_U = random.integers(5, 30, 400)
    rows = random_rows(spec, length_U.tolist())
    write_store(tmp_path / "s", spec, rows)
    ids = list(rows)
    whole = LabelReader.open(tmp_path / "s")
    assert runs_of([whole], ids) is None
    assert runs_of([], ids) is None
    cache_bytes = whole.decoded_bytes // 6

    def decoded(runs: Runs | None) -> int:
        reader = LabelReader.open(tmp_path / "s", cache_bytes=cache_bytes)
        plan = BatchPlan(length_U, batch_frames=100, seed=0, runs=runs)
        for step in range(plan.batches_per_epoch):
            names = [ids[row] for row in plan.batch(step)]
            same_rows(reader.block(names).topk, TopK.concatenate([rows[name].topk for name in names]), spec)
        return reader.num_decoded

    runs = runs_of([whole], ids, held_bytes=cache_bytes)
    assert runs is not None
    assert runs.at_once > 1
    blocks = len(whole.runs())
    assert decoded(runs) < 1.1 * blocks
    assert decoded(None) > 3 * blocks


def test_seed_zero_is_a_seed_and_nothing_is_refused() -> None:
    length_U = list(range(1, 40))
    order = [BatchPlan(length_U, batch_frames=100, seed=seed).batch(0).tolist() for seed in (0, 0, 1)]
    assert order[0] == order[1] != order[2]
    with pytest.raises(UserError, match="there is none"):
        BatchPlan([], batch_frames=100, seed=0)
    with pytest.raises(UserError, match="`batch_seconds` must be positive"):
        BatchPlan([1], batch_frames=0, seed=0)
