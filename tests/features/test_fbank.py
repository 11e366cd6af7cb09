"""Features against Kaldi's recipe computed once more in NumPy, and the frame count against the one rounding rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hkd.features.fbank import log_mel
from hkd.timebase import samples_to_frames


def kaldi_fbank(wave_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kaldi's compute-fbank-feats (feature-window.cc, mel-computations.cc) in NumPy: dither 0, snip_edges false, 80 bins."""
    size, shift, padded = 400, 160, 512
    num_frames = (len(wave_S) + shift // 2) // shift
    wave_S = wave_S * 32768
    hz_of_bin = np.arange(padded // 2) * 16000 / padded
    mel = 1127 * np.log(1 + hz_of_bin / 700)
    low, high = 1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700)
    edges = low + (high - low) / 81 * np.arange(82)
    up = (mel - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - mel) / (edges[2:] - edges[1:-1])[:, None]
    weights = np.maximum(0, np.minimum(up, down))
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))) ** 0.85
    rows = []
    for t in range(num_frames):
        index = np.arange(size) + t * shift + shift // 2 - size // 2
        index = np.where(index < 0, -index - 1, index)
        index = np.where(index >= len(wave_S), 2 * len(wave_S) - 1 - index, index)
        frame = wave_S[index]
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, padded)) ** 2
        rows.append(np.log(np.maximum(weights @ power[:-1], np.finfo(np.float32).eps)))
    return np.array(rows)


def test_equals_kaldis_recipe() -> None:
    random = np.random.default_rng(0)
    wave_S = (random.standard_normal(8000) * 0.1 + 0.3 * np.sin(np.arange(8000) * 0.1)).astype(np.float32)
    x_TF = log_mel(wave_S).numpy()
    expected = kaldi_fbank(wave_S.astype(np.float64))[: len(x_TF)]
    np.testing.assert_allclose(x_TF, expected, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4000))
def test_there_are_as_many_frames_as_the_rounding_rule_says(num_samples: int) -> None:
    x_TF = log_mel(np.linspace(-0.5, 0.5, num_samples, dtype=np.float32))
    assert x_TF.shape == (samples_to_frames(num_samples), 80)
    assert bool(torch.isfinite(x_TF).all())


@pytest.mark.parametrize("shape", [(0,), (2, 1600)])
def test_what_is_no_signal_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one axis and at least one sample"):
        log_mel(np.zeros(shape, np.float32))
