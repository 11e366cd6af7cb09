"""What is labelled: the transcripts of a manifest, each utterance's units, and the context that the setting
`teacher.context` gives it.

- The texts of a manifest lie in a temporary file without a name: a million utterances are planned within 1 GB.
- Aligned levels take their unit sequence from the alignment, those of text without sound from lexicon and tying;
  subwords come from the teacher's own pieces or from our SentencePiece model.
- With context, a recording's utterances in order of time are cut into runs of at most half a window (one utterance at
  least). A run's window is filled with what was said before and after, evenly; where one side ends, the other gets its
  share. Teachers that look to the left only get what was said before. A window is a function of the recording's texts
  alone, so neither shards nor processes change it.
"""

import os
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from hkd import manifest
from hkd.align.alignment import Alignment, aligned_to_units
from hkd.errors import UserError
from hkd.files import digest_of
from hkd.teachers.base import Sentence, Teacher
from hkd.units.inventory import SPELLED, UnitInventory
from hkd.units.sequences import SubwordModel
from hkd.units.sequences import Units as ProjectUnits
from hkd.units.text import text_digest, words

Units = tuple[NDArray[np.int32], NDArray[np.int32]]


class Transcripts:
    """A manifest's texts by sorted ids. Raises UserError with file and line for a broken line, and for a double id."""

    def __init__(self, path: Path, *, split: str | None = None) -> None:
        ids: list[str] = []
        splits: list[str | None] = []
        recordings, offsets = array("q"), array("d")
        self._begin = array("q", [0])  # of each text in the file
        self.has_sound = False
        self._texts = TemporaryFile()  # noqa: SIM115 - it goes with this object
        finalize(self, self._texts.close)
        for u in manifest.read_lines(path):
            ids.append(u.id)
            name = u.split
            splits.append(name and sys.intern(name))
            recordings.append(hash(u.recording))
            offsets.append(u.offset)
            self._begin.append(self._begin[-1] + self._texts.write(u.text.encode()))
            self.has_sound |= u.audio_filepath is not None
        self._texts.flush()
        if not ids:
            raise UserError(f"{path} is empty.")
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self._row_N = np.array(order)  # in the manifest, by sorted id
        self.all_ids = [ids[row] for row in order]  # of all splits
        for left, right in pairwise(self.all_ids):
            if left == right:
                raise UserError(
                    f"{path}: id must be unique, but '{left}' stands twice. Give each utterance its own id."
                )
        self._wanted = np.array([split is None or splits[row] == split for row in order])
        if not self._wanted.any():
            known = sorted({name or "(none)" for name in splits})
            raise UserError(f"split must be one of {', '.join(known)}, but is '{split}' instead.")
        recording_N, offset_N = np.array(recordings)[self._row_N], np.array(offsets)[self._row_N]
        # by recording and time
        self._spoken = np.lexsort((np.arange(len(ids)), offset_N, recording_N))
        self._spoken_at = np.empty(len(ids), np.int64)
        self._spoken_at[self._spoken] = np.arange(len(ids))
        changes = np.flatnonzero(np.diff(recording_N[self._spoken])) + 1
        self._recording_starts = np.concatenate([[0], changes, [len(ids)]]).astype(np.int64)

    def _text(self, row: int) -> str:
        """The text of the row-th of the sorted ids."""
        at = int(self._row_N[row])
        return os.pread(self._texts.fileno(), self._begin[at + 1] - self._begin[at], self._begin[at]).decode()

    @property
    def ids(self) -> list[str]:
        """The sorted ids of the split."""
        return [self.all_ids[row] for row in np.flatnonzero(self._wanted).tolist()]

    @property
    def digest(self) -> str:
        """That of `Manifest`: SHA-256 over the (id, text) pairs by id, of all splits."""
        return digest_of(part for row, name in enumerate(self.all_ids) for part in (name, self._text(row)))

    def row(self, utterance_id: str) -> int:
        """The place of an id among all sorted ids. Raises KeyError."""
        row = bisect_left(self.all_ids, utterance_id)
        if row == len(self.all_ids) or self.all_ids[row] != utterance_id:
            raise KeyError(utterance_id)
        return row

    def words(self, ids: Sequence[str]) -> list[list[str]]:
        """The normalised words of some utterances."""
        return [words(self._text(self.row(name))) for name in ids]

    def recording(self, row: int) -> tuple[NDArray[np.int64], int]:
        """The rows of an utterance's recording in the order of time, and the utterance's place there."""
        at = int(self._spoken_at[row])
        part = int(np.searchsorted(self._recording_starts, at, side="right")) - 1
        start, stop = int(self._recording_starts[part]), int(self._recording_starts[part + 1])
        return self._spoken[start:stop], at - start


UnitSource = Callable[[str, Sequence[str]], Units]  # an utterance's id and its words → (unit_U, word_U)


def unit_source(
    teacher: Teacher, *, alignment: Alignment | None, subwords: SubwordModel | None, units: ProjectUnits | None = None
) -> UnitSource:
    """The source that fits a teacher; a unit belongs to the word that is spoken where it begins.

    units: of text without sound, which has no alignment. Raises UserError where what it needs was not given, or is of
    another inventory.
    """
    level = teacher.level
    if level in SPELLED:
        try:
            teacher.encode(["a"])
        except NotImplementedError:
            if subwords is None:
                raise UserError(
                    f"the LM needs the project's {level} model, but there is none. Run `hkd units train` first."
                ) from None
            _same_inventory(teacher, subwords.inventory, f"the project's {level}s")
            return lambda _, spoken: subwords.encode(spoken)
        return lambda _, spoken: teacher.encode(spoken)
    if units is not None:
        _same_inventory(teacher, units.inventory(level), f"the project's {level}s")
        return lambda _, spoken: units.encode(spoken, level)
    if alignment is None:
        raise UserError(f"labels at the level {level} need an alignment, but there is none. Run `hkd align` first.")
    if level not in alignment.inventories:
        raise UserError(
            f"unit must be a level of the alignment ({', '.join(alignment.inventories)}), but is '{level}' instead."
        )
    _same_inventory(teacher, alignment.inventories[level], f"the alignment {alignment.path}")

    def aligned(utterance_id: str, spoken: Sequence[str]) -> Units:
        utterance = alignment[utterance_id]
        if list(utterance.words) != list(spoken):
            raise UserError(
                f"the transcript of '{utterance_id}' must be what was aligned, but has changed "
                f"({text_digest(utterance.words).hex()} aligned, {text_digest(spoken).hex()} now). Run `hkd align` "
                f"again."
            )
        return aligned_to_units(utterance, level, alignment.silences[level])

    return aligned


def _same_inventory(teacher: Teacher, inventory: UnitInventory, whose: str) -> None:
    ours, theirs = teacher.inventory.digest, inventory.digest
    if ours != theirs:
        raise UserError(
            f"the teacher's inventory must be that of {whose}, but the digests differ ({ours[:16]} and {theirs[:16]}). "
            "Train the LM again with `hkd lm train`."
        )


RECORDINGS_KEPT = 8

Window = tuple[tuple[int, ...], int]  # all tokens, and where the utterance begins


class ContextRule:
    """Makes sentences of utterances: alone, or in windows of as many tokens as the teacher reads."""

    def __init__(self, transcripts: Transcripts, source: UnitSource, teacher: Teacher) -> None:
        self._transcripts, self._source = transcripts, source
        self._room = int(getattr(teacher, "room", 0)) if teacher.info.options.get("context") else 0
        self._left_only = teacher.info.direction == "left"
        self._recording = lru_cache(maxsize=RECORDINGS_KEPT)(self._read)

    def sentence(self, utterance_id: str, spoken: Sequence[str]) -> Sentence:
        """The utterance, with its window's tokens before and after it."""
        unit_U, word_U = self._source(utterance_id, spoken)
        alone = Sentence(id=utterance_id, unit_U=unit_U, word_U=word_U, text=text_digest(spoken))
        if not self._room:
            return alone
        rows, at = self._transcripts.recording(self._transcripts.row(utterance_id))
        tokens, begin = self._recording(int(rows[0]))[at]
        return replace(alone, before=tokens[:begin], after=tokens[begin + len(unit_U) :])

    def _read(self, first_row: int) -> list[Window]:
        """The windows of a recording's utterances, in the order of time."""
        rows, _ = self._transcripts.recording(first_row)
        names = [self._transcripts.all_ids[row] for row in rows.tolist()]
        spoken = zip(names, self._transcripts.words(names), strict=True)
        pieces = [self._source(name, said)[0] for name, said in spoken]
        return windows(np.concatenate(pieces), [len(p) for p in pieces], room=self._room, left_only=self._left_only)


def windows(token_N: NDArray[np.int32], sizes: Sequence[int], *, room: int, left_only: bool) -> list[Window]:
    """The windows of utterances of `sizes` tokens that follow each other: (all tokens, where the utterance begins), one
    an utterance."""
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
