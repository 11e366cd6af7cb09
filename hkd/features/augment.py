"""Augmentation, seeded by (seed, epoch, utterance): neither batch composition nor the number of processes changes it.

- Speed perturbation (Ko et al. 2015): the sound is resampled; boundaries move by `timebase.retime`.
- SpecAugment (Park et al. 2019) without time warping, which would tear labels from frames: masked bins and frames get
  the corpus' mean, which the model's own normalisation turns into zero. Time masks are shares of the utterance
  (adaptive, Park et al. 2020).
- Noise: white, at a signal-to-noise ratio drawn from a range.

Shape letters: S samples, T frames, F bins.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from hkd.errors import check_setting, check_settings
from hkd.timebase import SAMPLE_RATE_HZ


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What is done to training utterances. Empty speeds mean (1.0,)."""

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # one is drawn an utterance and epoch; empty: (1.0,)
    freq_masks: int = 2  # masks of SpecAugment over frequency
    freq_width: int = 27  # bins a mask at most
    time_masks: int = 5  # masks of SpecAugment over time
    time_share: float = 0.05  # of the utterance's frames a mask at most
    noise_probability: float = 0.0  # that an utterance gets white noise
    noise_snr_db: tuple[float, float] = (10.0, 30.0)  # lowest and highest ratio of signal to noise

    def __post_init__(self) -> None:
        fits = all(0.5 <= speed <= 2 for speed in self.speeds)
        check_setting("`speeds`", self.speeds, "lie between 0.5 and 2", fits)
        check_settings(self, "freq_masks freq_width time_masks", "not be negative", lambda value: value >= 0)
        check_settings(self, "time_share noise_probability", "lie between 0 and 1", lambda value: 0 <= value <= 1)
        snr = list(self.noise_snr_db)
        fits = len(snr) == 2 and -math.inf < snr[0] <= snr[1] < math.inf
        check_setting("`noise_snr_db`", snr, "be the lowest and the highest ratio in dB", fits)


NO_AUGMENTATION = AugmentConfig(speeds=(1.0,), freq_masks=0, time_masks=0)


def generator(seed: int, epoch: int, utterance_id: str) -> np.random.Generator:
    """The random numbers of one utterance in one epoch; the same on every machine."""
    name = int.from_bytes(hashlib.sha256(utterance_id.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, name))))


def draw_speed(config: AugmentConfig, random: np.random.Generator) -> float:
    """One of the speeds. Draw it first of all: what follows then depends on it alone."""
    return config.speeds[int(random.integers(len(config.speeds)))] if config.speeds else 1.0


def change_speed(wave_S: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """The sound played `speed` times as fast (pitch moves too), at the same sample rate."""
    if speed == 1:
        return wave_S
    return np.ascontiguousarray(soxr.resample(wave_S, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ, quality="HQ"), np.float32)


def add_noise(wave_S: NDArray[np.float32], config: AugmentConfig, random: np.random.Generator) -> NDArray[np.float32]:
    """With noise_probability, white noise at a ratio (dB) drawn evenly from noise_snr_db. Silence stays silent."""
    if random.random() >= config.noise_probability:
        return wave_S
    snr_db = random.uniform(*config.noise_snr_db)
    power = float(np.mean(wave_S.astype(np.float64) ** 2)) / 10 ** (snr_db / 10)
    noise_S = random.standard_normal(len(wave_S)) * np.sqrt(power)
    return np.asarray(wave_S + noise_S, np.float32)


def spec_augment(
    x_TF: NDArray[np.float32], config: AugmentConfig, random: np.random.Generator, *, fill_F: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A copy with masked bins and frames set to `fill_F`."""
    x_TF = x_TF.copy()
    num_frames, num_bins = x_TF.shape
    for _ in range(config.freq_masks):
        width = int(random.integers(min(config.freq_width, num_bins) + 1))
        start = int(random.integers(num_bins - width + 1))
        x_TF[:, start : start + width] = fill_F[start : start + width]
    for _ in range(config.time_masks):
        width = int(random.integers(int(config.time_share * num_frames) + 1))
        start = int(random.integers(num_frames - width + 1))
        x_TF[start : start + width] = fill_F
    return x_TF
