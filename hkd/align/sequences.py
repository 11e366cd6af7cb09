"""Alignment → unit sequences with the word of each unit: what text gives (`hkd.units.sequences`), here as it was spoken."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, Tier, UtteranceAlignment, positions
from hkd.units.level import MONOPHONE


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


def pronunciations(alignment: Alignment) -> dict[str, list[tuple[str, ...]]]:
    """How each word was said, the usual way first: a lexicon of what was aligned. Words that were noise alone are left out."""
    counts: dict[str, Counter[tuple[str, ...]]] = {}
    symbols = alignment.inventories[MONOPHONE].symbols
    for name in alignment:
        row = alignment[name]
        unit_U, word_U = aligned_to_units(row, MONOPHONE, alignment.silences[MONOPHONE])
        for number, word in enumerate(row.words):
            if phones := tuple(symbols[unit] for unit in unit_U[word_U == number]):
                counts.setdefault(word, Counter())[phones] += 1
    return {
        word: [phones for phones, _ in sorted(rows.items(), key=lambda row: (-row[1], row[0]))] for word, rows in counts.items()
    }
