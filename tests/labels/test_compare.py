"""Comparing two teachers."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.labels.ops import compare, folded, kl
from hkd.labels.store import LabelReader
from hkd.sparse import TopK
from hkd.testing.store import inventory, random_rows, random_topk, spec_for, write_store
from hkd.units.inventory import MONOPHONE, SENONE
from hkd.units.tying import StateTying
from kit.labelled import label_folder


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


def test_mass_folds_as_a_dense_sum_says() -> None:
    phone_of_V = np.random.default_rng(0).integers(0, 7, 40).astype(np.int32)
    spec = spec_for(40, k=40)
    rows = random_topk(spec, 30, np.random.default_rng(1))
    dense_NV = np.exp(dense(rows))
    wanted_NQ = np.stack([dense_NV[:, phone_of_V == phone].sum(1) for phone in range(7)], 1)
    found = folded(rows, phone_of_V, 7)
    np.testing.assert_allclose(np.exp(dense(found)), wanted_NQ, rtol=1e-5)
    few = folded(random_topk(spec_for(40, k=3), 30, np.random.default_rng(1)), phone_of_V, 7)
    np.testing.assert_allclose(np.exp(few.logp_NK).sum(1), 1, rtol=1e-5)
    assert np.isfinite(few.logp_NK).all()  # the tail is shared out


def test_senones_fold_to_the_phones_of_their_transcript(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "p")
    label_folder(tmp_path / "p", levels=(SENONE, MONOPHONE), k={SENONE: 8, MONOPHONE: 42})
    fine, coarse = (tmp_path / "p" / "shards" / level for level in (SENONE, MONOPHONE))
    found = compare(fine, coarse, tying=StateTying())
    assert found["utterances"] == len(LabelReader.open(fine))
    assert found["positions"] == LabelReader.open(fine).length_B.sum()
    assert found["top1_agreement"] > 0.5  # both made-up teachers are mostly sure of the reference
    assert 0 < found["kl_ab"] < 10
    with pytest.raises(UserError, match="senones and the phones of the project"):
        compare(coarse, fine, tying=StateTying())
