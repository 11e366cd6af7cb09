"""CTM files: a word or a phone a line, `id channel begin duration symbol [confidence ...]`, as Kaldi and NIST's tools write them.

- Words, with phones where a second file gives them; without, the words' sound is shared out to the phones of a lexicon where there is one
  (coarse), else there is a word tier alone.
- The first column is an utterance's id, or a recording's: then the manifest's offsets cut it. Lines of one id may stand anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hkd.align.foreign import FailureError, Foreign, pieces
from hkd.align.imports import Found, Samples
from hkd.align.textgrid import Interval, lasting, phones_in_words, window
from hkd.errors import UserError
from hkd.files import digest_of_file
from hkd.lines import numbered_lines
from hkd.manifest import Manifest, Utterance
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.lexicon import Lexicon
from hkd.units.phones import is_silent_word, split_position
from hkd.units.text import words

COLUMNS = 5
Pronounce = Callable[[str], Sequence[str]]


class Ctm(dict[str, list[Interval]]):
    """Intervals of each id, by their begin. grid_s: what the file's times are rounded to, 10 ms at least."""

    grid_s = 0.01


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
        found.setdefault(columns[0], []).append(Interval(start, start + duration, columns[4], f"{path}:{number}"))
    for rows in found.values():
        rows.sort()
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
        used = set()
        coarse = self._phones is None and self._pronounce is not None
        for utterance in manifest:
            name = utterance.id if utterance.id in spoken else Path(utterance.audio_filepath or "").stem
            if name not in spoken:
                continue
            used.add(name)
            rows = spoken[name], phones.get(name, [])
            yield utterance.id, self._utterance(utterance, *rows, samples, cut=name != utterance.id, grid_s=grid_s)
        self.notes = ("phones share a word's sound evenly: coarse, since the CTM has words alone",) if coarse else ()
        for name in sorted(spoken.keys() - used):
            yield name, FailureError("no utterance")

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
