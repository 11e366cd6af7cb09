"""Any left-to-right teacher as the language model of beam search: the very LM that distils, used at inference, with its cost.

log p(word | words before) = the sum over the word's pieces; sentences are scored whole, many at once, and remembered. The end of a sentence
costs nothing: transcripts have no punctuation, and what an LM says of an end without it is noise.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.teachers.base import Sentence, Teacher

Words = tuple[str, ...]
Encode = Callable[[Sequence[str]], tuple[NDArray[np.int32], NDArray[np.int32]]]
_REMEMBERED = 200_000


class TeacherLm:
    """Raises UserError for a teacher that reads both directions, or one that is not over subwords."""

    def __init__(self, teacher: Teacher, encode: Encode | None = None) -> None:
        """encode: words → (unit_U, word_U), for teachers over the project's own subwords."""
        if teacher.info.direction != "left":
            raise UserError(
                f"an LM beside the decoder must read from left to right, but {teacher.info.name} reads both ways."
                " Take a causal LM or an n-gram."
            )
        if teacher.level != "subword":
            raise UserError(
                f"an LM beside the decoder must be over subwords or words, but {teacher.info.name} is over {teacher.level}s."
            )
        self._teacher, self._encode = teacher, encode or teacher.encode
        self._known: dict[Words, float] = {}

    def start(self) -> Words:
        """No word so far."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        return ()

    def prepare(self, pairs: Sequence[tuple[Words, str]]) -> None:
        """Score the last words of these sentences together."""
        wanted = list(dict.fromkeys((*before, word) for before, word in pairs if (*before, word) not in self._known))
        sentences, lasts = [], []
        for number, sentence in enumerate(wanted):
            unit_U, word_U = self._encode(sentence)
            sentences.append(Sentence(id=str(number), unit_U=unit_U, word_U=word_U))
            lasts.append(word_U == len(sentence) - 1)
        if not sentences:
            return
        for sentence, last_U, topk in zip(wanted, lasts, self._teacher.score(sentences, k=1), strict=True):
            self._known[sentence] = float(topk.gold_logp_N[last_U].astype(np.float64).sum())

    def extend(self, before: Words, word: str) -> tuple[Words, float]:
        """The words so far, and log p(word | before)."""
        sentence = (*before, word)
        if sentence not in self._known:
            self.prepare([(before, word)])
        return sentence, self._known[sentence]

    def finish(self, before: Words) -> float:
        """Nothing."""
        del before
        return 0.0
