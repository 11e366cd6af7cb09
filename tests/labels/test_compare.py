"""Comparing two teachers."""

from pathlib import Path

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.labels.ops import compare, kl
from hkd.sparse import TopK
from hkd.testing.store import inventory, random_rows, random_topk, spec_for, write_store


def dense(topk: TopK) -> np.ndarray:  # type: ignore[type-arg]
    full = np.zeros(topk.ids_NK.shape)
    np.put_along_axis(full, topk.ids_NK.astype(np.int64), topk.logp_NK.astype(np.float64), 1)
    return full


def test_kl_of_dense_rows_is_the_divergence() -> None:
    spec = spec_for(20, k=20)
    rng = np.random.default_rng(0)
    a, b = random_topk(spec, 50, rng), random_topk(spec, 50, rng)
    p, q = dense(a), dense(b)
    np.testing.assert_allclose(kl(a, b, 20), (np.exp(p) * (p - q)).sum(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [4, 20])
def test_a_store_is_no_distance_from_itself(tmp_path: Path, k: int) -> None:
    spec = spec_for(20, k=k)
    write_store(tmp_path / "a", spec, random_rows(spec, [9, 0, 40]))
    found = compare(tmp_path / "a", tmp_path / "a")
    assert found["kl_ab"] == pytest.approx(0, abs=2e-3)  # tails are float16, rows do not sum to one exactly
    assert (found["top1_agreement"], found["topk_overlap"], found["positions"]) == (1.0, 1.0, 49)


def test_two_teachers(tmp_path: Path) -> None:
    spec = spec_for(20, k=20)
    write_store(tmp_path / "a", spec, random_rows(spec, [9, 0, 40], seed=1))
    write_store(tmp_path / "b", spec, random_rows(spec, [9, 0, 40, 7], seed=2))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found["kl_ab"] > 0.1
    assert found["kl_ba"] > 0.1
    assert found["top1_agreement"] < 0.5
    assert (found["only_in_a"], found["only_in_b"]) == (0, 1)
    write_store(tmp_path / "c", spec_for(20, k=20, inventory=inventory(21)), random_rows(spec_for(21, k=20), [9]))
    with pytest.raises(UserError, match="one unit inventory"):
        compare(tmp_path / "a", tmp_path / "c")
