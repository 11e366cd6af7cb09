"""Language models over words beside a search: a back-off n-gram (ARPA), and any left-to-right teacher.

- n-gram: log p(w | h) = the n-gram's, or bow(h) + log p(w | h without its oldest word) (Katz 1987, equation 4), in
  natural logarithms.
- Teacher: the LM that distils, used at inference. log p(word | words before) is the sum over the word's pieces.
  Sentences are scored whole, many at once, and remembered. The end of a sentence costs nothing: transcripts have no
  punctuation, and what an LM says of an end without it is noise.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.arpa import START, STOP, UNKNOWN, ZERO, Arpa, read_arpa
from hkd.errors import UserError, some
from hkd.teachers.base import Sentence, Teacher

History = tuple[int, ...]


def usable_words(
    lm: str | Path, words: Sequence[str], is_usable: Callable[[str], bool], *, rule: str
) -> tuple[list[str], str]:
    """The words that a search can give (see `rule`), and a sentence on the others or "". Raises UserError for none."""
    usable: list[str] = []
    others: list[str] = []
    for word in words:
        (usable if is_usable(word) else others).append(word)
    lower = sum(is_usable(word.lower()) for word in others if word != word.lower())
    hint = f" In lower case, as the student's transcripts are, {lower:,} of them would do: write the LM so."
    hint = hint if lower else ""
    if not usable:
        remedy = hint or " Give one in the language and spelling of the student's transcripts."
        raise UserError(f"{lm} must hold words that {rule}, but none of its {len(words):,} is one.{remedy}")
    if not others:
        return usable, ""
    return usable, f"must hold words that {rule}: {len(others)} of {len(words)} are left out ({some(others)}).{hint}"


def read_word_ngram(path: Path) -> Arpa:
    """An n-gram over words. Raises UserError as `hkd.arpa.read_arpa`, and where it has no `<s>` or no `</s>`."""
    arpa = read_arpa(path)
    if START not in arpa.symbols or STOP not in arpa.symbols:
        what = f"{path} must be an ARPA language model with <s> and </s>"
        raise UserError(f"{what}, but has not both. Give one of sentences.")
    return arpa


class ArpaLm:
    """Words and histories as numbers; a history is the last order − 1 words at most, cut to what the n-gram knows."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where the file is missing or no ARPA file over words."""
        arpa = read_word_ngram(path)
        self.path, self.order, self.words = path, len(arpa.orders), arpa.words
        self.number_of = {word: number for number, word in enumerate(arpa.symbols)}
        self._grams: dict[tuple[int, ...], tuple[float, float]] = {}
        for grams in arpa.orders:
            values = zip((grams.logp_M * math.log(10)).tolist(), (grams.bow_M * math.log(10)).tolist(), strict=True)
            self._grams.update(zip(map(tuple, grams.ids_Mn.tolist()), values, strict=True))
        if UNKNOWN in self.number_of:
            self.unknown_logp = self._grams[self.number_of[UNKNOWN],][0]
        else:
            first = arpa.orders[0]
            possible = first.logp_M[(first.logp_M > ZERO) & (first.ids_Mn[:, 0] != self.number_of[START])]
            self.unknown_logp = float(possible.min(initial=0.0)) * math.log(10)

    def __contains__(self, word: object) -> bool:
        return word in self.number_of

    def start(self) -> History:
        """The history at the beginning of a sentence."""
        return (self.number_of[START],)

    def prepare(self, pairs: Sequence[tuple[History, str]]) -> None:
        """Nothing to prepare."""

    def extend(self, history: History, word: str) -> tuple[History, float]:
        """The history after a word, and log p(word | history). Unknown words cost <unk>'s unigram and empty it."""
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


Words = tuple[str, ...]
Encode = Callable[[Sequence[str]], tuple[NDArray[np.int32], NDArray[np.int32]]]
_REMEMBERED = 200_000


class TeacherLm:
    """Raises UserError for a teacher that reads both directions, or one that is not over subwords."""

    def __init__(self, teacher: Teacher, encode: Encode | None = None) -> None:
        """encode: words → (unit_U, word_U), for teachers over the project's own subwords."""
        name, what = teacher.info.name, "an LM beside the decoder must"
        if teacher.info.direction != "left":
            remedy = "Take a causal LM or an n-gram."
            raise UserError(f"{what} read from left to right, but {name} reads both ways. {remedy}")
        if teacher.level != "subword":
            raise UserError(f"{what} be over subwords or words, but {name} is over {teacher.level}s.")
        self._teacher, self._encode = teacher, encode or teacher.encode
        self._known: dict[Words, float] = {}

    def start(self) -> Words:
        """No word so far."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        return ()

    def prepare(self, pairs: Sequence[tuple[Words, str]]) -> None:
        """Score the last words of these sentences together."""
        wanted = dict.fromkeys((*before, word) for before, word in pairs if (*before, word) not in self._known)
        sentences = []
        for number, spoken in enumerate(wanted):
            unit_U, word_U = self._encode(spoken)
            sentences.append(Sentence(id=str(number), unit_U=unit_U, word_U=word_U))
        scored = self._teacher.score(sentences, k=1) if sentences else []
        for spoken, sentence, topk in zip(wanted, sentences, scored, strict=True):
            last_U = sentence.word_U == len(spoken) - 1
            self._known[spoken] = float(topk.gold_logp_N[last_U].astype(np.float64).sum())

    def extend(self, before: Words, word: str) -> tuple[Words, float]:
        """The words so far, and log p(word | before)."""
        sentence = (*before, word)
        if sentence not in self._known:
            self.prepare([(before, word)])
        return sentence, self._known[sentence]

    def finish(self, before: Words) -> float:
        """Nothing."""
        return 0.0
