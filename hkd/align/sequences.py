"""Alignment → unit sequences with the word of each unit: what text gives (`hkd.units.sequences`), here as it was spoken."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Tier, UtteranceAlignment, positions


def word_of_frames(word_tier: Tier, frame_U: NDArray[np.int32]) -> NDArray[np.int32]:
    """For each frame the index of the word that it lies in, −1 in silence."""
    segment_U = np.searchsorted(word_tier.start_U1, frame_U, side="right") - 1
    return word_tier.unit_U[segment_U].astype(np.int32)


def aligned_to_units(
    utterance: UtteranceAlignment, level: str, silence_ids: Iterable[int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(unit_U, word_U) of an aligned level, silence left out, one position a segment. Raises KeyError for a level that is not aligned."""
    found = positions(utterance.tiers[level], silence_ids)
    return found.unit_U, word_of_frames(utterance.word_tier, found.start_U)
