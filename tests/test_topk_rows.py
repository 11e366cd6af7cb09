"""Selection in compiled code against a plain sort, and against the operations on whole tensors that GPUs run."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.sparse import TopK
from hkd.topk import _select_in_tensors, select_topk


def sorted_rows(
    logits_NV: torch.Tensor, gold_N: torch.Tensor, k: int, exclude_V: torch.Tensor
) -> tuple[list[set[int]], np.ndarray]:
    """Each row's K ids by a plain stable sort, and the log of the mass outside them, in double precision."""
    kept, tail_N = [], np.zeros(len(logits_NV))
    for n, (score_V, gold) in enumerate(zip(logits_NV.double().numpy(), gold_N.tolist(), strict=True)):
        order = [v for v in np.argsort(-score_V, kind="stable").tolist() if not exclude_V[v]][:k]
        if gold not in order and not exclude_V[gold]:
            order[-1] = gold
        kept.append(set(order))
        p_V = np.exp(score_V - np.logaddexp.reduce(score_V))
        tail_N[n] = np.delete(p_V, order).sum()
    return kept, tail_N


@settings(max_examples=80, deadline=None)
@given(v=st.integers(3, 700), k=st.integers(1, 40), levels=st.sampled_from([2, 9, 10_000]), seed=st.integers(0, 9999))
def test_what_a_plain_stable_sort_keeps(v: int, k: int, levels: int, seed: int) -> None:
    """Few levels of scores: nearly all are ties."""
    rng = np.random.default_rng(seed)
    logits_NV = torch.from_numpy((rng.integers(0, levels, (4, v)) / levels * 12 - 6).astype(np.float32))
    gold_N = torch.from_numpy(rng.integers(0, v, 4))
    exclude_V = torch.from_numpy(rng.random(v) < 0.1)
    exclude_V[0] = False
    rows = select_topk(logits_NV, gold_N, k=k, exclude_V=exclude_V)
    kept, tail_N = sorted_rows(logits_NV, gold_N, rows.k, exclude_V)
    assert [set(ids) for ids in rows.ids_NK.tolist()] == kept
    np.testing.assert_allclose(np.exp(rows.tail_N), tail_N, atol=1e-6)
    falling = [
        list(zip((-logp).tolist(), ids.tolist(), strict=True))
        for logp, ids in zip(rows.logp_NK, rows.ids_NK, strict=True)
    ]
    assert falling == [sorted(row) for row in falling]


@pytest.mark.parametrize(("v", "k"), [(40, 7), (5000, 8), (5126, 64), (300, 300)])
def test_the_same_as_in_tensors(v: int, k: int) -> None:
    """Scores that reach down to e^-120, where the tail needs its own reference."""
    rng = torch.Generator().manual_seed(v)
    logits_NV = torch.randn(30, v, generator=rng) * torch.linspace(0.1, 30, 30)[:, None]
    logits_NV[7, v // 2 :] = -torch.inf
    gold_N = torch.randint(v, (30,), generator=rng)
    gold_N[::5] = -1
    exclude_V = torch.zeros(v, dtype=torch.bool)
    if k < v:
        exclude_V[[1, v // 3, int(logits_NV[3].argmax())]] = True
        gold_N[exclude_V[gold_N]] = -1
    mine = select_topk(logits_NV, gold_N, k=k, exclude_V=exclude_V, temperatures=(2.0, 0.5))
    theirs = _select_in_tensors(logits_NV, gold_N, k, (2.0, 0.5), exclude_V)
    for f in fields(TopK):
        if f.name != "count_NK":
            np.testing.assert_allclose(
                getattr(mine, f.name), getattr(theirs, f.name), rtol=2e-6, atol=2e-5, err_msg=f.name
            )


def test_rows_without_enough_units_and_rows_that_are_no_numbers() -> None:
    logits_NV = torch.full((3, 100), -torch.inf)
    logits_NV[:, 50] = 1.0
    logits_NV[1, 7] = torch.nan
    rows = select_topk(logits_NV, torch.tensor([50, 50, 3]), k=3)
    assert rows.ids_NK[[0, 2]].tolist() == [[50, 0, 1], [50, 0, 3]]
    assert rows.logp_NK[0].tolist() == [0.0, -np.inf, -np.inf]
    assert rows.tail_N[[0, 2]].tolist() == [-np.inf, -np.inf]
    assert np.isnan(rows.logp_NK[1]).all()


def test_any_layout_and_precision() -> None:
    logits_NV = torch.randn(6, 900, generator=torch.Generator().manual_seed(0)).bfloat16()
    gold_N = torch.arange(6)
    expected = select_topk(logits_NV.float(), gold_N, k=5)
    for given_NV in (logits_NV, logits_NV.float().t().contiguous().t(), logits_NV.double()):
        rows = select_topk(given_NV, gold_N, k=5)
        np.testing.assert_array_equal(rows.ids_NK, expected.ids_NK)
        np.testing.assert_array_equal(rows.logp_NK, expected.logp_NK)
    with pytest.raises(ValueError, match="below 900"):
        select_topk(logits_NV, gold_N + 895, k=5)


def test_threads_give_the_same_bytes_and_leave_the_logits_alone() -> None:
    logits_NV = torch.randn(64, 3000, generator=torch.Generator().manual_seed(1)) * 4
    before_NV, gold_N = logits_NV.clone(), torch.arange(64)
    alone = select_topk(logits_NV, gold_N, k=16, temperatures=(3.0,))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: select_topk(logits_NV, gold_N, k=16, temperatures=(3.0,)), range(12)))
    for rows in together:
        for name in ("ids_NK", "logp_NK", "tail_N", "lse_NJ", "tail_NJ"):
            assert getattr(rows, name).tobytes() == getattr(alone, name).tobytes()
    assert torch.equal(logits_NV, before_NV)
