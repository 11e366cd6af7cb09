"""What is to be labelled: the manifest as an index that stays small at a million utterances, and each utterance's units.

- The index holds ids, places in the file and the order within recordings, never the texts: they are read again by shard.
- Aligned levels take their unit sequence from the alignment; subwords come from the teacher's own pieces or from our SentencePiece model.
"""

import json
import mmap
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, aligned_to_units
from hkd.errors import UserError
from hkd.files import digest_of
from hkd.manifest import parse_line
from hkd.teachers.base import Teacher
from hkd.units.level import SPELLED
from hkd.units.subword import SubwordModel
from hkd.units.text import text_digest, words

Units = tuple[NDArray[np.int32], NDArray[np.int32]]


class _Facts(NamedTuple):
    """What the index keeps of a line."""

    id: str
    recording: str
    offset: float
    split: str | None


def _refuse(name: str) -> None:
    raise ValueError(name)


_read_json = json.JSONDecoder(parse_constant=_refuse).raw_decode


def _plain_facts(line: bytes, folder: str) -> _Facts | None:
    """The facts of a line that is plainly right, at a fifth of what `parse_line` costs; None where that must decide.

    `folder`: where relative paths of sound begin, absolute.
    """
    try:
        text = line.decode()
        row, end = _read_json(text)
        name, audio = row["id"], row.get("audio_filepath")
        numbers = row.get("offset"), row.get("duration")
        strings = name, row["text"], "" if audio is None else audio, row.get("speaker", "")
        plain = (
            all(type(value) is str for value in strings)
            and all(value is None or (type(value) in (float, int) and 0 <= value < 1e300) for value in numbers)
            and name
            and audio != ""
            and "\\u" not in text
            and text[end:].isspace()
        )
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return None
    if not plain:
        return None
    recording, split = row.get("recording"), row.get("split")
    if not recording:
        at = audio if audio is None or audio.startswith("/") else f"{folder}/{audio}"
        recording = name if at is None else audio if "://" in audio else os.path.normpath(at)
    return _Facts(name, str(recording), float(numbers[0] or 0.0), None if split is None else str(split))


class Transcripts:
    """A manifest on disk, as sorted ids and places of lines. Raises UserError with file and line for a broken line or a double id."""

    def __init__(self, path: Path, *, split: str | None = None) -> None:
        self.path, self._folder = path, path.parent.absolute()
        ids: list[str] = []
        place, recording, offset, wanted = array("q"), array("q"), array("d"), array("b")
        splits: set[str] = set()
        for start, facts in self._lines():
            ids.append(facts.id)
            place.append(start)
            recording.append(hash(facts.recording))  # tells recordings of this process's index apart, no more
            offset.append(facts.offset)
            wanted.append(split is None or facts.split == split)
            splits.add(facts.split or "(none)")
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
        self._ids: list[str] = [ids[row] for row in order.tolist()]
        for left, right in zip(self._ids, self._ids[1:], strict=False):
            if left == right:
                raise UserError(f"{path}: id must be unique, but '{left}' stands twice. Give each utterance its own id.")
        self._place = np.frombuffer(place, np.int64)[order]
        self._wanted = np.frombuffer(wanted, np.int8)[order].astype(bool)
        if not self._wanted.any():
            raise UserError(
                f"split must be one of {', '.join(sorted(splits))}, but is '{split}' instead." if ids else f"{path} is empty."
            )
        self._in_recording(np.frombuffer(recording, np.int64)[order], np.frombuffer(offset, np.float64)[order])

    def _lines(self) -> Iterator[tuple[int, _Facts]]:
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise UserError(
                f"manifest must be a readable file, but {self.path}: {error.strerror}. Run `hkd prepare` first."
            ) from None
        with file:
            start, folder = 0, str(self._folder)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield start, _plain_facts(line, folder) or self._checked(number, line)
                start += len(line)

    def _checked(self, number: int, line: bytes) -> _Facts:
        """The facts of any line. Raises UserError with file and line."""
        try:
            utterance = parse_line(line.decode("utf-8-sig"), self._folder)
        except UserError as error:
            raise UserError(f"{self.path}:{number}: {error}") from None
        except UnicodeDecodeError:
            raise UserError(f"{self.path}:{number}: a manifest must be UTF-8, but this line is not.") from None
        return _Facts(utterance.id, utterance.recording, utterance.offset, utterance.split)

    def _in_recording(self, recording: NDArray[np.int64], offset: NDArray[np.float64]) -> None:
        """Rows by recording and time, and where each row stands there."""
        self._spoken = np.lexsort((np.arange(len(recording)), offset, recording))
        self._spoken_at = np.empty(len(recording), np.int64)
        self._spoken_at[self._spoken] = np.arange(len(recording))
        changes = np.flatnonzero(np.diff(recording[self._spoken])) + 1
        self._recording_starts = np.concatenate([[0], changes, [len(recording)]]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> list[str]:
        """The sorted ids of the split."""
        return [self._ids[row] for row in np.flatnonzero(self._wanted).tolist()]

    @property
    def digest(self) -> str:
        """That of `Manifest`: SHA-256 over the (id, text) pairs by id, of all splits."""
        with self._open() as view:
            return digest_of(part for row in range(len(self)) for part in self._pair(view, row))

    def _open(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _pair(self, view: mmap.mmap, row: int) -> tuple[str, str]:
        start = int(self._place[row])
        end = view.find(b"\n", start)
        line = view[start : end if end >= 0 else len(view)].decode()
        value: dict[str, Any] = _read_json(line.lstrip("\ufeff \t"))[0]  # was checked when it was indexed
        return str(value["id"]), str(value["text"])

    def row(self, utterance_id: str) -> int:
        """The place of an id among all sorted ids. Raises KeyError."""
        row = bisect_left(self._ids, utterance_id)
        if row == len(self._ids) or self._ids[row] != utterance_id:
            raise KeyError(utterance_id)
        return row

    def id_of(self, row: int) -> str:
        """The id at a place among all sorted ids."""
        return self._ids[row]

    def words(self, rows: Sequence[int]) -> list[list[str]]:
        """The normalised words of some utterances, by row. Raises UserError where the manifest has changed since it was read."""
        with self._open() as view:
            pairs = [self._pair(view, row) for row in rows]
        for row, (name, _) in zip(rows, pairs, strict=True):
            if name != self._ids[row]:
                raise UserError(f"{self.path} must not change while it is labelled, but does. Run the command again.")
        return [words(text) for _, text in pairs]

    def recording(self, row: int) -> tuple[NDArray[np.int64], int]:
        """The rows of an utterance's recording in the order of time, and the utterance's place there."""
        at = int(self._spoken_at[row])
        part = int(np.searchsorted(self._recording_starts, at, side="right")) - 1
        start, stop = int(self._recording_starts[part]), int(self._recording_starts[part + 1])
        return self._spoken[start:stop], at - start


class UnitSource(Protocol):
    """Where unit sequences come from."""

    def labelled(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids that have a unit sequence."""

    def units(self, utterance_id: str, spoken: Sequence[str]) -> Units:
        """(unit_U, word_U) of an utterance."""


class TeacherPieces:
    """The teacher's own pieces."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def labelled(self, ids: Sequence[str]) -> list[str]:
        return list(ids)

    def units(self, utterance_id: str, spoken: Sequence[str]) -> Units:
        return self._teacher.encode(spoken)


class OwnSubwords:
    """Our SentencePiece model's pieces. Raises UserError where its inventory is not the teacher's."""

    def __init__(self, model: SubwordModel, teacher: Teacher) -> None:
        _same_inventory(teacher, model.inventory.digest, f"the project's {teacher.level}s")
        self._model = model

    def labelled(self, ids: Sequence[str]) -> list[str]:
        return list(ids)

    def units(self, utterance_id: str, spoken: Sequence[str]) -> Units:
        return self._model.encode(spoken)


class AlignedUnits:
    """Segments of the alignment without silence; a unit belongs to the word that is spoken where it begins."""

    def __init__(self, alignment: Alignment, teacher: Teacher) -> None:
        self._alignment, self._level = alignment, teacher.level
        if self._level not in alignment.inventories:
            raise UserError(
                f"unit must be a level of the alignment ({', '.join(alignment.inventories)}), but is '{self._level}' instead."
            )
        _same_inventory(teacher, alignment.inventories[self._level].digest, f"the alignment {alignment.path}")

    def labelled(self, ids: Sequence[str]) -> list[str]:
        return [name for name in ids if name in self._alignment]

    def units(self, utterance_id: str, spoken: Sequence[str]) -> Units:
        utterance = self._alignment[utterance_id]
        if list(utterance.words) != list(spoken):
            raise UserError(
                f"the transcript of '{utterance_id}' must be what was aligned, but has changed "
                f"({text_digest(utterance.words).hex()} aligned, {text_digest(spoken).hex()} now). Run `hkd align` again."
            )
        return aligned_to_units(utterance, self._level, self._alignment.silences[self._level])


def _same_inventory(teacher: Teacher, digest: str, whose: str) -> None:
    if teacher.inventory.digest != digest:
        raise UserError(
            f"the teacher's inventory must be that of {whose}, but the digests differ "
            f"({teacher.inventory.digest[:16]} and {digest[:16]}). Train the LM again with `hkd lm train`."
        )


def unit_source(teacher: Teacher, *, alignment: Alignment | None, subwords: SubwordModel | None) -> UnitSource:
    """The source that fits a teacher. Raises UserError where what it needs was not given."""
    if teacher.level in SPELLED:
        try:
            teacher.encode(["a"])
        except NotImplementedError:
            if subwords is None:
                raise UserError(
                    f"the LM needs the project's {teacher.level} model, but there is none. Run `hkd units train` first."
                ) from None
            return OwnSubwords(subwords, teacher)
        return TeacherPieces(teacher)
    if alignment is None:
        raise UserError(f"labels at the level {teacher.level} need an alignment, but there is none. Run `hkd align` first.")
    return AlignedUnits(alignment, teacher)
