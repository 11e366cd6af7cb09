"""Selecting the k likeliest units: the invariants that every later part leans on."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hkd.sparse import NO_GOLD, TopK
from hkd.topk import select_topk


def rows(n: int, v: int, seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, v, generator=rng), torch.randint(v, (n,), generator=rng)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 6),
    v=st.integers(2, 40),
    k=st.integers(1, 45),
    seed=st.integers(0, 10_000),
    scale=st.floats(0.1, 30),
)
def test_mass_order_gold_and_truth(n: int, v: int, k: int, seed: int, scale: float) -> None:
    logits_NV, gold_N = rows(n, v, seed, scale)
    topk = select_topk(logits_NV, gold_N, k=k, temperatures=(2.0,))
    dense_NV = torch.log_softmax(logits_NV.double(), 1).numpy()
    assert topk.k == min(k, v)
    assert len(topk) == n
    np.testing.assert_allclose(
        np.exp(topk.logp_NK.astype(np.float64)).sum(1) + np.exp(topk.tail_N.astype(np.float64)), 1, atol=2e-5
    )
    np.testing.assert_allclose(
        topk.logp_NK, np.take_along_axis(dense_NV, topk.ids_NK.astype(np.int64), 1), atol=1e-4, rtol=1e-6
    )
    np.testing.assert_allclose(topk.gold_logp_N, dense_NV[np.arange(n), gold_N.numpy()], atol=1e-4, rtol=1e-6)
    assert (np.diff(topk.logp_NK, axis=1) <= 0).all()
    for row, gold in zip(topk.ids_NK.tolist(), gold_N.tolist(), strict=True):
        assert len(set(row)) == len(row)
        assert gold in row
    if k >= v:
        assert (topk.tail_N == -np.inf).all()


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_lse_makes_other_temperatures_exact(temperature: float) -> None:
    logits_NV, gold_N = rows(5, 30, 1)
    topk = select_topk(logits_NV, gold_N, k=4, temperatures=(1.0, temperature))
    p_NV = torch.softmax(torch.log_softmax(logits_NV.double(), 1) / temperature, 1).numpy()
    ours = np.exp(topk.logp_NK.astype(np.float64) / temperature - topk.lse_NJ[:, 1:])
    kept = np.take_along_axis(p_NV, topk.ids_NK.astype(np.int64), 1)
    np.testing.assert_allclose(ours, kept, rtol=1e-5)
    np.testing.assert_allclose(np.exp(topk.tail_NJ[:, 1]), 1 - kept.sum(1), rtol=1e-4)
    np.testing.assert_allclose(topk.lse_NJ[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(topk.tail_NJ[:, 0], topk.tail_N, atol=1e-6)


def test_gold_takes_the_last_place_where_it_is_unlikely() -> None:
    logits_NV = torch.tensor([[5.0, 4.0, 3.0, -9.0]])
    topk = select_topk(logits_NV, torch.tensor([3]), k=2)
    assert topk.ids_NK.tolist() == [[0, 3]]
    without = select_topk(logits_NV, torch.tensor([NO_GOLD]), k=2)
    assert without.ids_NK.tolist() == [[0, 1]]
    assert without.gold_N.tolist() == [NO_GOLD]
    assert without.gold_logp_N.tolist() == [-np.inf]


def test_ties_go_to_the_lower_id_within_the_kept() -> None:
    topk = select_topk(torch.zeros(1, 3), torch.tensor([1]), k=3)
    assert topk.ids_NK.tolist() == [[0, 1, 2]]


def test_tail_is_exact_where_one_unit_is_nearly_certain() -> None:
    """1 − Σ would be 0 in float32."""
    topk = select_topk(torch.tensor([[60.0, 0.0, 0.0, 0.0]]), torch.tensor([0]), k=1)
    np.testing.assert_allclose(topk.tail_N, [np.log(3) - 60], rtol=1e-6)


def test_slices_and_joins_are_inverse() -> None:
    whole = select_topk(*rows(7, 20, 2), k=3, temperatures=(2.0,))
    again = TopK.concatenate([whole[:3], whole[3:], whole[:0]])
    picked = whole[np.array([4, 1])]
    for name in ("ids_NK", "logp_NK", "tail_N", "gold_N", "gold_logp_N", "lse_NJ", "tail_NJ"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(picked, name), getattr(whole, name)[[4, 1]])
    assert len(TopK.concatenate([TopK.empty(3, 1), whole])) == 7
    with pytest.raises(ValueError, match="empty"):
        TopK.concatenate([])
    with pytest.raises(ValueError, match="tail_N"):
        TopK(
            ids_NK=whole.ids_NK,
            logp_NK=whole.logp_NK,
            tail_N=whole.tail_N[:2],
            gold_N=whole.gold_N,
            gold_logp_N=whole.gold_logp_N,
        )


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 40), v=st.integers(2, 40), k=st.integers(1, 45), seed=st.integers(0, 10_000), masked=st.booleans()
)
def test_a_row_does_not_depend_on_those_beside_it(n: int, v: int, k: int, seed: int, masked: bool) -> None:
    logits_NV, gold_N = rows(n, v, seed)
    if masked:
        logits_NV[:, 1:] = logits_NV[:, 1:].masked_fill(logits_NV[:, 1:] < 1, -torch.inf)
    together = select_topk(logits_NV, gold_N, k=k, temperatures=(2.0, 0.7))
    for row in (0, n // 2, n - 1):
        alone = select_topk(logits_NV[row : row + 1], gold_N[row : row + 1], k=k, temperatures=(2.0, 0.7))
        for f in fields(TopK):
            np.testing.assert_array_equal(getattr(alone, f.name), getattr(together[row : row + 1], f.name))
