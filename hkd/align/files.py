"""Other tools' files of times: Praat's TextGrids as the Montreal Forced Aligner (2 and 3) writes them, CTM files, and TIMIT's segments.

- TextGrid: interval tiers `words` and `phones`, once a speaker. Long and short text format, UTF-8 or UTF-16, with or without a byte order
  mark. Both formats are the same values in the same order; the long one says before each what it is, so reading skips all but numbers,
  quoted strings and flags. The values decide where a tier ends, not the counts in the file. (praatio refuses empty intervals and ends that
  differ by 1e-16, and reads a truncated tier in silence.)
- CTM: a word or a phone a line, `id channel begin duration symbol [confidence ...]`, as Kaldi and NIST's tools write them. Words with the
  phones of a second file; without one, a lexicon's phones share the word's sound evenly (coarse), or there is a word tier alone. The first
  column is an utterance's id, or a recording's. Lines of one id may stand anywhere. The second is the side: A, B ..., 1, 2 ... or, where one
  side of the file is 0, 0, 1 ... An utterance gets the side that is its channel. Where an id has one side alone, its name does not matter,
  unless the manifest asks for several channels of that recording.
- TIMIT: a `.PHN` and a `.WRD` beside each sentence, `START END LABEL` in samples at 16 kHz. The 61 phones are folded to 39 by the map that
  the field scores with (Lee & Hon 1989, Speaker-independent phone recognition using hidden Markov models, table 2). Closures are silence
  there; so is the glottal stop here, which that map leaves out: neither is a position. Words may overlap by a phone that both share (`this
  suit`): it belongs to the later one.
- TextGrids are matched to the manifest by id, else by the audio file's name, else by folder and name. A recording that the manifest cuts
  into utterances is cut by its times.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hkd.align.fit import NOISE, UNKNOWN_WORDS, FailureError, Foreign, Found, Samples, pieces
from hkd.corpora.collect import Report, channel_of, walk
from hkd.errors import UserError
from hkd.files import digest_of, digest_of_file
from hkd.lines import numbered_lines
from hkd.manifest import Manifest, Utterance
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.lexicon import Lexicon, is_silence_name, is_silent_word, split_position
from hkd.units.text import words

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
        found = walk(path, Report()) if path.is_dir() else [path]
        self._paths = [file for file in found if file.suffix.lower() == ".textgrid" or file == path]
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


COLUMNS = 5
Pronounce = Callable[[str], Sequence[str]]


class Ctm(dict[str, dict[str, list[Interval]]]):
    """Intervals of each id and side, by their begin; sides as written, in upper case.

    grid_s: what the file's times are rounded to, 10 ms at least. first: what sides count from where they are numbers.
    """

    path = Path()
    grid_s = 0.01
    first = 1

    def sides(self, name: str, channel: int | None, *, strict: bool = False, first: int | None = None) -> list[str]:
        """The sides of an id that are the channel (from 0). Raises FailureError where none is, or where it has several and channel is None.

        strict: whether a side that stands alone must be the channel too. first: instead of the file's own.
        """
        written = sorted(self.get(name, {}))
        if len(written) < 2 and (channel is None or not strict):
            return written
        has = f"{self.path} has the side{'s' * (len(written) > 1)} {', '.join(written)} of '{name}'"
        if channel is None:
            raise FailureError(
                f"{has}, but the manifest names no channel: give it a channel (from 0), or name the CTM's lines by utterance"
            )
        found = [side for side in written if _channel(side, self.first if first is None else first) == channel]
        if written and not found:
            raise FailureError(f"{has}, but its channel {channel} (from 0) is none of them: sides are A, B ... or 1, 2 ...")
        return found

    def rows(self, name: str, sides: Sequence[str]) -> list[Interval]:
        """All intervals of these sides."""
        return self[name][sides[0]] if len(sides) == 1 else sorted(row for side in sides for row in self[name][side])


def _channel(side: str, first: int) -> int | None:
    try:
        return channel_of(side, first=first)
    except UserError:
        return None


def read_ctm(path: Path) -> Ctm:
    """Read a CTM. Raises UserError with file and line where a line is none of a CTM."""
    found = Ctm()
    decimals = 0
    for number, line in numbered_lines(path, "a CTM file"):
        if not line.strip() or line.startswith(";;"):
            continue
        columns = line.split()
        try:
            if len(columns) < COLUMNS:
                raise ValueError(f"has {len(columns)} columns")
            start, duration = float(columns[2]), float(columns[3])
            if not (-1e7 < start < 1e7 and 0 <= duration < 1e7):
                raise ValueError(f"begins at {columns[2]} and lasts {columns[3]}")
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: a line of a CTM file must be `id channel begin duration symbol`, but this one {_why(error)}."
            ) from None
        decimals = max(decimals, *(len(column.partition(".")[2]) for column in columns[2:4]))
        row = Interval(start, start + duration, columns[4], f"{path}:{number}")
        found.setdefault(columns[0], {}).setdefault(columns[1].upper(), []).append(row)
    for rows in (rows for sides in found.values() for rows in sides.values()):
        rows.sort()
    found.path, found.first = path, 0 if any("0" in sides for sides in found.values()) else 1
    found.grid_s = max(0.01, 10.0 ** -max(1, decimals))
    return found


def _why(error: ValueError) -> str:
    text = str(error)
    return f"has no number ({text.partition(': ')[2]})" if text.startswith("could not convert") else text


class CtmSource:
    """A CTM of words, and maybe one of phones."""

    def __init__(self, word_ctm: Path, *, phones: Path | None = None, pronounce: Pronounce | None = None) -> None:
        """pronounce: a word's phones, for words alone; () where a word has none."""
        for path in (word_ctm, phones):
            if path is not None and not path.is_file():
                raise UserError(f"{path} must be a CTM file, but is {'a folder' if path.is_dir() else 'not there'}.")
        self._words, self._phones, self._pronounce = word_ctm, phones, pronounce
        self.phones = None
        self.senones = None
        self.notes: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """Name, and digests of the files."""
        phones = digest_of_file(self._phones) if self._phones is not None else "lexicon" if self._pronounce is not None else None
        return {"name": "ctm", "files": digest_of_file(self._words), "phones": phones, "grid": "of the file"}

    def read(self, manifest: Manifest, samples: Samples) -> Iterator[tuple[str, Found]]:
        """The manifest's utterances that the files have, then what else they have."""
        spoken = read_ctm(self._words)
        phones = read_ctm(self._phones) if self._phones is not None else Ctm()
        grid_s = spoken.grid_s if self._phones is None else max(spoken.grid_s, phones.grid_s)
        first = min(spoken.first, phones.first)
        name_of = {u.id: u.id if u.id in spoken else Path(u.audio_filepath or "").stem for u in manifest}
        channels: dict[str, set[int]] = {name: set() for name in name_of.values() if name in spoken}
        for utterance in manifest:
            if (name := name_of[utterance.id]) in spoken and utterance.channel is not None:
                channels[name].add(utterance.channel)
        left = {name: set(spoken[name]) for name in channels}
        for utterance in manifest:
            if (name := name_of[utterance.id]) not in spoken:
                continue
            strict = max(len(spoken[name]), len(phones.get(name, ())), len(channels[name])) > 1
            try:
                sides = spoken.sides(name, utterance.channel, strict=strict, first=first)
                left[name] -= set(sides)
                phone_sides = phones.sides(name, utterance.channel, strict=strict, first=first)
            except FailureError as error:
                yield utterance.id, error
                continue
            rows = spoken.rows(name, sides), phones.rows(name, phone_sides)
            yield utterance.id, self._utterance(utterance, *rows, samples, cut=name != utterance.id, grid_s=grid_s)
        coarse = self._phones is None and self._pronounce is not None
        self.notes = ("phones share a word's sound evenly: coarse, since the CTM has words alone",) if coarse else ()
        for name in sorted(spoken.keys() - left.keys()):
            yield name, FailureError("no utterance")
        for name, sides_left in sorted(left.items()):
            yield from ((f"{name}, side {side}", FailureError("no utterance")) for side in sorted(sides_left))

    def _utterance(
        self,
        utterance: Utterance,
        spoken: Sequence[Interval],
        phones: Sequence[Interval],
        samples: Samples,
        *,
        cut: bool,
        grid_s: float,
    ) -> Found:
        try:
            offset = utterance.offset if cut else 0.0
            if cut:
                stop = offset + samples(utterance) / SAMPLE_RATE_HZ
                spoken, phones = window(spoken, offset, stop), window(phones, offset, stop)
            if phones:
                rows, tokens = phones_in_words(spoken, phones)
                return pieces(
                    [(a, b, word, split_position(label)[0]) for a, b, word, label in rows], tokens, offset_s=offset, grid_s=grid_s
                )
            if self._phones is not None:
                raise FailureError("it has words, but no phones")
            return words_alone(spoken, self._pronounce, offset_s=offset, grid_s=grid_s)
        except FailureError as error:
            return error


def words_alone(
    spoken: Sequence[Interval], pronounce: Pronounce | None, *, offset_s: float = 0.0, grid_s: float | None = None
) -> Foreign:
    """Words with their times → pieces: words, or their phones, each with an equal share of the word's sound. Raises FailureError."""
    said = [row for row in lasting(spoken, "word") if not is_silent_word(row.label)]
    tokens = [row.label for row in said]
    if pronounce is None:
        return pieces(
            [(row.start, row.stop, number, None) for number, row in enumerate(said)], tokens, offset_s=offset_s, grid_s=grid_s
        )
    rows: list[tuple[float, float, int, str | None]] = []
    for number, row in enumerate(said):
        phones = pronounce(row.label)
        if not phones:
            raise FailureError(f"no pronunciation for '{row.label}'")
        width = (row.stop - row.start) / len(phones)
        edges = [*(row.start + width * place for place in range(len(phones))), row.stop]
        rows += [(a, b, number, phone) for phone, (a, b) in zip(phones, pairwise(edges), strict=True)]
    return pieces(rows, tokens, offset_s=offset_s, grid_s=grid_s)


def pronounce_by(lexicon: Lexicon) -> Pronounce:
    """A tool's word → its phones by a lexicon, () where one of the words that it is has none."""

    def pronounce(token: str) -> tuple[str, ...]:
        if lexicon.variants(token):
            return lexicon.variants(token)[0]
        parts = [lexicon.pronounce(word) for word in words(token)]
        return tuple(phone for part in parts for phone in part) if all(parts) else ()

    return pronounce


SILENCE = "sil"
_KEPT = "aa ae ah aw ay b ch d dh dx eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z"
_FOLDED = {
    "aa": "ao", "ah": "ax ax-h", "er": "axr", "hh": "hv", "ih": "ix", "l": "el", "m": "em", "n": "en nx", "ng": "eng", "sh": "zh",
    "uw": "ux", SILENCE: "pcl tcl kcl bcl dcl gcl h# pau epi q",
}  # fmt: skip
PHONES_39 = (SILENCE, *_KEPT.split())
FOLD_61 = {phone: phone for phone in _KEPT.split()} | {old: new for new, olds in _FOLDED.items() for old in olds.split()}


class TimitSource:
    """The corpus' folder. Sentences are found by speaker and name, as `hkd prepare timit` names utterances."""

    def __init__(self, root: Path) -> None:
        self._paths = {
            f"{path.parent.name}-{path.stem}".upper(): path for path in sorted(root.rglob("*")) if path.suffix.upper() == ".PHN"
        }
        if not self._paths:
            raise UserError(f"{root} must hold TIMIT's segments (*.PHN), but holds none. Give the folder of the corpus.")
        self.phones = PHONES_39
        self.senones = None
        self.notes: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """Name, and a digest of all files."""
        files = [file for path in self._paths.values() for file in (path, _words_of(path)) if file.exists()]
        return {"name": "timit", "files": digest_of(part for path in files for part in (path.name, digest_of_file(path)))}

    def read(self, manifest: Manifest, samples: Samples) -> Iterator[tuple[str, Found]]:
        """Sentence by sentence."""
        for name, path in self._paths.items():
            try:
                phones = [row._replace(label=_fold(row.label, path)) for row in read_segments(path)]
                yield name, pieces(*phones_in_words(read_segments(_words_of(path)), phones))
            except UserError as error:
                yield name, FailureError(str(error))


def _words_of(path: Path) -> Path:
    return path.with_suffix(".WRD" if path.suffix.isupper() else ".wrd")


def _fold(phone: str, path: Path) -> str:
    if phone not in FOLD_61:
        raise UserError(f"{path}: a phone must be one of TIMIT's 61, but is '{phone[:20]}' instead.")
    return FOLD_61[phone]


def read_segments(path: Path) -> list[Interval]:
    """The segments of a file, in seconds. Raises UserError with file and line where one is none."""
    found = []
    for number, line in numbered_lines(path, "TIMIT's segments"):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != 3 or not (columns[0].isdecimal() and columns[1].isdecimal()):
            raise UserError(f"{path}:{number}: a line must be `START END LABEL` in samples, but is '{line[:60]}' instead.")
        start, stop = (int(column) / SAMPLE_RATE_HZ for column in columns[:2])
        found.append(Interval(start, stop, columns[2].lower(), f"{path}:{number}"))
    return found


def folded_dictionary(lexicon: Lexicon) -> dict[str, list[tuple[str, ...]]]:
    """A dictionary of ARPAbet without stress in TIMIT's 39 phones (AO is aa, ZH is sh), for words that nobody said in it."""
    return {
        word: list(dict.fromkeys(tuple(FOLD_61[phone.lower()] for phone in phones) for phones in rows))
        for word, rows in lexicon.entries(within={phone.upper() for phone in FOLD_61}).items()
    }
