"""Words → phones: a dictionary (by default the CMU dictionary that pocketsphinx carries), then rules for endings, then grapheme to phoneme.

Rules and prediction are English: a dictionary in other phones than ARPAbet's has what it lists.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from hkd.errors import UserError
from hkd.lines import numbered_lines
from hkd.units.g2p import ARPABET, predict_phones
from hkd.units.phones import is_silence_name, split_position, without_stress
from hkd.units.text import words

_SIBILANTS = {"S", "Z", "SH", "ZH", "CH", "JH"}
_VOWEL_LETTERS = frozenset("aeiouy")
FILLERS = frozenset(("SIL", "SPN", "NSN", "+NSN+", "+SPN+"))
_PROBABILITY = re.compile(r"[01]?\.\d+(?:[eE]-?\d+)?|1(?:\.0*)?|0(?:\.0*)?|\d+\.\d+")
_MFA_NUMBERS = 4  # pronunciation, silence after, correction for silence before, and for none
_VOICELESS = {"P", "T", "K", "F", "TH"}


def model_folder() -> Path:
    """Where pocketsphinx keeps its English model."""
    import pocketsphinx

    return Path(pocketsphinx.get_model_path()) / "en-us"


class Lexicon:
    """Pronunciations, by default those of the dictionary that pocketsphinx carries (39 phones of ARPAbet, without stress)."""

    def __init__(self, path: Path | None = None, *, stress: bool = True, within: Collection[str] | None = None) -> None:
        """path: `word phones`, a line each; MFA's columns of probabilities and Kaldi's `lexiconp.txt` are known. stress: keep AH0, AH1;
        within: words that would need other phones than these have no pronunciation."""
        self.path = path or model_folder() / "cmudict-en-us.dict"
        self._stress, self._within = stress, None if within is None else frozenset(within)
        self._is_own = path is not None
        self._guessed = lru_cache(maxsize=1 << 17)(
            self._checked_guess
        )  # a large text has a million words that no dictionary holds

    @cached_property
    def _variants(self) -> dict[str, list[tuple[str, ...]]]:
        found: dict[str, list[tuple[str, ...]]] = {}
        weight: dict[tuple[str, tuple[str, ...]], float] = {}
        for number, line in numbered_lines(self.path, "a dictionary"):
            name, *columns = line.split() or [";;;"]
            if name.startswith(";;;"):
                continue
            numbers = 0
            if columns and columns[0][0] in "0123456789.":
                while numbers < min(len(columns), _MFA_NUMBERS) and _PROBABILITY.fullmatch(columns[numbers]):
                    numbers += 1
            if numbers == len(columns):
                raise UserError(
                    f"{self.path}:{number}: a line of a dictionary must be `word phones`, but this one has no phones."
                )
            probability = float(columns[0]) if numbers else 1.0
            columns = columns[numbers:]
            word = name.partition("(")[0] or name
            phones = tuple(columns) if self._stress and "_" not in line else tuple(map(self._fold, columns))
            said = found.setdefault(word, [])
            if phones not in said:
                said.append(phones)
            if numbers:
                weight[word, phones] = max(probability, weight.get((word, phones), 0.0))
        for word in {word for word, _ in weight}:
            found[word].sort(key=lambda phones: -weight.get((word, phones), 1.0))
        return found

    def _fold(self, phone: str) -> str:
        base = split_position(phone)[0] if phone[-2:-1] == "_" else phone
        return base if self._stress else without_stress(base)

    @cached_property
    def phones(self) -> tuple[str, ...]:
        """All phones that occur, sorted."""
        return tuple(sorted({phone for rows in self._variants.values() for phones in rows for phone in phones}))

    @cached_property
    def _predicts(self) -> Literal["plain", "stressed", "nothing"]:
        """What a prediction must look like to be of these phones: English ones can be predicted, others not."""
        if not self._is_own or set(map(str.upper, self.phones)) <= ARPABET | FILLERS:
            return "plain"
        speech = {phone for phone in self.phones if not is_silence_name(phone)}
        return "stressed" if {without_stress(phone) for phone in speech} <= ARPABET else "nothing"

    @property
    def is_english(self) -> bool:
        """Whether its phones are ARPAbet's, with stress or without."""
        return self._predicts != "nothing"

    @cached_property
    def _english(self) -> "Lexicon":
        return Lexicon()

    def __contains__(self, word: object) -> bool:
        return word in self._variants

    def variants(self, word: str) -> list[tuple[str, ...]]:
        """All pronunciations that the dictionary lists, the usual one first; [] for unknown words."""
        return self._variants.get(word, [])

    def entries(self, *, within: Collection[str]) -> dict[str, list[tuple[str, ...]]]:
        """All that is listed and has no other phones than these."""
        known = set(within)
        kept = {word: [phones for phones in rows if known.issuperset(phones)] for word, rows in self._variants.items()}
        return {word: rows for word, rows in kept.items() if rows}

    def pronounce(self, word: str) -> tuple[str, ...]:
        """The first listed pronunciation, else a predicted one; () for what is no word of letters (`mp3`, `ł`)."""
        listed = self._variants.get(word)
        if listed:
            return listed[0]
        return self._guessed(word)

    def _checked_guess(self, word: str) -> tuple[str, ...]:
        guess = self._guess(word)
        return guess if self._within is None or self._within.issuperset(guess) else ()

    def _guess(self, word: str) -> tuple[str, ...]:
        plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
        if plain != word and plain in self._variants:
            return self._variants[plain][0]
        stem, apostrophe, ending = plain.rpartition("'")
        if apostrophe and ending in ("s", "") and self._predicts != "nothing":
            phones = self.pronounce(stem)
            if not phones or not ending:
                return phones
            if phones[-1] in _SIBILANTS:
                return (*phones, "IH0" if self._predicts == "stressed" else "IH", "Z")
            return (*phones, "S" if phones[-1] in _VOICELESS else "Z")
        if self._predicts == "nothing":
            return ()
        if self._is_own and self._predicts == "plain" and word in self._english:
            return self._english.pronounce(word)
        letters = plain.replace("'", "")
        if not letters or not all("a" <= c <= "z" for c in letters) or len(letters) == 1:
            return ()
        if not _VOWEL_LETTERS.intersection(letters):  # pbx, mgcp: read letter by letter
            return tuple(phone for letter in letters for phone in self.pronounce(letter))
        return predict_phones(letters, stress=self._predicts == "stressed")

    def unknown(self, spoken: Iterable[str]) -> list[str]:
        """The words that neither the dictionary nor the rules can pronounce, each once, in order."""
        return [word for word in dict.fromkeys(spoken) if not self.pronounce(word)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LexiconReport:
    """How the words of texts are pronounced. `predicted` (word → phones) and `unknown` by falling frequency."""

    words: int  # different ones
    running_words: int
    listed: int  # different words that the dictionary has
    predicted: dict[str, str]
    unknown: dict[str, int]  # word → how often
    unknown_texts: int  # texts that have one: they are left out of phone and senone LMs


def lexicon_report(lexicon: Lexicon, texts: Iterable[str]) -> LexiconReport:
    """Look every word of texts up. Memory: one entry a different word."""
    counts: Counter[str] = Counter()
    unknown_texts = 0
    for text in texts:
        spoken = words(text)
        counts.update(spoken)
        unknown_texts += bool(lexicon.unknown(spoken))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    other = [word for word in ordered if word not in lexicon]
    return LexiconReport(
        words=len(counts), running_words=counts.total(), listed=len(counts) - len(other),
        predicted={word: " ".join(lexicon.pronounce(word)) for word in other if lexicon.pronounce(word)},
        unknown={word: counts[word] for word in other if not lexicon.pronounce(word)}, unknown_texts=unknown_texts,
    )  # fmt: skip
