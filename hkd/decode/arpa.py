"""A back-off n-gram over words, read from ARPA, asked word by word: what beam search needs of a language model.

log p(w | h) = the n-gram's, or bow(h) + log p(w | h without its oldest word) (Katz 1987, equation 4), in natural logarithms.
"""

import gzip
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hkd.errors import UserError

log = logging.getLogger(__name__)

START, STOP, UNKNOWN = "<s>", "</s>", "<unk>"
History = tuple[int, ...]


def usable_words(lm: str | Path, words: Sequence[str], is_usable: Callable[[str], bool], *, rule: str) -> list[str]:
    """The words that a search can give, as `rule` says ("the lexicon can pronounce"); a warning counts those that are left out.

    Raises UserError where no word is left.
    """
    usable: list[str] = []
    others: list[str] = []
    for word in words:
        (usable if is_usable(word) else others).append(word)
    lower = sum(is_usable(word.lower()) for word in others if word != word.lower())
    hint = f" In lower case, as the student's transcripts are, {lower:,} of them would do: write the LM so." if lower else ""
    if not usable:
        remedy = hint or " Give one in the language and spelling of the student's transcripts."
        raise UserError(f"{lm} must hold words that {rule}, but none of its {len(words):,} is one.{remedy}")
    if others:
        named = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        log.warning("%s must hold words that %s: %d of %d are left out (%s).%s", lm, rule, len(others), len(words), named, hint)
    return usable


class ArpaLm:
    """Words and histories as numbers; a history is the last order − 1 words at most, cut to what the n-gram knows."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where the file is missing or no ARPA."""
        self.path = path
        self.number_of: dict[str, int] = {}
        self._grams: dict[tuple[int, ...], tuple[float, float]] = {}
        self.order = 0
        try:
            with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
                self._read(file)
        except OSError as error:
            raise UserError(f"language model {path}: {error.strerror}. Give an ARPA file.") from None
        except (ValueError, IndexError, EOFError) as error:
            raise UserError(f"{path} must be an ARPA language model, but cannot be read as one ({error}).") from None
        if not self.order or START not in self.number_of or STOP not in self.number_of:
            raise UserError(f"{path} must be an ARPA language model with <s> and </s>, but has none.")
        unknown = self.number_of.get(UNKNOWN, self.number_of.get("<UNK>"))
        lowest = min(logp for key, (logp, _) in self._grams.items() if len(key) == 1 and key[0] != self.number_of[START])
        self.unknown_logp = self._grams[unknown,][0] if unknown is not None else lowest

    def _read(self, lines: Iterator[str]) -> None:
        order = 0
        for line in lines:
            text = line.strip()
            if text.endswith("-grams:") and text.startswith("\\"):
                order = int(text[1:].partition("-")[0])
                self.order = max(self.order, order)
            elif text == "\\end\\":
                return
            elif order and text:
                logp, *rest = text.split()
                words, bow = rest[:order], float(rest[order]) if len(rest) > order else 0.0
                if order == 1:
                    self.number_of.setdefault(words[0], len(self.number_of))
                key = tuple(self.number_of[word] for word in words)
                self._grams[key] = (float(logp) * math.log(10), bow * math.log(10))

    def __contains__(self, word: object) -> bool:
        return word in self.number_of

    def start(self) -> History:
        """The history at the beginning of a sentence."""
        return (self.number_of[START],)

    def prepare(self, pairs: Sequence[tuple[History, str]]) -> None:
        """Nothing to prepare."""

    def extend(self, history: History, word: str) -> tuple[History, float]:
        """The history after a word, and log p(word | history); unknown words cost <unk>'s unigram and empty the history."""
        number = self.number_of.get(word)
        if number is None:
            return (), self.unknown_logp
        logp = self._logp(history, number)
        kept = (*history, number)[-(self.order - 1) :] if self.order > 1 else ()
        while kept and kept not in self._grams:
            kept = kept[1:]
        return kept, logp

    def finish(self, history: History) -> float:
        """log p(</s> | history)."""
        return self._logp(history, self.number_of[STOP])

    @property
    def words(self) -> list[str]:
        """All words, sentence marks and <unk> left out."""
        return [word for word in self.number_of if not (word.startswith("<") and word.endswith(">"))]

    def unigram(self, word: str) -> float:
        """log p(word), without history."""
        number = self.number_of.get(word)
        return self.unknown_logp if number is None else self._grams[number,][0]

    def _logp(self, history: History, number: int) -> float:
        backoff = 0.0
        while True:
            found = self._grams.get((*history, number))
            if found is not None:
                return backoff + found[0]
            backoff += self._grams.get(history, (0.0, 0.0))[1]
            history = history[1:]
