"""The guess without context: a table of the teacher's averages, and what it is worth where the teacher reads context or does not."""

from typing import Any

import numpy as np
import pytest
import torch

from hkd.align.alignment import Alignment
from hkd.evaluate.heads import average_teacher, guess
from hkd.labels.store import LabelReader
from hkd.losses import sparse_kl
from hkd.manifest import read as read_manifest
from hkd.stream.join import Join, JoinedStore
from hkd.units.subword import SubwordModel


@pytest.fixture(scope="module")
def joined(evaluated: Any) -> JoinedStore:
    manifest = read_manifest(evaluated.manifest)
    store = LabelReader.open(evaluated.labels / "monophone")
    subwords = SubwordModel(evaluated.units / "subword.model")
    return Join(manifest, subwords=subwords, alignment=Alignment(evaluated.alignment), stores={"monophone": store}).stores[
        "monophone"
    ]


def test_the_table_is_the_average_of_each_units_rows(joined: JoinedStore) -> None:
    left_out = joined.reader.ids[0]
    table_VH = average_teacher(joined, without={left_out})
    assert table_VH is not None
    assert table_VH.shape == (len(joined.reader.spec.inventory), joined.num_units)
    assert table_VH.sum(1).numpy() == pytest.approx(1, abs=1e-5)
    topk = joined.reader.block([name for name in joined.reader.ids if name != left_out]).topk
    dense_NH = np.zeros((len(topk.gold_N), joined.num_units))
    for n in range(len(dense_NH)):
        p_K = np.exp(topk.logp_NK[n].astype(np.float64))
        for unit, p in zip(joined.head_unit_V[topk.ids_NK[n]], p_K, strict=True):
            dense_NH[n, unit] += p
        dense_NH[n] += np.exp(topk.tail_N[n]) / joined.num_units
    for unit in set(topk.gold_N.tolist()):
        rows = dense_NH[topk.gold_N == unit]
        expected = rows.sum(0) + dense_NH.sum(0) / dense_NH.sum()
        assert table_VH[unit].numpy() == pytest.approx(expected / expected.sum(), abs=1e-4)


def test_nothing_is_left_to_average(joined: JoinedStore) -> None:
    assert average_teacher(joined, without=set(joined.reader.ids)) is None


def test_a_certain_ear_guesses_the_row_and_a_deaf_one_the_mean_of_all() -> None:
    table_VH = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    assert torch.allclose(guess(100 * torch.eye(3), table_VH).exp(), table_VH, atol=1e-6)
    assert torch.allclose(guess(torch.zeros(1, 3), table_VH).exp()[0], table_VH.mean(0))


def test_a_teacher_that_reads_no_context_leaves_nothing_to_learn_beyond_the_table() -> None:
    """Rows of the table itself are guessed without error by an ear that hears right; rows that hang on more are not."""
    table_VH = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    ids_MK, tail_M = torch.arange(3).expand(3, 3), torch.full((3,), -30.0)
    heard = guess(100 * torch.eye(3), table_VH)
    assert sparse_kl(heard, ids_MK=ids_MK, logp_MK=table_VH.log(), tail_M=tail_M).numpy() == pytest.approx(0, abs=1e-4)
    other = table_VH.roll(1, 1)
    assert (sparse_kl(heard, ids_MK=ids_MK, logp_MK=other.log(), tail_M=tail_M) > 0.1).all()
