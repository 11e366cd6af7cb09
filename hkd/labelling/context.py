"""`--context N`: windows of neighbouring utterances, shared by the utterances in their middle.

- A recording's utterances in order of time are cut into runs of at most half a window (one utterance at least).
- A run's window is filled with what was said before and after, evenly; where one side ends, the other gets its share. Teachers
  that look to the left only get what was said before.
- A window is a function of the recording's texts alone, so neither shards nor processes change it.
"""

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
        tokens, begin = self._window(int(rows[0]), at)
        return Sentence(id=utterance_id, unit_U=unit_U, word_U=word_U, before=tokens[:begin], after=tokens[begin + len(unit_U) :])

    def _read(self, first_row: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """A recording's tokens, where each utterance begins (one more: the end), and the first utterance of each one's run."""
        rows, _ = self._transcripts.recording(first_row)
        spoken = self._transcripts.words(rows.tolist())
        names = [self._transcripts.id_of(row) for row in rows.tolist()]
        pieces = [self._source.units(name, said)[0] for name, said in zip(names, spoken, strict=True)]
        size = [len(p) for p in pieces]
        run_of, total = [0], size[0]
        for place in range(1, len(size)):
            total += size[place]
            if total > self._room // 2:
                run_of.append(place)
                total = size[place]
            else:
                run_of.append(run_of[-1])
        return np.concatenate(pieces), np.concatenate([[0], np.cumsum(size)]).astype(np.int64), np.array(run_of)

    def _window(self, first_row: int, at: int) -> Window:
        token_N, begin_B1, run_B = self._recording(first_row)
        run = np.flatnonzero(run_B == run_B[at])
        start, stop = int(begin_B1[run[0]]), int(begin_B1[run[-1] + 1])
        spare = max(0, self._room - (stop - start))
        left, right = start, len(token_N) - stop
        if self._left_only:
            before, after = min(left, spare), 0
        else:
            before = min(left, max(spare // 2, spare - right))
            after = min(right, spare - before)
        return tuple(token_N[start - before : stop + after].tolist()), int(begin_B1[at]) - start + before
