"""Features against Kaldi's recipe computed once more in NumPy, and the frame count against the one rounding rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hkd.audio import import_torchaudio
from hkd.errors import UserError
from hkd.features.fbank import FrontEnd, log_mel
from hkd.timebase import samples_to_frames

import_torchaudio()
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor  # noqa: E402


def kaldi_fbank(wave_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kaldi's compute-fbank-feats (feature-window.cc, mel-computations.cc) in NumPy: dither 0, snip_edges false, 80
    bins."""
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


# ----------------------------------------------------------------------------------------------------
# What encoders read: the lengths of all kinds are the same, and the values those of transformers' own extractors.


WHISPER = FrontEnd(kind="whisper")
WAVE = FrontEnd(kind="wave", num_bins=160, normalise=True)


@pytest.mark.parametrize("front_end", [FrontEnd(), WHISPER, WAVE], ids=lambda front_end: front_end.kind)
@pytest.mark.parametrize("num_samples", [1, 159, 160, 399, 16_077])
def test_every_kind_has_a_row_every_10_ms(front_end: FrontEnd, num_samples: int) -> None:
    x_TF = front_end(np.linspace(-0.5, 0.5, num_samples, dtype=np.float32))
    assert x_TF.shape == (samples_to_frames(num_samples), front_end.num_bins)
    assert x_TF.dtype == np.float32
    assert np.isfinite(x_TF).all()


def test_the_values_are_those_of_transformers() -> None:
    wave_S = np.random.default_rng(0).normal(0.01, 0.1, 16_077).astype(np.float32)
    np.testing.assert_array_equal(FrontEnd()(wave_S), log_mel(wave_S).numpy())
    theirs = WhisperFeatureExtractor()(wave_S, sampling_rate=16_000, return_tensors="np").input_features[0, :, :100].T
    np.testing.assert_allclose(WHISPER(wave_S), theirs, atol=1e-6)
    theirs = Wav2Vec2FeatureExtractor()(wave_S, sampling_rate=16_000, return_tensors="np").input_values[0, :16_000]
    np.testing.assert_allclose(WAVE(wave_S).ravel(), theirs, atol=2e-5)
    np.testing.assert_array_equal(FrontEnd(kind="wave", num_bins=160)(wave_S).ravel(), wave_S[:16_000])


def test_silence_is_what_the_encoder_fills_in() -> None:
    wave_S = np.zeros(32_000, np.float32)
    wave_S[:16_000] = np.random.default_rng(0).normal(0, 0.1, 16_000)
    x_TF = WHISPER(wave_S)
    np.testing.assert_allclose(x_TF[105:], x_TF.max() - 2, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    for wrong in ({"kind": "mfcc"}, {"kind": "wave", "num_bins": 80}, {"num_bins": 0}):
        with pytest.raises(UserError, match="front_end"):
            FrontEnd(**wrong)  # type: ignore[arg-type]
    for front_end in (WHISPER, WAVE):
        with pytest.raises(ValueError, match="at least one sample"):
            front_end(np.zeros(0, np.float32))
