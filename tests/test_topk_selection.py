"""Beyond the plain top-k: excluded units, and draws."""

import numpy as np
import torch

from hkd.topk import select_sample, select_topk


def logits(n: int, v: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * 2


def test_excluded_units_are_the_tail() -> None:
    logits_NV = logits(50, 5000)
    exclude_V = torch.zeros(5000, dtype=torch.bool)
    exclude_V[logits_NV[0].topk(3).indices] = True
    gold_N = torch.full((50,), int(logits_NV[0].argmax()))
    rows = select_topk(logits_NV, gold_N, k=8, exclude_V=exclude_V)
    logp_NV = torch.log_softmax(logits_NV.double(), 1).numpy()
    assert not exclude_V.numpy()[rows.ids_NK].any()
    assert (rows.gold_N == -1).all()
    for n in range(50):
        candidates = np.where(exclude_V.numpy(), -np.inf, logp_NV[n])
        np.testing.assert_array_equal(rows.ids_NK[n], np.argsort(-candidates)[:8])
        np.testing.assert_allclose(rows.logp_NK[n], logp_NV[n, rows.ids_NK[n]], atol=1e-5)
        np.testing.assert_allclose(np.exp(rows.tail_N[n]), 1 - np.exp(logp_NV[n, rows.ids_NK[n]]).sum(), atol=1e-6)


def test_a_gold_unit_that_replaces_the_likeliest_does_not_disturb_the_sums() -> None:
    logits_NV = torch.zeros(1, 30)
    logits_NV[0, 3] = 200.0
    rows = select_topk(logits_NV, torch.tensor([5]), k=1)
    assert rows.ids_NK.tolist() == [[5]]
    np.testing.assert_allclose(rows.gold_logp_N, [-200.0], rtol=1e-6)
    np.testing.assert_allclose(rows.tail_N, [0.0], atol=1e-6)


def test_draws_follow_the_distribution() -> None:
    logits_NV = logits(1, 40).repeat(4000, 1)
    exclude_V = torch.zeros(40, dtype=torch.bool)
    exclude_V[7] = True
    uniform_NK = torch.rand(4000, 25, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = select_sample(logits_NV, torch.zeros(4000, dtype=torch.long), uniform_NK, exclude_V=exclude_V)
    assert rows.count_NK is not None
    assert (rows.count_NK.sum(1) == 25).all()
    drawn_V = np.bincount(rows.ids_NK.ravel(), weights=rows.count_NK.ravel(), minlength=40) / 1e5
    p_V = torch.softmax(logits_NV[0].masked_fill(exclude_V, float("-inf")).double(), 0).numpy()
    assert drawn_V[7] == 0
    np.testing.assert_allclose(drawn_V, p_V, atol=5 * np.sqrt(0.25 / 1e5))


def test_drawn_rows_hold_distinct_units_with_true_probabilities() -> None:
    logits_NV = logits(60, 300, 3)
    uniform_NK = torch.rand(60, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = select_sample(logits_NV, torch.arange(60), uniform_NK, temperatures=(2.0,))
    again = select_sample(logits_NV[7:9], torch.arange(7, 9), uniform_NK[7:9])
    logp_NV = torch.log_softmax(logits_NV.double(), 1).numpy()
    assert rows.count_NK is not None
    for n in range(60):
        kept = rows.count_NK[n] > 0
        ids = rows.ids_NK[n][kept]
        assert len(set(ids.tolist())) == len(ids)
        assert (rows.logp_NK[n][1:] <= rows.logp_NK[n][:-1]).all()
        np.testing.assert_allclose(rows.logp_NK[n][kept], logp_NV[n, ids], atol=1e-5)
        np.testing.assert_allclose(np.exp(rows.tail_N[n]) + np.exp(logp_NV[n, ids]).sum(), 1, atol=1e-5)
        np.testing.assert_allclose(rows.lse_NJ[n, 0], np.log(np.exp(logp_NV[n] / 2).sum()), atol=1e-4)
        assert np.isneginf(rows.logp_NK[n][~kept]).all()
    np.testing.assert_array_equal(again.ids_NK, rows.ids_NK[7:9])
