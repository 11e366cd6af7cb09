"""Other tools' files of times: TextGrids as the Montreal Forced Aligner (2, 3) writes them, CTM, and TIMIT's segments.

- TextGrid: interval tiers `words` and `phones`, once a speaker, or as WebMAUS and SPPAS name them; long and short text
  format, UTF-8 or UTF-16. Both have the same values in the same order, so reading skips all but numbers, quoted strings
  and flags; values decide where a tier ends, not the counts in the file. A file belongs to an utterance by its id, else
  by the audio file's name, else by folder and name. A recording that the manifest cuts into utterances is cut by its
  times. (praatio refuses empty intervals and ends that differ by 1e-16, and reads a truncated tier in silence.)
- CTM: a word or a phone a line, `id channel begin duration symbol [confidence ...]`, in any order, as Kaldi and NIST's
  tools write them. Words have the phones of a second file, else equal shares of the word for a lexicon's phones
  (coarse), else none. The first column is an utterance's id, or a recording's. The second is the side: A, B ..., or
  numbers from 1 (from 0 where the file has a 0). An utterance gets the side that is its channel. The name of an id's
  only side does not matter, unless the manifest asks for several channels of that recording.
- TIMIT: a `.PHN` and a `.WRD` beside each sentence, `START END LABEL` in samples at 16 kHz. The 61 phones are folded to
  39 by the map that the field scores with (Lee & Hon 1989, Speaker-independent phone recognition using hidden Markov
  models, table 2). Closures are silence there; so is the glottal stop here, which that map leaves out. Words may
  overlap by a phone that both share (`this suit`): it belongs to the later one.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hkd.align.fit import (
    NO_UTTERANCE,
    NOISE,
    UNKNOWN_WORDS,
    AlignmentLoader,
    FailureError,
    Source,
    ToolAlignment,
    pieces,
    refused,
    samples_of,
)
from hkd.corpora.collect import Report, channel_of, plain_name, walk
from hkd.errors import UserError, check_setting, some
from hkd.files import digest_of, digest_of_file, filled_lines
from hkd.manifest import Manifest, Utterance
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.lexicon import Lexicon, is_silence_name, is_silent_word, split_position
from hkd.units.text import words

MAX_BYTES = 256 << 20
_END_S = 0.01  # what a tier's last interval may end before the tier does
_VALUE = re.compile(
    r'"((?:[^"]|"")*)"|<(exists|absent)>|(?<![\w\[.+-])([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)(?![\w\].])'
)
_TEXT, _FLAG, _NUMBER = 1, 2, 3  # its groups


class Interval(NamedTuple):
    """A stretch of a tier, in seconds. `place`: its line, FILE:LINE."""

    start: float
    stop: float
    label: str
    place: str = ""


TextGrid = dict[str, tuple[Interval, ...]]  # interval tiers by name, in order; tiers of points are left out


def read_textgrid(path: Path) -> TextGrid:
    """Read a TextGrid. Raises UserError where it is none, is truncated, or its times run backwards."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} must be a TextGrid of less than {MAX_BYTES >> 20} MB, but is larger.")
        data = path.read_bytes()
        if data.startswith(b"ooBinaryFile"):
            raise ValueError("it is in Praat's binary format: save it as text")
        return _parse(data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"), path)
    except OSError as error:
        raise UserError(f"TextGrid {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        rule = f"{path} must be a TextGrid in UTF-8 or UTF-16, but is neither, or cut off"
        raise UserError(f"{rule}. Save it again as UTF-8 (Praat: Text writing preferences).") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} must be a TextGrid in Praat's text format, but is not ({error}).") from None


class _Values:
    """A TextGrid's values in order: texts, flags, numbers. Raises ValueError for none, or one of another kind."""

    def __init__(self, text: str) -> None:
        self._found = _VALUE.finditer(text)
        self._ahead = next(self._found, None)
        self._line_ends = [match.start() for match in re.finditer("\n", text)]

    def comes(self, kind: int) -> bool:
        """Whether a value of that kind comes next."""
        return self._ahead is not None and self._ahead.lastindex == kind

    @property
    def line(self) -> int:
        """The line of the next value, from 1."""
        return 1 + bisect_left(self._line_ends, self._ahead.start() if self._ahead else 0)

    def take(self, kind: int, what: str) -> str:
        match, self._ahead = self._ahead, next(self._found, None)
        if match is None:
            raise ValueError(f"it ends where {what} should stand: is it truncated?")
        if match.lastindex != kind:
            raise ValueError(f"it has {match.group()[:40]} where {what} should stand")
        return match[kind].replace('""', '"')

    def number(self, what: str) -> float:
        value = float(self.take(_NUMBER, what))
        if not np.isfinite(value):
            raise ValueError(f"{what} is {value:g}")
        return value

    def count(self, what: str) -> int:
        value = self.number(what)
        if value != int(value) or not 0 <= value <= 10**8:
            raise ValueError(f"{what} is {value:g}")
        return int(value)


def _parse(text: str, path: Path) -> TextGrid:
    """All tiers, however many the file says; one that ends early with fewer intervals than it says is truncated."""
    values = _Values(text)
    kind, of = values.take(_TEXT, "the file's type"), values.take(_TEXT, "the object's class")
    if not kind.startswith("ooTextFile") or of != "TextGrid":
        raise ValueError(f"it says to be {kind}, {of}")
    values.number("the begin")
    values.number("the end")
    tiers: TextGrid = {}
    if values.take(_FLAG, "whether there are tiers") == "absent":
        return tiers
    left = values.count("the number of tiers")
    while left > 0 or values.comes(_TEXT):
        left -= 1
        kind, name = values.take(_TEXT, "a tier's class"), values.take(_TEXT, "a tier's name")
        values.number("a tier's begin")
        end, size = values.number("a tier's end"), values.count("a tier's size")
        rows = []
        while values.comes(_NUMBER):
            place, start = f"{path}:{values.line}", values.number("an interval's begin")
            stop = start if kind == "TextTier" else values.number("an interval's end")
            rows.append(Interval(start, stop, values.take(_TEXT, "an interval's text"), place))
        if kind == "TextTier":
            continue
        if len(rows) < size and (not rows or rows[-1].stop < end - _END_S):
            rule = f"tier '{name}' should have {size} intervals to {end:g} s"
            raise ValueError(f"{rule}, but has {len(rows)}: is it truncated?")
        if name in tiers and name.rpartition(" - ")[2].strip().lower() in (*_WORD_TIERS, *_PHONE_TIERS):
            raise ValueError(f"tier '{name}' stands twice")
        tiers[name] = tuple(rows)
    return tiers


class MfaSource(Source):
    """A folder of TextGrids, or one."""

    def __init__(self, path: Path, *, dictionary: Sequence[str] | None = None) -> None:
        """dictionary: all phones of the tool's dictionary, for an inventory that does not depend on the corpus."""
        found = walk(path, Report()) if path.is_dir() else [path]
        self._paths = [file for file in found if file.suffix.lower() == ".textgrid" or file == path]
        if not path.exists():
            raise UserError(f"{path} must be a folder of TextGrids or one, but is not there.")
        if not self._paths:
            remedy = "Give the output folder of `mfa align --output_format long_textgrid`."
            raise UserError(f"{path} must hold TextGrids (*.TextGrid), but holds none. {remedy}")
        self._root = path if path.is_dir() else path.parent
        self.phones = None if dictionary is None else tuple(dict.fromkeys(dictionary))

    @property
    def identity(self) -> dict[str, Any]:
        parts = [part for path in self._paths for part in (str(path.relative_to(self._root)), digest_of_file(path))]
        return {"name": "mfa", "files": digest_of(parts), "phones": self.phones and digest_of(self.phones)}

    def read(self, manifest: Manifest) -> Iterator[tuple[str, AlignmentLoader]]:
        of_path, ambiguous, respelled = _match(self._paths, self._root, manifest)
        if respelled:
            what = f"{len(respelled)} TextGrids have names that are written otherwise (accents, case)"
            self.notes = (f"{what}, the first is {respelled[0]}",)
        yield from ambiguous
        for path in self._paths:
            mine = of_path.get(path, [])
            if not mine:
                yield str(path.relative_to(self._root)), NO_UTTERANCE
                continue
            try:
                grid = read_textgrid(path)
            except UserError as error:
                yield from ((utterance.id, refused(error)) for utterance in mine)
                continue
            for utterance in mine:
                yield utterance.id, partial(_from_grid, grid, utterance, cut=len(mine) > 1 or utterance.offset > 0)


def _from_grid(grid: TextGrid, utterance: Utterance, *, cut: bool) -> ToolAlignment:
    spoken, phones = _tiers(grid, utterance)
    start, stop = 0.0, float("inf")
    if cut:
        start, stop = utterance.offset, utterance.offset + samples_of(utterance) / SAMPLE_RATE_HZ
    return pieces(*phones_in_words(window(spoken, start, stop), window(phones, start, stop)), offset_s=start)


def _match(
    paths: Sequence[Path], root: Path, manifest: Manifest
) -> tuple[dict[Path, list[Utterance]], list[tuple[str, AlignmentLoader]], list[str]]:
    """Which utterances each file holds: by id, else by the audio file's name, with as many of its folders as tell files
    apart; else by either in other case, or with accents written otherwise (macOS). And the names of the latter."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    by_plain: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_stem[path.stem].append(path)
        by_plain[plain_name(path.stem)].append(path)
    found: dict[Path, list[Utterance]] = defaultdict(list)
    ambiguous, respelled = [], []
    for utterance in manifest:
        audio = Path(utterance.audio_filepath or utterance.id)
        names = (utterance.id, audio.stem)
        exact = next(filter(None, map(by_stem.get, names)), None)
        candidates = exact or next(filter(None, map(by_plain.get, map(plain_name, names))), [])
        if len(candidates) > 1:
            upwards = [[*map(plain_name, reversed(path.relative_to(root).parent.parts))] for path in candidates]
            pairs = [zip(parts, map(plain_name, reversed(audio.parent.parts)), strict=False) for parts in upwards]
            shared = [len(list(takewhile(lambda pair: pair[0] == pair[1], each))) for each in pairs]
            candidates = [path for path, number in zip(candidates, shared, strict=True) if number == max(shared)]
        if len(candidates) == 1:
            found[candidates[0]].append(utterance)
            if not exact:
                respelled.append(str(candidates[0].relative_to(root)))
        elif candidates:
            named = some(path.relative_to(root) for path in candidates)
            ambiguous.append((utterance.id, refused(f"{len(candidates)} TextGrids have its name: {named}")))
    return found, ambiguous, respelled


_WORD_TIERS, _PHONE_TIERS = ("words", "word", "ort-mau", "tokensalign"), ("phones", "phone", "mau", "phonalign")


def _tiers(grid: TextGrid, utterance: Utterance) -> tuple[tuple[Interval, ...], tuple[Interval, ...]]:
    """The tiers of words and phones: the only ones, or those of the utterance's speaker."""
    named: dict[str, list[tuple[str, tuple[Interval, ...]]]] = defaultdict(list)
    for name, tier in grid.items():
        speaker, _, kind = name.rpartition(" - ")
        named[speaker].append((kind.strip().lower(), tier))
    pairs = {}
    for speaker, tiers in named.items():
        spoken, phones = ([tier for kind, tier in tiers if kind in kinds] for kinds in (_WORD_TIERS, _PHONE_TIERS))
        if spoken and phones:
            pairs[speaker] = (spoken[0], phones[0])
    if not pairs:
        raise FailureError(f"its TextGrid has no tiers `words` and `phones`, but {', '.join(grid) or 'none'}")
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
            ends = f"the {what} '{label}' ends at {row.stop:g} s"
            raise FailureError(f"{row.place}: {ends}, before it begins at {row.start:g} s")
        elif label.lower() in UNKNOWN_WORDS or not (
            is_silent_word(label) or is_silence_name(label) or NOISE.fullmatch(label)
        ):
            raise FailureError(f"{row.place}: the {what} '{label}' at {row.start:g} s has no duration")
    return found


def phones_in_words(
    spoken: Sequence[Interval], phones: Sequence[Interval]
) -> tuple[list[tuple[float, float, int, str]], list[str]]:
    """Phones, each with the word that its middle lies in; the words. Raises FailureError where one has no length."""
    said = [row for row in lasting(spoken, "word") if not is_silent_word(row.label.strip())]
    sounding = lasting(phones, "phone")
    word_P = words_at(said, np.array([(phone.start + phone.stop) / 2 for phone in sounding])).tolist()
    rows = [
        (phone.start, phone.stop, word, phone.label.strip() or "sil")
        for phone, word in zip(sounding, word_P, strict=True)
        if word < 0 or phone.label.strip()  # else an empty interval of Praat's within a word, to fill the tier
    ]
    return rows, [row.label.strip() for row in said]


def words_at(said: Sequence[Interval], time_P: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place of the word that each time lies in, −1 for none."""
    if not said:
        return np.full(len(time_P), -1, np.int64)
    place_P = np.searchsorted([row.start for row in said], time_P, side="right") - 1
    stop_W = np.array([row.stop for row in said])
    return np.where((place_P >= 0) & (time_P < stop_W[place_P]), place_P, -1)


Pronounce = Callable[[str], Sequence[str]]


class Ctm(dict[str, dict[str, list[Interval]]]):
    """Intervals of each id and side, by their begin; sides as written, in upper case."""

    path = Path()
    grid_s = 0.01  # what the file's times are rounded to, 10 ms at least
    first = 1  # the lowest side that is a number

    def __init__(self) -> None:
        super().__init__()
        self.used: set[tuple[str, str]] = set()  # (id, side) that were read

    def rows(self, name: str, channel: int | None, *, strict: bool = False, first: int | None = None) -> list[Interval]:
        """The intervals of an id's sides that are the channel (from 0). Raises FailureError where none is, or several
        sides might be. strict: whether an only side must be the channel too. first: instead of the file's own."""
        written = sides = sorted(self.get(name, {}))
        if len(written) > 1 or (written and strict and channel is not None):
            has = f"{self.path} has the side{'s' * (len(written) > 1)} {', '.join(written)} of '{name}'"
            if channel is None:
                remedy = "give it a channel (from 0), or name the CTM's lines by utterance"
                raise FailureError(f"{has}, but the manifest names no channel: {remedy}")
            sides = [side for side in written if _channel(side, self.first if first is None else first) == channel]
            if not sides:
                known = "sides are A, B ... or 1, 2 ..."
                raise FailureError(f"{has}, but its channel {channel} (from 0) is none of them: {known}")
        self.used |= {(name, side) for side in sides}
        rows = [self[name][side] for side in sides]
        return rows[0] if len(rows) == 1 else sorted(chain(*rows))


def _channel(side: str, first: int) -> int | None:
    try:
        return channel_of(side, first=first)
    except UserError:
        return None


def read_ctm(path: Path) -> Ctm:
    """Read a CTM. Raises UserError with file and line where a line is none of a CTM."""
    found = Ctm()
    decimals = 0
    for place, line in filled_lines(path, "a CTM file"):
        if line.startswith(";;"):
            continue
        columns = line.split()
        try:
            if len(columns) < 5:
                raise ValueError(f"has {len(columns)} columns")
            start, duration = float(columns[2]), float(columns[3])
            if not (-1e7 < start < 1e7 and 0 <= duration < 1e7):
                raise ValueError(f"begins at {columns[2]} and lasts {columns[3]}")
        except ValueError as error:
            why = re.sub("could not convert string to float: (.*)", r"has no number (\1)", str(error))
            rule = "a line of a CTM file must be `id channel begin duration symbol`"
            raise UserError(f"{place}: {rule}, but this one {why}.") from None
        decimals = max(decimals, *(len(column.partition(".")[2]) for column in columns[2:4]))
        row = Interval(start, start + duration, columns[4], place)
        found.setdefault(columns[0], {}).setdefault(columns[1].upper(), []).append(row)
    for rows in (rows for sides in found.values() for rows in sides.values()):
        rows.sort()
    found.path, found.first = path, 0 if any("0" in sides for sides in found.values()) else 1
    found.grid_s = max(0.01, 10.0 ** -max(1, decimals))
    return found


class CtmSource(Source):
    """A CTM of words, and maybe one of phones."""

    def __init__(self, word_ctm: Path, *, phones: Path | None = None, pronounce: Pronounce | None = None) -> None:
        """pronounce: a word's phones, for words alone; () where a word has none."""
        for path in (word_ctm, phones):
            if path is not None and not path.is_file():
                found = "a folder. Join its files: cat FOLDER/*.ctm" if path.is_dir() else "not there"
                raise UserError(f"{path} must be a CTM file, but is {found}.")
        self._words, self._phones, self._pronounce = word_ctm, phones, pronounce

    @property
    def identity(self) -> dict[str, Any]:
        phones = None if self._pronounce is None else "lexicon"
        phones = phones if self._phones is None else digest_of_file(self._phones)
        return {"name": "ctm", "files": digest_of_file(self._words), "phones": phones, "grid": "of the file"}

    def read(self, manifest: Manifest) -> Iterator[tuple[str, AlignmentLoader]]:
        spoken, phones = read_ctm(self._words), Ctm() if self._phones is None else read_ctm(self._phones)
        names = {row.label for sides in phones.values() for rows in sides.values() for row in rows}
        if names and all(map(str.isdecimal, names)):
            raise UserError(
                f"{self._phones} must name its phones, but has numbers alone, as Kaldi writes them. Put the names in: "
                f"utils/int2sym.pl -f 5 LANG/phones.txt {self._phones} > named.ctm"
            )
        grid_s, first = max(spoken.grid_s, phones.grid_s), min(spoken.first, phones.first)
        named = ((u, u.id if u.id in spoken else Path(u.audio_filepath or "").stem) for u in manifest)
        listed = [(utterance, name) for utterance, name in named if name in spoken]
        channels: dict[str, set[int | None]] = {name: set() for _, name in listed}
        for utterance, name in listed:
            channels[name] |= {utterance.channel} - {None}
        for utterance, name in listed:
            strict = max(len(spoken[name]), len(phones.get(name, ())), len(channels[name])) > 1
            try:
                rows = [ctm.rows(name, utterance.channel, strict=strict, first=first) for ctm in (spoken, phones)]
            except FailureError as error:
                yield utterance.id, refused(error)
            else:
                yield utterance.id, partial(self._utterance, utterance, *rows, cut=name != utterance.id, grid_s=grid_s)
        if self._phones is None and self._pronounce is not None:
            self.notes = ("phones share a word's sound evenly: coarse, since the CTM has words alone",)
        yield from ((name, NO_UTTERANCE) for name in sorted(spoken.keys() - channels.keys()))
        left = ((name, side) for name in channels for side in spoken[name] if (name, side) not in spoken.used)
        yield from ((f"{name}, side {side}", NO_UTTERANCE) for name, side in sorted(left))

    def _utterance(
        self, utterance: Utterance, spoken: Sequence[Interval], phones: Sequence[Interval], *, cut: bool, grid_s: float
    ) -> ToolAlignment:
        offset = utterance.offset if cut else 0.0
        if cut:
            stop = offset + samples_of(utterance) / SAMPLE_RATE_HZ
            spoken, phones = window(spoken, offset, stop), window(phones, offset, stop)
        if not phones and self._phones is not None:
            raise FailureError("it has words, but no phones")
        if not phones:
            return words_alone(spoken, self._pronounce, offset_s=offset, grid_s=grid_s)
        rows, tokens = phones_in_words(spoken, phones)
        bare = [(start, stop, word, split_position(label)[0]) for start, stop, word, label in rows]
        return pieces(bare, tokens, offset_s=offset, grid_s=grid_s)


def words_alone(
    spoken: Sequence[Interval], pronounce: Pronounce | None, *, offset_s: float = 0.0, grid_s: float | None = None
) -> ToolAlignment:
    """Words with their times → pieces: words, or phones that share a word's sound evenly. Raises FailureError."""
    said = [row for row in lasting(spoken, "word") if not is_silent_word(row.label)]
    rows: list[tuple[float, float, int, str | None]] = []
    for number, row in enumerate(said):
        phones = (None,) if pronounce is None else pronounce(row.label)
        if not phones:
            raise FailureError(f"no pronunciation for '{row.label}'")
        width = (row.stop - row.start) / len(phones)
        edges = [*(row.start + width * place for place in range(len(phones))), row.stop]
        rows += [(a, b, number, phone) for phone, (a, b) in zip(phones, pairwise(edges), strict=True)]
    return pieces(rows, [row.label for row in said], offset_s=offset_s, grid_s=grid_s)


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
    "aa": "ao", "ah": "ax ax-h", "er": "axr", "hh": "hv", "ih": "ix", "l": "el", "m": "em", "n": "en nx", "ng": "eng",
    "sh": "zh",
    "uw": "ux", SILENCE: "pcl tcl kcl bcl dcl gcl h# pau epi q",
}  # fmt: skip
PHONES_39 = (SILENCE, *_KEPT.split())
FOLD_61 = {phone: phone for phone in PHONES_39 if phone != SILENCE}
FOLD_61 |= {old: new for new, olds in _FOLDED.items() for old in olds.split()}


class TimitSource(Source):
    """The corpus' folder. Sentences are found by speaker and name, as `hkd prepare timit` names utterances."""

    phones = PHONES_39

    def __init__(self, root: Path) -> None:
        found = (path for path in sorted(root.rglob("*")) if path.suffix.upper() == ".PHN")
        self._paths = {f"{path.parent.name}-{path.stem}".upper(): path for path in found}
        if not self._paths:
            rule = f"{root} must hold TIMIT's segments (*.PHN)"
            raise UserError(f"{rule}, but holds none. Give the folder of the corpus.")

    @property
    def identity(self) -> dict[str, Any]:
        files = [file for path in self._paths.values() for file in (path, _words_of(path)) if file.exists()]
        parts = (part for path in files for part in (path.name, digest_of_file(path)))
        return {"name": "timit", "files": digest_of(parts)}

    def read(self, manifest: Manifest) -> Iterator[tuple[str, AlignmentLoader]]:
        return ((name, partial(_sentence, path)) for name, path in self._paths.items())


def _sentence(path: Path) -> ToolAlignment:
    phones = read_segments(path)
    for row in phones:
        check_setting(f"{path}: a phone", f"'{row.label[:20]}'", "be one of TIMIT's 61", row.label in FOLD_61)
    folded = [row._replace(label=FOLD_61[row.label]) for row in phones]
    return pieces(*phones_in_words(read_segments(_words_of(path)), folded))


def _words_of(path: Path) -> Path:
    return path.with_suffix(".WRD" if path.suffix.isupper() else ".wrd")


def read_segments(path: Path) -> list[Interval]:
    """The segments of a file, in seconds. Raises UserError with file and line where one is none."""
    found = []
    for place, line in filled_lines(path, "TIMIT's segments"):
        columns = line.split()
        if len(columns) != 3 or not (columns[0].isdecimal() and columns[1].isdecimal()):
            raise UserError(f"{place}: a line must be `START END LABEL` in samples, but is '{line[:60]}' instead.")
        start, stop = (int(column) / SAMPLE_RATE_HZ for column in columns[:2])
        found.append(Interval(start, stop, columns[2].lower(), place))
    return found


def folded_dictionary(lexicon: Lexicon) -> dict[str, list[tuple[str, ...]]]:
    """A dictionary of ARPAbet without stress in TIMIT's 39 phones (AO is aa, ZH is sh), for words unsaid in it."""
    return {
        word: list(dict.fromkeys(tuple(FOLD_61[phone.lower()] for phone in phones) for phones in rows))
        for word, rows in lexicon.entries(within={phone.upper() for phone in FOLD_61}).items()
    }
