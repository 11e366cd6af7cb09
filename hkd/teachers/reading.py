"""A sentence of the student's pieces as another teacher reads it: its words in the teacher's tokens, and what each token adds.

Shape letters: U positions (student pieces), W teacher tokens of a text, T those of the sentence itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hkd.teachers.base import Sentence
from hkd.teachers.forward import Tokens
from hkd.teachers.projection import Pieces, StudentPieces, TokenMap
from hkd.teachers.transformer import TransformerTeacher
from hkd.units.subword import SubwordModel
from hkd.units.text import words


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A sentence as the teacher reads it."""

    token_W: Tokens
    first: int  # the sentence's own tokens: their place in token_W
    word_T: list[int]  # the word of each
    pieces: list[Pieces]  # a word's student pieces
    texts: list[list[str] | None]  # a word's text after each of its tokens; None: it cannot be told
    begin: list[int]  # a word's first token
    before: tuple[str, Pieces] | None  # the word before the first, and its pieces
    after: int | None  # the first piece of what follows


class Reader:
    """Reads sentences of `subwords` as `teacher` does."""

    def __init__(self, teacher: TransformerTeacher, subwords: SubwordModel, student: StudentPieces, tokens: TokenMap) -> None:
        self._encode, self._unknown = teacher.encode, subwords.unknown
        self._student, self._tokens = student, tokens

    def read(self, sentence: Sentence) -> Reading:
        """The sentence's words in the teacher's tokens."""
        count = int(sentence.word_U.max(initial=-1)) + 1
        pieces = [tuple(sentence.unit_U[sentence.word_U == word].tolist()) for word in range(count)]
        own = [self._said(mine) for mine in pieces]
        before, after = (_split(unit, self._student.symbols) for unit in (sentence.before, sentence.after))
        left_W, right_W = (self._encode([*map(self._said, part)])[0].astype(np.int64) for part in (before, after))
        token_T, word_T = self._encode(own)
        begin = np.concatenate([[0], np.cumsum(np.bincount(word_T, minlength=count))]).astype(np.int64).tolist()
        texts = [
            None if self._unknown in mine else self._grown(word, token_T[a:b].tolist())
            for word, mine, a, b in zip(own, pieces, begin[:-1], begin[1:], strict=True)
        ]
        last = before[-1] if before and self._unknown not in before[-1] else None
        return Reading(
            token_W=np.concatenate([left_W, token_T, right_W]).astype(np.int64),
            first=len(left_W),
            word_T=word_T.tolist(),
            pieces=pieces,
            texts=texts,
            begin=begin,
            before=(self._said(last), last) if last is not None else None,
            after=after[0][0] if after else None,
        )

    def _said(self, pieces: Sequence[int]) -> str:
        return self._student.text([piece for piece in pieces if piece != self._unknown]).strip()

    def _grown(self, word: str, tokens: Sequence[int]) -> list[str] | None:
        """The word's text after each token; None where the tokens do not spell the word."""
        said, grown = "", []
        for token in tokens:
            text = self._tokens.texts[token]
            if not text:
                return None
            said = self._tokens.add(said, text).lstrip(" ")
            grown.append(said)
        return grown if grown and words(said) == [word] else None


def _split(units: Sequence[int], symbols: Sequence[str]) -> list[Pieces]:
    """Pieces by words; what stands before the first word's beginning is left out."""
    out: list[list[int]] = []
    for unit in units:
        if symbols[unit].startswith("▁"):
            out.append([unit])
        elif out:
            out[-1].append(unit)
    return [tuple(word) for word in out]
