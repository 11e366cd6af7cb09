"""Words → phones: the CMU dictionary that pocketsphinx carries, then rules for endings, then grapheme to phoneme."""

import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from hkd.errors import UserError
from hkd.units.g2p import predict_phones

_SIBILANTS = {"S", "Z", "SH", "ZH", "CH", "JH"}
_VOWEL_LETTERS = frozenset("aeiouy")
_VOICELESS = {"P", "T", "K", "F", "TH"}


def model_folder() -> Path:
    """Where pocketsphinx keeps its English model."""
    import pocketsphinx

    return Path(pocketsphinx.get_model_path()) / "en-us"


class Lexicon:
    """Pronunciations, stress marks folded away. The phones are those of pocketsphinx (39 of ARPAbet)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or model_folder() / "cmudict-en-us.dict"
        self._guessed: dict[str, tuple[str, ...]] = {}

    @cached_property
    def _variants(self) -> dict[str, list[tuple[str, ...]]]:
        variants: dict[str, list[tuple[str, ...]]] = {}
        try:
            with self.path.open(encoding="utf-8") as file:
                for line in file:
                    name, *phones = line.split()
                    word = name.partition("(")[0]
                    variants.setdefault(word, []).append(tuple(phone.rstrip("012") for phone in phones))
        except OSError as error:
            raise UserError(f"dictionary {self.path}: {error.strerror}.") from None
        return variants

    def __contains__(self, word: object) -> bool:
        return word in self._variants

    def variants(self, word: str) -> list[tuple[str, ...]]:
        """All pronunciations that the dictionary lists, the usual one first; [] for unknown words."""
        return self._variants.get(word, [])

    def pronounce(self, word: str) -> tuple[str, ...]:
        """The first listed pronunciation, else a predicted one; () for what is no word of letters (`mp3`, `ł`)."""
        listed = self._variants.get(word)
        if listed:
            return listed[0]
        if word not in self._guessed:
            self._guessed[word] = self._guess(word)
        return self._guessed[word]

    def _guess(self, word: str) -> tuple[str, ...]:
        plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
        if plain != word and plain in self._variants:
            return self._variants[plain][0]
        stem, apostrophe, ending = plain.rpartition("'")
        if apostrophe and ending in ("s", ""):
            phones = self.pronounce(stem)
            if not phones or not ending:
                return phones
            if phones[-1] in _SIBILANTS:
                return (*phones, "IH", "Z")
            return (*phones, "S" if phones[-1] in _VOICELESS else "Z")
        letters = plain.replace("'", "")
        if not letters or not all("a" <= c <= "z" for c in letters) or len(letters) == 1:
            return ()
        if not _VOWEL_LETTERS.intersection(letters):  # pbx, mgcp: read letter by letter
            return tuple(phone for letter in letters for phone in self.pronounce(letter))
        return predict_phones(letters)

    def unknown(self, words: Iterable[str]) -> list[str]:
        """The words that neither the dictionary nor the rules can pronounce, each once, in order."""
        return [word for word in dict.fromkeys(words) if not self.pronounce(word)]
