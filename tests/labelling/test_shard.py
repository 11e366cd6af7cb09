"""Figures of a teacher on what it labels."""

import numpy as np
import pytest
import torch

from hkd.labelling.dump import unigram_perplexity
from hkd.labels.card import calibration_error, figures, merge, quality_sums
from hkd.sparse import TopK
from hkd.topk import select_topk


def some(n: int, v: int, k: int, seed: int = 0) -> tuple[TopK, np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(n, v, generator=generator) * 3
    gold_N = torch.randint(0, v, (n,), generator=generator)
    return select_topk(logits_NV, gold_N, k=k), torch.log_softmax(logits_NV.double(), 1).numpy(), gold_N.numpy()


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    rows, logp_NV, gold_N = some(300, 40, 6)
    whole = quality_sums(rows)
    parts = merge([quality_sums(rows[:100]), quality_sums(rows[100:])])
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert parts[key] == pytest.approx(value)
    found = figures(whole)
    assert found["perplexity"] == pytest.approx(np.exp(-logp_NV[np.arange(300), gold_N].mean()), rel=1e-4)
    assert found["top1_hit_rate"] == pytest.approx((logp_NV.argmax(1) == gold_N).mean())
    in_five = (np.argsort(-logp_NV, 1)[:, :5] == gold_N[:, None]).any(1).mean()
    assert found["topk_hit_rate"] == pytest.approx(in_five)


def test_dense_rows_always_hit() -> None:
    rows, _, _ = some(50, 12, 12)
    assert figures(quality_sums(rows))["topk_hit_rate"] == 1.0


def test_calibration() -> None:
    generator = np.random.default_rng(0)
    n, v = 20_000, 5
    logits_NV = torch.from_numpy(generator.normal(size=(n, v)) * 2)
    p_NV = torch.softmax(logits_NV, 1).numpy()
    gold_N = torch.from_numpy((p_NV.cumsum(1) < generator.random((n, 1))).sum(1).clip(max=v - 1))
    honest = calibration_error(quality_sums(select_topk(logits_NV, gold_N, k=v)))
    boastful = calibration_error(quality_sums(select_topk(logits_NV * 3, gold_N, k=v)))
    assert honest is not None
    assert boastful is not None
    assert honest < 0.02
    assert boastful > 0.1
    assert calibration_error({}) is None


def test_the_unigram_leaves_out_the_position_itself() -> None:
    units = [np.array([0, 0, 1], np.int32), np.array([2, -1], np.int32)]
    flat = [0, 0, 1, 2]
    nll = [-np.log((flat.count(u) - 1 + 1) / (len(flat) - 1 + 9)) for u in flat]
    assert unigram_perplexity(units, 9) == pytest.approx(np.exp(np.mean(nll)))
    assert unigram_perplexity([np.array([3], np.int32)], 9) is None
