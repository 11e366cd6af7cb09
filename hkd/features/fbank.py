"""Log-mel filterbank features as Kaldi computes them: 80 bins, Povey window of 25 ms, every 10 ms, no dither.

Samples are taken at 16-bit scale, frames centred (`snip_edges` false), and there are exactly `timebase.samples_to_frames` of them.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.errors import HkdError
from hkd.native import import_torchaudio
from hkd.timebase import HOP_SAMPLES, SAMPLE_RATE_HZ, samples_to_frames

NUM_BINS = 80
WINDOW_SAMPLES = 400
INT16_SCALE = 32768.0


@cache
def _kaldi() -> Any:
    torchaudio = import_torchaudio()
    if torchaudio is None:
        raise HkdError("features need the package torchaudio, which is not installed. Run: pip install torchaudio")
    return torchaudio.compliance.kaldi


def log_mel(wave_S: NDArray[np.float32] | torch.Tensor, *, num_bins: int = NUM_BINS) -> torch.Tensor:
    """x_TF (float32) of a 16 kHz signal in [-1, 1]; T = samples_to_frames(S). Shorter than a window, the signal is padded with zeros.

    Raises ValueError for an empty signal or one with more than one axis.
    """
    wave_S = torch.as_tensor(wave_S, dtype=torch.float32)
    if wave_S.ndim != 1 or wave_S.numel() == 0:
        raise ValueError(f"wave_S must have one axis and at least one sample, but has the shape {tuple(wave_S.shape)} instead")
    num_frames = samples_to_frames(wave_S.numel())
    if wave_S.numel() < WINDOW_SAMPLES:
        wave_S = torch.nn.functional.pad(wave_S, (0, WINDOW_SAMPLES - wave_S.numel()))
    x_TF: torch.Tensor = _kaldi().fbank(
        wave_S[None] * INT16_SCALE,
        num_mel_bins=num_bins,
        sample_frequency=float(SAMPLE_RATE_HZ),
        frame_length=1000 * WINDOW_SAMPLES / SAMPLE_RATE_HZ,
        frame_shift=1000 * HOP_SAMPLES / SAMPLE_RATE_HZ,
        dither=0.0,
        snip_edges=False,
    )
    return x_TF[:num_frames]
