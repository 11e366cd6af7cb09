"""The compiled codec: log-probabilities ⇄ codes, numbers ⇄ bytes, runs → batches; what cannot be right is seen before
it is used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hkd.labels import kernels
from hkd.labels.codec import decode, encode, gather
from hkd.labels.format import StoreSpec
from hkd.sparse import TopK
from hkd.testing.store import logps, random_topk, spec_for


def there_and_back(spec: StoreSpec, logp_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    n, k = logp_NK.shape
    ids_NK, none_N = np.tile(np.arange(k, dtype=np.int32), (n, 1)), np.full(n, -1, np.int32)
    wanted = TopK(ids_NK=ids_NK, logp_NK=logp_NK, tail_N=logp_NK[:, 0], gold_N=none_N, gold_logp_N=logp_NK[:, 0])
    offset_B1 = np.array([0, n], np.int64)
    decoded = decode(spec, encode(spec, [wanted], none_N, offset_B1), offset_B1)
    found, word_N = gather(spec, [decoded], np.array([[0, 0, n, 0]]), n)
    np.testing.assert_array_equal(found.ids_NK, ids_NK)
    np.testing.assert_array_equal(word_N, none_N)
    return found.logp_NK


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["grid", "f16"]), st.sampled_from([1 / 64, 1 / 16, 0.1, 0.5]))
def test_any_log_probability_stays_within_the_bound(data: st.DataObject, codec: str, step: float) -> None:
    spec = spec_for(codec=codec, step=step, k=5)
    logp = data.draw(logps((4, 5)))
    back = there_and_back(spec, logp)
    np.testing.assert_array_equal(np.isinf(back), np.isinf(logp))
    finite = np.isfinite(logp)
    bound = spec.error_bound["absolute"] + spec.error_bound["relative"] * np.abs(logp[finite])
    assert (np.abs(back[finite].astype(np.float64) - logp[finite]) <= bound).all()
    assert not np.signbit(back[back == 0]).any()


def test_f16_gives_exactly_numpys_float16() -> None:
    """Every half, what lies between two of them, and many more."""
    half = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (half.view(np.uint32) + np.uint32(0x1000)).view(np.float32)[:-1]
    many = (10 ** np.random.default_rng(0).uniform(-9, 4.8, 10_000)).astype(np.float32)
    value = -np.concatenate([half, between, many, [np.float32(np.inf)]]).astype(np.float32)
    value = np.resize(value, (len(value) // 5, 5))
    back = there_and_back(spec_for(k=5, codec="f16"), value)
    np.testing.assert_array_equal(back, value.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("step", [1 / 64, 0.1])
def test_grid_gives_exactly_numpys_rounding(step: float) -> None:
    random = np.random.default_rng(0)
    value = -np.concatenate([random.exponential(10, 20_000), random.uniform(0, 65534 * step, 20_000)]).astype(
        np.float32
    )
    value[:1000] = -(np.arange(1000) + 0.5) * step  # ties
    expected = np.rint(value * np.float32(-1 / step)) * np.float32(-step)
    np.testing.assert_array_equal(there_and_back(spec_for(k=5, step=step), value.reshape(-1, 5)).reshape(-1), expected)


@pytest.mark.parametrize("codec", ["grid", "f16"])
def test_very_small_probabilities_stay_finite(codec: str) -> None:
    spec = spec_for(codec=codec, k=5)
    back = there_and_back(spec, np.array([[-1e3, -1e4, -1e5, -3e38, -np.inf]], np.float32))
    assert np.isinf(back).tolist() == [[False, False, False, False, True]]
    assert back[0, 3] == -np.float32(spec.error_bound["lowest"])


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 300])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 9, 64])
def test_bytes_are_those_of_the_specification(n: int, k: int) -> None:
    """Rows in any order, more and fewer than a tile; ids of two and of four bytes."""
    random = np.random.default_rng(n * 100 + k)
    spec = spec_for(70, codec="f16", k=k)
    topk = random_topk(spec, n, random)
    logp_NK = topk.logp_NK[:, random.permutation(k)]
    ids_NK = random.integers(0, 2**31 - 2, (n, k)).astype(np.int32)
    unit_ANK = np.empty((4, n, k), np.uint8)
    row_2N = ids_NK.ctypes.data + 4 * k * np.arange(n) * np.ones((2, 1), np.int64)
    assert kernels.split_ids(row_2N, 2**31 - 2, unit_ANK)
    np.testing.assert_array_equal(unit_ANK, [(ids_NK >> (8 * a)) & 255 for a in range(4)])
    found = np.empty((n, k), np.uint32)
    for a in (0, 2):
        largest = kernels.join_ids(unit_ANK[a], unit_ANK[a + 1], 8 * a, found)
    np.testing.assert_array_equal(found, ids_NK)
    assert largest == ids_NK.max(initial=0)
    code_NK = (-logp_NK).astype(np.float16).view(np.uint16).astype(np.int64)
    step_KN = np.diff(code_NK, axis=1, prepend=0).T % 65536
    changed = TopK(
        ids_NK=topk.ids_NK, logp_NK=logp_NK, tail_N=topk.tail_N, gold_N=topk.gold_N, gold_logp_N=topk.gold_logp_N
    )
    planes = encode(spec, [changed], np.zeros(n, np.int32), np.array([0, n]))
    np.testing.assert_array_equal(planes["code.0"], step_KN & 255)
    np.testing.assert_array_equal(planes["code.1"], step_KN >> 8)
    decoded = decode(spec, planes, np.array([0, n]))
    np.testing.assert_array_equal(decoded.code_NK, code_NK)


def test_what_lies_outside_is_seen_before_it_is_used() -> None:
    unit_NK, code_NK, narrow_WN = np.zeros((3, 2), np.uint16), np.zeros((3, 2), np.uint16), np.zeros((4, 3), np.int32)
    step, none_C, offset_B1 = np.float32(1), np.zeros(0, np.float32), np.array([0, 3], np.int64)

    def joined(rank: int, unit: int, offset_B1: NDArray[np.int64] = offset_B1) -> bool:
        ranks, units = (np.full(3, number, "<u4").view(np.uint8).reshape(3, 4).T.copy() for number in (rank, unit))
        two, four = np.zeros((2, 3), np.uint8), np.zeros((4, 3), np.uint8)
        byte_RN = np.concatenate([two, ranks, units, two, four])
        return bool(kernels.join_narrow(unit_NK, code_NK, byte_RN, offset_B1, kernels.GRID, step, none_C, 5, narrow_WN))

    assert [joined(*pair) for pair in ((0, 5), (2, 0), (3, 0), (2**32 - 1, 0), (0, 6), (0, 2**32 - 1))] == [
        True,
        True,
    ] + 4 * [False]
    assert [joined(0, 0, np.array([0, *more])) for more in ((3, 2), (4,), (-1, 3), (2**62,))] == [False] * 4
    block_14 = np.array([[*(array.ctypes.data for array in (unit_NK, code_NK, narrow_WN)), 3]])
    ids_MK, logp_MK, narrow_WM = np.empty((4, 2), np.int32), np.empty((4, 2), np.uint32), np.empty((4, 4), np.int32)

    def gathered(start: int, stop: int, place: int, block: int = 0) -> bool:
        runs = np.array([[block, start, stop, place]], np.int64)
        return bool(kernels.gather(block_14, runs, 2, kernels.GRID, step, none_C, ids_MK, logp_MK, narrow_WM))

    far = 2**62
    assert gathered(0, 3, 1)
    assert gathered(far, far, 0)  # nothing at all
    for run in (
        (0, 4, 0),
        (-1, 1, 0),
        (2, 1, 0),
        (0, 3, 2),
        (0, 1, -1),
        (far, far + 1, 0),
        (0, 1, far),
        (-far, far, 0),
    ):
        assert not gathered(*run)
    assert not any(gathered(0, 1, 0, block) for block in (1, -1, far))


@pytest.mark.slow
@pytest.mark.parametrize("writable", [True, False])
def test_they_work_where_the_library_cannot_be_written(tmp_path: Path, writable: bool) -> None:
    """Where no folder is writable they are compiled by each process."""
    home, library = tmp_path / "home", tmp_path / "library"
    home.mkdir()
    shutil.copytree(Path(kernels.__file__).parents[1], library / "hkd", ignore=shutil.ignore_patterns("__pycache__"))
    (library / "hkd/labels/__pycache__").write_text("in the way")  # root writes into any folder
    environment = os.environ | {"PYTHONPATH": str(library), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["XDG_CACHE_HOME"] = str(home / "cache")
    if not writable:
        (home / "cache").write_text("in the way")
    code = (
        "import hkd.labels.kernels as k, numpy as n; print(k.split_ids(n.zeros((2, 0), n.int64), 1, n.empty((2, 0, 1), "
        "n.uint8)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["True"]
    assert bool(list((home / "cache").rglob("*.nbi"))) is writable
