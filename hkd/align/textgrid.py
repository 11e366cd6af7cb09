"""Praat's TextGrids as the Montreal Forced Aligner (2 and 3) writes them: interval tiers `words` and `phones`, once a speaker.

- Long and short text format, UTF-8 or UTF-16, with or without a byte order mark. Both formats are the same values in the same order;
  the long one says before each what it is, so reading skips all but numbers, quoted strings and flags.
- A folder of them is matched to the manifest by id, else by the audio file's name, else by folder and name; a recording that the manifest
  cuts into utterances is cut by its times.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hkd.align.foreign import NOISE, UNKNOWN_WORDS, FailureError, pieces
from hkd.align.imports import Found, Samples
from hkd.errors import UserError
from hkd.files import digest_of, digest_of_file
from hkd.manifest import Manifest, Utterance
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.phones import is_silence_name, is_silent_word

MAX_BYTES = 256 << 20
_END_S = 0.01  # what a tier's last interval may end before the tier does
_VALUE = re.compile(
    r'"((?:[^"]|"")*)"|<(exists|absent)>|(?<![\w\[.+-])([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)(?![\w\].])'
)
_COMMENT = re.compile(r"^\s*!.*$", re.MULTILINE)


class Interval(NamedTuple):
    """A stretch of a tier, in seconds. `place` is the line that it stands in, FILE:LINE."""

    start: float
    stop: float
    label: str
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class TextGrid:
    """Interval tiers by name, in order; tiers of points are left out."""

    tiers: dict[str, tuple[Interval, ...]]


def read_textgrid(path: Path) -> TextGrid:
    """Read a TextGrid. Raises UserError where it is none, is truncated, or its times run backwards."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} must be a TextGrid of less than {MAX_BYTES >> 20} MB, but is larger.")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"TextGrid {path}: {error.strerror}.") from None
    try:
        return _parse(_decode(data), path)
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} must be a TextGrid in Praat's text format, but is not ({error}).") from None


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    if data.startswith(b"ooBinaryFile"):
        raise ValueError("it is in Praat's binary format: save it as text")
    return data.decode("utf-8-sig")


class _Values:
    """The values of a TextGrid in order. Raises ValueError where one is missing or of another kind."""

    def __init__(self, text: str) -> None:
        self._text, self._found = text, _VALUE.finditer(text)
        self._ahead = next(self._found, None)
        self._line, self._counted = 1, 0

    def _next(self, what: str) -> re.Match[str]:
        match = self._ahead
        if match is None:
            raise ValueError(f"it ends where {what} should stand: is it truncated?")
        self._ahead = next(self._found, None)
        return match

    def more(self, group: int) -> bool:
        """Whether a value of that kind comes next: 1 text, 2 a flag, 3 a number."""
        return self._ahead is not None and self._ahead.lastindex == group

    @property
    def line(self) -> int:
        """The line of the next value, from 1."""
        at = self._ahead.start() if self._ahead is not None else len(self._text)
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def text(self, what: str) -> str:
        match = self._next(what)
        if match.group(1) is None:
            raise ValueError(f"it has {match.group()[:40]} where {what} should stand")
        return match.group(1).replace('""', '"')

    def flag(self, what: str) -> str:
        match = self._next(what)
        if match.group(2) is None:
            raise ValueError(f"it has {match.group()[:40]} where {what} should stand")
        return match.group(2)

    def number(self, what: str) -> float:
        match = self._next(what)
        if match.group(3) is None:
            raise ValueError(f"it has {match.group()[:40]} where {what} should stand")
        value = float(match.group(3))
        if not np.isfinite(value):
            raise ValueError(f"{what} is {match.group(3)}")
        return value

    def count(self, what: str) -> int:
        value = self.number(what)
        if value != int(value) or not 0 <= value <= 10**8:
            raise ValueError(f"{what} is {value:g}")
        return int(value)


def _parse(text: str, path: Path) -> TextGrid:
    """All tiers, whatever the file says of their number; a tier that ends before its time with fewer intervals than said is truncated."""
    values = _Values(text)
    kind, of = values.text("the file's type"), values.text("the object's class")
    if not kind.startswith("ooTextFile") or of != "TextGrid":
        raise ValueError(f"it says to be {kind}, {of}")
    values.number("the begin")
    values.number("the end")
    tiers: dict[str, tuple[Interval, ...]] = {}
    if values.flag("whether there are tiers") == "absent":
        return TextGrid(tiers=tiers)
    left = values.count("the number of tiers")
    while left > 0 or values.more(1):
        left -= 1
        tier_kind, name = values.text("a tier's class"), values.text("a tier's name")
        values.number("a tier's begin")
        end = values.number("a tier's end")
        size = values.count("a tier's size")
        rows = []
        while values.more(3):
            place, start = f"{path}:{values.line}", values.number("an interval's begin")
            stop = start if tier_kind == "TextTier" else values.number("an interval's end")
            rows.append(Interval(start, stop, values.text("an interval's text"), place))
        if tier_kind == "TextTier":
            continue
        if len(rows) < size and (not rows or rows[-1].stop < end - _END_S):
            raise ValueError(f"tier '{name}' should have {size} intervals to {end:g} s, but has {len(rows)}: is it truncated?")
        if name in tiers:
            raise ValueError(f"tier '{name}' stands twice")
        tiers[name] = tuple(rows)
    return TextGrid(tiers=tiers)


class MfaSource:
    """A folder of TextGrids, or one."""

    def __init__(self, path: Path, *, dictionary: Sequence[str] | None = None) -> None:
        """dictionary: all phones that the tool's dictionary has, for an inventory that does not depend on the corpus."""
        found = (Path(top, name) for top, _, names in os.walk(path, followlinks=True) for name in names)
        self._paths = sorted(file for file in found if file.suffix.lower() == ".textgrid") if path.is_dir() else [path]
        if not path.exists():
            raise UserError(f"{path} must be a folder of TextGrids or one, but is not there.")
        if not self._paths:
            raise UserError(f"{path} must hold TextGrids (*.TextGrid), but holds none. Give the output folder of `mfa align`.")
        self._root = path if path.is_dir() else path.parent
        self.phones = None if dictionary is None else tuple(dict.fromkeys(dictionary))
        self.senones = None
        self.notes: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """Name, and a digest of all files."""
        parts = [part for path in self._paths for part in (str(path.relative_to(self._root)), digest_of_file(path))]
        return {"name": "mfa", "files": digest_of(parts), "phones": self.phones and digest_of(self.phones)}

    def read(self, manifest: Manifest, samples: Samples) -> Iterator[tuple[str, Found]]:
        """File by file the utterances that it holds."""
        of_path, ambiguous = _match(self._paths, self._root, manifest)
        yield from ambiguous
        for path in self._paths:
            mine = of_path.get(path, [])
            if not mine:
                yield str(path.relative_to(self._root)), FailureError("no utterance")
                continue
            try:
                grid = read_textgrid(path)
            except UserError as error:
                for utterance in mine:
                    yield utterance.id, FailureError(str(error))
                continue
            for utterance in mine:
                yield utterance.id, self._utterance(grid, utterance, samples, cut=len(mine) > 1 or utterance.offset > 0)

    def _utterance(self, grid: TextGrid, utterance: Utterance, samples: Samples, *, cut: bool) -> Found:
        try:
            spoken, phones = _tiers(grid, utterance)
            start, stop = 0.0, float("inf")
            if cut:
                start, stop = utterance.offset, utterance.offset + samples(utterance) / SAMPLE_RATE_HZ
            rows = phones_in_words(window(spoken, start, stop), window(phones, start, stop))
            return pieces(*rows, offset_s=start)
        except FailureError as error:
            return error


def _match(
    paths: Sequence[Path], root: Path, manifest: Manifest
) -> tuple[dict[Path, list[Utterance]], list[tuple[str, FailureError]]]:
    """Which utterances each file holds: by id, else by the audio file's name, with as many of its folders as tell files apart."""
    by_stem: dict[str, list[Path]] = {}
    for path in paths:
        by_stem.setdefault(path.stem, []).append(path)
    found: dict[Path, list[Utterance]] = {}
    ambiguous = []
    for utterance in manifest:
        audio = Path(utterance.audio_filepath or utterance.id)
        stem = utterance.id if utterance.id in by_stem else audio.stem
        candidates = by_stem.get(stem, [])
        if len(candidates) > 1:
            parents = list(reversed(audio.parent.parts))
            scores = [_shared(list(reversed(path.relative_to(root).parent.parts)), parents) for path in candidates]
            best = [path for path, score in zip(candidates, scores, strict=True) if score == max(scores)]
            candidates = best or candidates
        if len(candidates) == 1:
            found.setdefault(candidates[0], []).append(utterance)
        elif candidates:
            names = ", ".join(str(path.relative_to(root)) for path in candidates[:2])
            ambiguous.append((utterance.id, FailureError(f"{len(candidates)} TextGrids have its name: {names}")))
    return found, ambiguous


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _tiers(grid: TextGrid, utterance: Utterance) -> tuple[tuple[Interval, ...], tuple[Interval, ...]]:
    """The tiers of words and phones: the only ones, or those of the utterance's speaker."""
    pairs = {}
    for name, tier in grid.tiers.items():
        speaker, _, kind = name.rpartition(" - ")
        if kind.strip().lower() in ("words", "word"):
            other = next(
                (n for n in grid.tiers if n.rpartition(" - ")[0] == speaker and n.lower().strip().endswith(("phones", "phone"))),
                None,
            )
            if other is not None:
                pairs[speaker] = (tier, grid.tiers[other])
    if not pairs:
        raise FailureError(f"its TextGrid has no tiers `words` and `phones`, but {', '.join(grid.tiers) or 'none'}")
    if len(pairs) == 1:
        return next(iter(pairs.values()))
    if utterance.speaker not in pairs:
        raise FailureError(f"its TextGrid has the speakers {', '.join(pairs)}, but not '{utterance.speaker}'")
    return pairs[utterance.speaker]


def window(tier: Sequence[Interval], start: float, stop: float) -> list[Interval]:
    """The intervals whose middle lies in [start, stop), cut to it."""
    return [
        row._replace(start=max(row.start, start), stop=min(row.stop, stop))
        for row in tier
        if start <= (row.start + row.stop) / 2 < stop
    ]


def lasting(tier: Sequence[Interval], what: str) -> list[Interval]:
    """The intervals without silences of no length. Raises FailureError for a word or phone (`what`) of none."""
    found = []
    for row in tier:
        label = row.label.strip()
        if round((row.stop - row.start) * SAMPLE_RATE_HZ) > 0:
            found.append(row)
        elif row.stop < row.start - 1 / SAMPLE_RATE_HZ:
            raise FailureError(f"{row.place}: the {what} '{label}' ends at {row.stop:g} s, before it begins at {row.start:g} s")
        elif label.lower() in UNKNOWN_WORDS or not (is_silent_word(label) or is_silence_name(label) or NOISE.fullmatch(label)):
            raise FailureError(f"{row.place}: the {what} '{label}' at {row.start:g} s has no duration")
    return found


def phones_in_words(
    spoken: Sequence[Interval], phones: Sequence[Interval]
) -> tuple[list[tuple[float, float, int, str]], list[str]]:
    """Phones, each with the word that its middle lies in; and the words. Empty and silent phones are silence.

    Silence of no length is nothing. Raises FailureError for a word or phone of no length.
    """
    said = [row for row in lasting(spoken, "word") if not is_silent_word(row.label.strip())]
    start_W = np.array([row.start for row in said] or [np.inf])
    rows = []
    for phone in lasting(phones, "phone"):
        label = phone.label.strip()
        word = int(np.searchsorted(start_W, (phone.start + phone.stop) / 2, side="right")) - 1
        inside = 0 <= word < len(said) and (phone.start + phone.stop) / 2 < said[word].stop
        if not label:
            if not inside:  # an empty interval of Praat's, to fill the tier
                rows.append((phone.start, phone.stop, -1, "sil"))
            continue
        rows.append((phone.start, phone.stop, word if inside else -1, label))
    return rows, [row.label.strip() for row in said]
