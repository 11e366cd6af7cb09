"""The one rounding rule for time: seconds → samples → frames → slots.

- Seconds become samples by rounding half up, once, where a time enters hkd; from there on all is integers.
- Frames are 10 ms. An encoder frame covers `SUBSAMPLING` frames; a head with `slots` slots an encoder frame covers
  SUBSAMPLING / slots frames a slot, and a slot takes the label of its middle frame.
- An encoder of another frame rate has a whole number of frames in an encoder frame; sound is padded to come out even.
- Other tools' times become samples, and a boundary in samples the frame boundary nearest to it.
"""

import math

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 160
FRAME_SHIFT_S = HOP_SAMPLES / SAMPLE_RATE_HZ
SUBSAMPLING = 4


def seconds_to_samples(seconds: float, sample_rate_hz: int = SAMPLE_RATE_HZ) -> int:
    """Seconds → samples, rounded half up."""
    return math.floor(seconds * sample_rate_hz + 0.5)


def samples_to_frames(num_samples: int, hop_samples: int = HOP_SAMPLES) -> int:
    """Samples → whole 10 ms frames, at least one."""
    return max(1, num_samples // hop_samples)


def samples_to_boundaries(sample_U1: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times in samples → the nearest frame boundaries: floor(s / hop + 1/2). Monotone; neighbours may fall together."""
    return (2 * np.asarray(sample_U1, np.int64) + HOP_SAMPLES) // (2 * HOP_SAMPLES)


def foreign_boundaries(
    num_frames: int, num_samples: int, *, shift_samples: int, window_samples: int
) -> NDArray[np.int64]:
    """Where the T frames of another front end begin and end, T + 1 times in samples.

    Kaldi's kind of framing: with `snip_edges` frame t is a window that begins at t · shift, one every 10 ms, and its
    sound is said to lie around the window's middle; without, frame t is centred in [t, t + 1) · shift. T tells which of
    the two it was. Frames of a front end that is subsampled (20, 30 or 40 ms) begin as those of 10 ms do.
    """
    ratio = max(1, shift_samples // HOP_SAMPLES)
    snipped = -(-max(0, 1 + (num_samples - window_samples) // HOP_SAMPLES) // ratio)
    whole = -(-((num_samples + HOP_SAMPLES // 2) // HOP_SAMPLES) // ratio)
    is_snipped = abs(num_frames - snipped) <= abs(num_frames - whole)  # where both would do: Kaldi's default
    edge = (window_samples - HOP_SAMPLES) // 2 if is_snipped else 0
    return np.arange(num_frames + 1, dtype=np.int64) * shift_samples + edge


def retime(boundary: NDArray[np.int64], speed: float) -> NDArray[np.int64]:
    """Frame boundaries of sound `speed` times as fast: floor(f / speed + 1/2). Monotone (segments stay contiguous)."""
    return np.floor(np.asarray(boundary, np.float64) / speed + 0.5).astype(np.int64)


def num_encoder_frames(num_frames: int) -> int:
    """10 ms frames → encoder frames of 40 ms: ceil(T / SUBSAMPLING)."""
    return -(-num_frames // SUBSAMPLING)


def covering_samples(num_frames: int, *, shift_samples: int, window_samples: int) -> int:
    """The samples that convolutions without padding turn into exactly so many frames of shift_samples each."""
    return (num_frames - 1) * shift_samples + window_samples


def slot_middles(num_frames: int, slots: int) -> NDArray[np.int64]:
    """The 10 ms frame in the middle of each of the num_encoder_frames(num_frames) · slots slots; may lie past the end.

    Raises ValueError where `slots` does not divide SUBSAMPLING.
    """
    if SUBSAMPLING % slots:
        raise ValueError(f"slots must divide {SUBSAMPLING}, but is {slots} instead")
    width = SUBSAMPLING // slots
    return np.arange(num_encoder_frames(num_frames) * slots, dtype=np.int64) * width + width // 2
