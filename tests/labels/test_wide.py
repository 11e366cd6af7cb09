"""The wide planes: log-probabilities ⇄ codes, numbers ⇄ bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.labels.wide import from_code, join_bytes, join_codes, minus_codes, split_codes, split_numbers, to_code
from hkd.testing.store import logps, spec_for


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["grid", "f16"]), st.sampled_from([1 / 64, 1 / 16, 0.5]))
def test_any_log_probability_stays_within_the_bound(data: st.DataObject, codec: str, step: float) -> None:
    spec = spec_for(codec=codec, step=step)
    logp = data.draw(logps((4, 5)))
    back = from_code(spec, to_code(spec, logp))
    np.testing.assert_array_equal(np.isinf(back), np.isinf(logp))
    finite = np.isfinite(logp)
    bound = spec.error_bound["absolute"] + spec.error_bound["relative"] * np.abs(logp[finite])
    assert (np.abs(back[finite].astype(np.float64) - logp[finite]) <= bound).all()
    assert not np.signbit(back[back == 0]).any()


def test_f16_gives_exactly_numpys_float16() -> None:
    every = np.arange(0, 0x7C01, dtype=np.uint16).view(np.float16)
    logp = -every.astype(np.float32)
    spec = spec_for(codec="f16")
    np.testing.assert_array_equal(from_code(spec, to_code(spec, logp)), logp)
    rng = np.random.default_rng(0)
    values = -(10 ** rng.uniform(-9, 4.8, 10_000)).astype(np.float32)
    np.testing.assert_array_equal(from_code(spec, to_code(spec, values)), values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("codec", ["grid", "f16"])
def test_very_small_probabilities_stay_finite(codec: str) -> None:
    spec = spec_for(codec=codec)
    logp = np.array([[-1e3, -1e4, -1e5, -3e38, -np.inf]], np.float32)
    back = from_code(spec, to_code(spec, logp))
    assert np.isinf(back).tolist() == [[False, False, False, False, True]]
    assert back[0, 3] == -spec.error_bound["lowest"]


@pytest.mark.parametrize("codec", ["grid", "f16"])
@pytest.mark.parametrize(("n", "k", "spread"), [(700, 3, 5.0), (600, 9, 1e-3), (90, 3000, 0.01), (1, 4, 1.0), (0, 4, 1.0)])
def test_codes_come_back_from_their_planes(codec: str, n: int, k: int, spread: float) -> None:
    """More rows than are transposed at once, more values than a piece has, steps with and without high bytes."""
    rng = np.random.default_rng(0)
    logp_NK = -np.cumsum(rng.exponential(spread, (n, k)), axis=1).astype(np.float32)
    logp_NK[: n // 3, 0] = 0
    spec = spec_for(codec=codec)
    low_KN, high_KN = np.empty((k, n), np.uint8), np.empty((k, n), np.uint8)
    split_codes(spec, logp_NK, low_KN, high_KN)
    np.testing.assert_array_equal(join_codes(low_KN, high_KN), to_code(spec, logp_NK))


@pytest.mark.parametrize("largest", [0, 7, 32767, 32768, 65534, 65535])
def test_codes_with_their_sign(largest: int) -> None:
    spec, code = spec_for(), np.array([[0, largest // 2, largest], [0, 0, 1]], np.uint16)
    steps = minus_codes(code.copy())
    assert steps.dtype == (np.int16 if largest < 32768 else np.float32)
    logp = steps.astype(np.float32) * np.float32(spec.step)
    np.testing.assert_array_equal(logp, from_code(spec, code))
    assert not np.signbit(logp[code == 0]).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 400), st.integers(1, 5), st.sampled_from([2, 4]))
def test_numbers_come_back_from_their_bytes(n: int, k: int, size: int) -> None:
    number_NK = np.random.default_rng(0).integers(0, 1 << (8 * size - 1), (n, k)).astype(np.int32)
    planes = [np.empty((n, k), np.uint8) for _ in range(size)]
    split_numbers(number_NK, planes)
    found = join_bytes(planes[0], planes[1], np.empty((n, k), np.uint32))
    if size == 4:
        found |= join_bytes(planes[2], planes[3], np.empty((n, k), np.uint32)) << 16
    np.testing.assert_array_equal(found, number_NK)
