"""What encoders read: the lengths of all kinds are the same, and the values those of transformers' own extractors."""

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.features.fbank import log_mel
from hkd.features.front_end import FrontEnd
from hkd.native import import_torchaudio
from hkd.timebase import samples_to_frames

import_torchaudio()
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor  # noqa: E402

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
