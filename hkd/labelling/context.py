"""`--context N`: windows of neighbouring utterances, shared by the utterances in their middle.

- A recording's utterances in order of time are cut into runs of at most half a window (one utterance at least).
- A run's window is filled with what was said before and after, evenly; where one side ends, the other gets its share. Teachers
  that look to the left only get what was said before.
- A window is a function of the recording's texts alone, so neither shards nor processes change it.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hkd.labelling.plan import Transcripts, Units, UnitSource
from hkd.teachers.base import Sentence

RECORDINGS_KEPT = 8

Window = tuple[tuple[int, ...], int]  # all tokens, and where the utterance begins


class ContextRule:
    """Makes sentences of utterances: alone, or in windows of `room` tokens."""

    def __init__(self, transcripts: Transcripts, source: UnitSource, *, room: int, left_only: bool) -> None:
        self._transcripts, self._source, self._room, self._left_only = transcripts, source, room, left_only
        self._recording = lru_cache(maxsize=RECORDINGS_KEPT)(self._read)

    def sentence(self, utterance_id: str, units: Units) -> Sentence:
        """The utterance with its window's tokens before and after it; alone where `room` is 0."""
        unit_U, word_U = units
        if not self._room:
            return Sentence(id=utterance_id, unit_U=unit_U, word_U=word_U)
        rows, at = self._transcripts.recording(self._transcripts.row(utterance_id))
        tokens, begin = self._recording(int(rows[0]))[at]
        return Sentence(id=utterance_id, unit_U=unit_U, word_U=word_U, before=tokens[:begin], after=tokens[begin + len(unit_U) :])

    def _read(self, first_row: int) -> list[Window]:
        """The windows of a recording's utterances, in the order of time."""
        rows, _ = self._transcripts.recording(first_row)
        spoken = self._transcripts.words(rows.tolist())
        names = [self._transcripts.id_of(row) for row in rows.tolist()]
        pieces = [self._source.units(name, said)[0] for name, said in zip(names, spoken, strict=True)]
        return windows(np.concatenate(pieces), [len(p) for p in pieces], room=self._room, left_only=self._left_only)


def windows(token_N: NDArray[np.int32], sizes: Sequence[int], *, room: int, left_only: bool) -> list[Window]:
    """The windows of utterances of `sizes` tokens that follow each other: (all tokens, where the utterance begins), one an utterance."""
    begin_B1 = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64).tolist()
    placed: list[Window] = []
    first = 0
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and begin_B1[last + 1] - begin_B1[first] <= room // 2:
            last += 1
        start, stop = begin_B1[first], begin_B1[last]
        spare, left, right = max(0, room - (stop - start)), start, len(token_N) - stop
        before = min(left, spare) if left_only else min(left, max(spare // 2, spare - right))
        after = 0 if left_only else min(right, spare - before)
        tokens = tuple(token_N[start - before : stop + after].tolist())
        placed.extend((tokens, begin - start + before) for begin in begin_B1[first:last])
        first = last
    return placed
