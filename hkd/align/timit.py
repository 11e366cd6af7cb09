"""TIMIT's own segments: a `.PHN` and a `.WRD` beside each sentence, `START END LABEL` in samples at 16 kHz.

- The 61 phones are folded to 39 by the map that the field scores with (Lee & Hon 1989, Speaker-independent phone recognition using hidden
  Markov models, table 2). Closures are silence there; so is the glottal stop here, which that map leaves out: neither is a position.
- Words may overlap by a phone that both share (`this suit`): it belongs to the later one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hkd.align.foreign import FailureError, pieces
from hkd.align.imports import Found, Samples
from hkd.align.textgrid import Interval, phones_in_words
from hkd.errors import UserError
from hkd.files import digest_of, digest_of_file
from hkd.lines import numbered_lines
from hkd.manifest import Manifest
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.lexicon import Lexicon

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
