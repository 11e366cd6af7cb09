"""What an encoder reads: sound → x_TF, a row each 10 ms whatever the kind, so that all count alike; its augmentation.

- `log-mel`: Kaldi's filterbank for hkd's own encoder, which normalises it: 80 bins, Povey window of 25 ms, no dither,
  samples at 16-bit scale, frames centred (`snip_edges` false), exactly `timebase.samples_to_frames` of them.
- `wave`: the sound itself, 160 samples a row, for encoders of transformers that begin with convolutions over samples;
  an utterance is brought to mean 0 and variance 1 where the encoder was trained so.
- `whisper`: Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2), scaled by the utterance's own maximum.
- `upstream`: what a frozen encoder of transformers makes of its own features (hkd.features.pretrained).
- Augmentation is seeded by (seed, epoch, utterance): neither batch composition nor the number of processes changes it.
- Speed perturbation (Ko et al. 2015): the sound is resampled; boundaries move by `timebase.retime`.
- SpecAugment (Park et al. 2019) without time warping, which would tear labels from frames: masked bins and frames get
  the corpus' mean, which the model's own normalisation turns into zero. Time masks are shares of the utterance
  (adaptive, Park et al. 2020).
- Noise: white, at a signal-to-noise ratio drawn from a range.

Shape letters: S samples, T frames, F bins or values a frame.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from hkd.audio import import_torchaudio
from hkd.errors import HkdError, UserError, check_choice, check_setting, check_settings
from hkd.features.pretrained import WHISPER, Upstream
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


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 1 or not shape[0]:
        raise ValueError(f"wave_S must have one axis and at least one sample, but has the shape {shape} instead")


def log_mel(wave_S: NDArray[np.float32] | torch.Tensor, *, num_bins: int = NUM_BINS) -> torch.Tensor:
    """x_TF (float32) of a 16 kHz signal in [-1, 1]; T = samples_to_frames(S). Shorter than a window, the signal is
    padded with zeros. Raises ValueError for an empty signal or one with more than one axis."""
    wave_S = torch.as_tensor(wave_S, dtype=torch.float32)
    _check_shape(tuple(wave_S.shape))
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


VARIANCE_FLOOR = 1e-7  # as Wav2Vec2FeatureExtractor has it
WHISPER_WINDOW = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontEnd:
    """kind: log-mel | wave | whisper | upstream. normalise: of `wave` alone."""

    kind: str = "log-mel"
    num_bins: int = NUM_BINS  # F; the samples of a frame for `wave`
    normalise: bool = False
    upstream: Upstream | None = None

    def __post_init__(self) -> None:
        check_choice("front_end.kind", self.kind, ("log-mel", "wave", "whisper", "upstream"))
        if (self.upstream is not None) != (self.kind == "upstream"):
            rule = "must be given for the kind upstream alone"
            raise UserError(f"front_end.upstream {rule}, but the kind is '{self.kind}'.")
        fits = self.num_bins == HOP_SAMPLES if self.kind == "wave" else self.num_bins >= 1
        check_setting("front_end.num_bins", self.num_bins, f"be positive, and {HOP_SAMPLES} of a wave", fits)

    def __call__(self, wave_S: NDArray[np.float32]) -> NDArray[np.float32]:
        """x_TF of a 16 kHz signal in [-1, 1], T = samples_to_frames(S). Raises ValueError for an empty one."""
        if self.kind == "log-mel":
            x_TF: NDArray[np.float32] = log_mel(wave_S, num_bins=self.num_bins).numpy()
            return x_TF
        _check_shape(wave_S.shape)
        if self.upstream is not None:
            own = self.upstream.config
            mel = own.model_type == WHISPER
            return self.upstream(_whisper(wave_S, own.num_mel_bins) if mel else _wave(wave_S, self.upstream.normalise))
        return _wave(wave_S, self.normalise) if self.kind == "wave" else _whisper(wave_S, self.num_bins)

    def to_json(self) -> dict[str, Any]:
        """What a student's card says of its features."""
        value: dict[str, Any] = {"kind": self.kind, "num_bins": self.num_bins}
        value |= {"sample_rate_hz": SAMPLE_RATE_HZ, "hop_samples": HOP_SAMPLES}
        return value | self.key if self.kind in ("wave", "upstream") else value

    @property
    def key(self) -> dict[str, Any]:
        """All that its values depend on, besides the sound."""
        value: dict[str, Any] = {"kind": self.kind, "num_bins": self.num_bins}
        return value | ({"normalise": self.normalise} if self.upstream is None else {"upstream": self.upstream.digest})

    @property
    def num_parameters(self) -> int:
        """Of the upstream; none otherwise."""
        return self.upstream.num_parameters if self.upstream is not None else 0


def _wave(wave_S: NDArray[np.float32], normalise: bool) -> NDArray[np.float32]:
    if normalise:
        wave_S = (wave_S - wave_S.mean(dtype=np.float64)) / np.sqrt(wave_S.var(dtype=np.float64) + VARIANCE_FLOOR)
    num_samples = samples_to_frames(len(wave_S)) * HOP_SAMPLES
    whole_S = np.zeros(num_samples, np.float32)
    whole_S[: len(wave_S)] = wave_S[:num_samples]
    return whole_S.reshape(-1, HOP_SAMPLES)


@cache
def _extractor(num_bins: int) -> Any:
    import_torchaudio()
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=num_bins)  # type: ignore[no-untyped-call]


def _whisper(wave_S: NDArray[np.float32], num_bins: int) -> NDArray[np.float32]:
    """The first frames of what transformers gives for the utterance with silence after it, which the encoder adds."""
    num_frames = samples_to_frames(len(wave_S))
    padded_S = np.pad(np.asarray(wave_S, np.float32), (0, WHISPER_WINDOW))
    options: dict[str, Any] = {"padding": "longest", "truncation": False, "return_tensors": "np"}
    found = _extractor(num_bins)(padded_S, sampling_rate=SAMPLE_RATE_HZ, **options)
    return np.ascontiguousarray(found.input_features[0, :, :num_frames].T, np.float32)


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
