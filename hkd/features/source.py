"""Features of utterances at a speed, of whatever kind the encoder reads: computed when asked for, kept in memory up to a limit.

What is kept does not change what is given: features are a pure function of sound and speed. With noise nothing is kept.

Shape letters: T frames, F bins.
"""

import threading
from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.audio import read_audio
from hkd.errors import UserError
from hkd.features.augment import change_speed
from hkd.features.cache import FeatureCache
from hkd.features.front_end import FrontEnd
from hkd.manifest import Utterance

Features = NDArray[np.float32]  # x_TF


class FeatureSource:
    """Features, from memory where they are there. `max_bytes` bounds what is kept; the longest unused goes first."""

    def __init__(self, *, front_end: FrontEnd | None = None, max_bytes: int = 1 << 30, cache: FeatureCache | None = None) -> None:
        """cache: features on disk, filled; what lies there is not kept in memory."""
        self.front_end, self._cache = front_end or FrontEnd(), cache
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, float], Features] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def wave(self, utterance: Utterance, speed: float = 1.0) -> NDArray[np.float32]:
        """The sound at a speed, 16 kHz. Raises UserError where it cannot be read."""
        return change_speed(read_audio(utterance), speed)

    def compute(self, utterance: Utterance, speed: float = 1.0) -> Features:
        """x_TF, made anew. Raises UserError where the sound cannot be read, or the front end cannot read so much of it."""
        wave_S = self.wave(utterance, speed)
        try:
            return self.front_end(wave_S)
        except UserError as error:
            raise UserError(f"utterance '{utterance.id}': {error}") from None

    def __call__(self, utterance: Utterance, speed: float = 1.0) -> Features:
        """x_TF; not to be written to."""
        if self._cache is not None and (cached_TF := self._cache.get(utterance.id, speed)) is not None:
            return cached_TF
        key = (utterance.id, speed)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        x_TF = self.compute(utterance, speed)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = x_TF
                self._bytes += x_TF.nbytes
            while self._bytes > self._max_bytes and self._kept:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return x_TF

    def __reduce__(self) -> tuple[type["FeatureSource"], tuple[()], dict[str, object]]:
        return FeatureSource, (), {"front_end": self.front_end, "_max_bytes": self._max_bytes, "_cache": self._cache}


def mean_and_std(parts: "list[Features]") -> tuple[torch.Tensor, torch.Tensor]:
    """(mean_F, std_F) over all frames, summed in float64 in the given order."""
    count = sum(len(x_TF) for x_TF in parts)
    sum_F = np.sum([x_TF.sum(0, dtype=np.float64) for x_TF in parts], axis=0)
    mean_F = sum_F / count
    square_F = np.sum([((x_TF - mean_F) ** 2).sum(0, dtype=np.float64) for x_TF in parts], axis=0)
    return torch.from_numpy(mean_F.astype(np.float32)), torch.from_numpy(np.sqrt(square_F / count).astype(np.float32))
