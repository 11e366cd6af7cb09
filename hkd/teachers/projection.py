"""A language model's tokens in the student's subwords: which piece comes next once a token is there, as far as that is
known.

What is asked: after the pieces H (of the word before and of this one), p(next piece = s). The teacher has read whole
tokens with the text X, which H goes beyond by some letters or none (the rest), and gives p(t | X). Each token t makes
the text X·t, and with it stands one of these:

- *placed*: t spells the rest, and every continuation of X·t begins with the pieces H and then s: p(t) counts to s;
- *excluded*: t does not spell the rest, or no continuation of X·t begins with H;
- *open*: neither; p(t) is split in the same way after one more token, where p( . | X·t) is known, else it is unplaced.

    p̂(s | H, X) = Σ_{t placed at s} p(t | X) / Σ_{t not excluded} p(t | X),    unplaced = 1 − Σ_s p̂(s | H, X)

So p̂(s) ≤ p(s) ≤ p̂(s) + unplaced, where p(s) is the teacher's own distribution over texts, given its tokens so far,
that one token spells the rest, and H: nothing is invented. (Without the condition on the rest its spellings by other
tokens would count, too, one letter at a time say: all but impossible in a trained LM, but each would need a pass, and
what is left of them would drown an unlikely word.)

Which pieces every continuation has: a word that is complete has the pieces that the student's model gives it. For a
word that may go on, the unigram model's best path (Viterbi; Kudo 2018, sec. 3.2) over any continuation either has a
border at the end of what is there, or a piece that crosses it; that piece must end the best path to its own end. So the
common beginning of these finitely many segmentations is exactly what is sure. BPE has no such rule: there only complete
words are sure.

Texts are compared as `hkd.units.text` makes them: lower case, punctuation separates words. Tokens with digits, spoken
symbols or half characters stay open, for what they are spoken as is not known.

Shape letters: V the teacher's vocabulary, S the student's pieces.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.units.sequences import SubwordModel
from hkd.units.text import words

Pieces = tuple[int, ...]

_MARK = "▁"
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇`´", "'"))
_WORD = re.compile(r"[^\W_](?:[^\W_]|[\u0300-\u036f]|'(?=[^\W_]))*")
_UNKNOWN = re.compile("[&%\ufffd]")
_COMBINING = frozenset(map(chr, range(0x300, 0x370)))
_LAST = "\U0010ffff"
_TABLES_KEPT = 128
_LOOKED_AT = 128  # tokens that go on with a word, at a state; less likely ones are open
_WORDS_KEPT = 1 << 18


def spoken(text: str) -> str | None:
    """Letters, apostrophes and spaces, as `hkd.units.text` reads plain text; None where that needs more than the text
    itself."""
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES).lower()
    if _UNKNOWN.search(text) or any(c.isalnum() and not c.isalpha() for c in text) or text[:1] in _COMBINING:
        return None
    said = "".join(c if c.isalpha() or c == "'" or c in _COMBINING else " " for c in text)
    # other scripts' marks, and letters that are newer than Python's tables
    return said if words(said) == words(text) else None


def token_texts(tokenizer: Any, size: int) -> list[str | None]:
    """The spoken text that each token adds after a letter (a leading space: it begins a word); None where it cannot be
    told."""
    decode = tokenizer.backend_tokenizer.decode_batch
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    start: str = decode([[anchor]], skip_special_tokens=False)[0]
    count = min(size, len(tokenizer))
    whole: list[str] = decode([[anchor, v] for v in range(count)], skip_special_tokens=False)
    texts = [spoken(text[len(start) :]) if text.startswith(start) else None for text in whole] + [None] * (size - count)
    for special in tokenizer.all_special_ids:
        texts[special] = None
    return texts


class StudentPieces:
    """The pieces that are sure for words, complete or not."""

    def __init__(self, model: SubwordModel) -> None:
        self.symbols = model.inventory.symbols
        self.closed = lru_cache(_WORDS_KEPT)(lambda word: tuple(model.encode([word])[0].tolist()))
        self.open = lru_cache(_WORDS_KEPT)(self._open)
        self.sequence = lru_cache(_WORDS_KEPT)(self._sequence)
        self._unigram = model.is_unigram
        self._begun: dict[str, list[int]] = {}  # what a piece can begin with → the pieces that go on
        for number, symbol in enumerate(self.symbols):
            for size in range(1, len(symbol)):
                self._begun.setdefault(symbol[:size], []).append(number)

    def text(self, pieces: Sequence[int]) -> str:
        """The pieces' text, a space before each word."""
        return "".join(self.symbols[piece] for piece in pieces).replace(_MARK, " ")

    def _open(self, word: str) -> Pieces:
        """The pieces with which every word begins that begins with `word`; an apostrophe at its end may also go."""
        if not self._unigram:
            return ()
        whole = self.closed(word)
        sure = len(whole)
        if word.endswith("'"):
            sure = _common(whole, self.closed(word[:-1]))
        marked = _MARK + word
        for start in range(len(marked)):
            before = self._path(marked[:start])
            if before is None or (common := _common(before, whole)) >= sure:
                continue
            for piece in self._begun.get(marked[start:], ()):
                if self.closed((marked[:start] + self.symbols[piece])[1:]) == (*before, piece):
                    sure = common
                    break
        return whole[:sure]

    def _path(self, marked: str) -> Pieces | None:
        """The best path to the end of a word's beginning, the mark included."""
        if marked in ("", _MARK):
            return () if not marked else (self.symbols.index(_MARK),) if _MARK in self.symbols else None
        return self.closed(marked[1:])

    def _sequence(self, text: str, closed: bool) -> Pieces:
        """The sure pieces of a text of words; the last one may go on unless `closed` or a separator stands behind
        it."""
        found = [match.span() for match in _WORD.finditer(text)]
        if not found:
            return ()
        pieces = [piece for a, b in found[:-1] for piece in self.closed(text[a:b])]
        (a, b), rest = found[-1], text[found[-1][1] :]
        if not closed and rest in ("", "'"):
            return (*pieces, *self.open(text[a:]))
        return (*pieces, *self.closed(text[a:b]))


def _common(left: Pieces, right: Pieces) -> int:
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))


class TokenMap:
    """Where each token puts its probability: a piece (its id), or `open`, or `excluded`, or `complete`: the known
    pieces and no more."""

    def __init__(self, texts: Sequence[str | None], student: StudentPieces, *, glue: bool, end: int | None) -> None:
        """`glue`: an apostrophe joins what stands beside it; `end`: the token after which nothing comes."""
        self.texts, self.student, self._glue = list(texts), student, glue
        self.may_go_on_V = np.array([bool(text) for text in texts])
        if end is not None:
            self.may_go_on_V[end] = False
        size = len(student.symbols)
        self.open, self.excluded, self.complete = size, size + 1, size + 2
        self._begins, self._goes_on, self._all = (
            self._sorted(wanted) for wanted in (lambda text: text[0] == " ", lambda text: text[0] != " ", bool)
        )
        self._unknown_N = np.array([v for v, text in enumerate(texts) if not text], np.int64)
        self._beginning = lru_cache(_TABLES_KEPT)(self._make_beginning)
        self.bin = lru_cache(_WORDS_KEPT)(self._make_bin)

    @classmethod
    def of(cls, tokenizer: Any, size: int, student: StudentPieces) -> "TokenMap":
        """Of a tokenizer. Where it writes "it's" as it ' s and keeps no trace of the missing spaces (as BERT's),
        apostrophes glue."""
        texts = token_texts(tokenizer, size)
        end = tokenizer.eos_token_id
        if end is not None:
            texts[end] = " "  # the word before it is complete
        pieces = tokenizer("it's", add_special_tokens=False)["input_ids"]
        glue = "".join(texts[piece] or "" for piece in pieces).strip() == "it ' s"
        return cls(["'" if glue and text == " '" else text for text in texts], student, glue=glue, end=end)

    def _sorted(self, wanted: Callable[[str], bool]) -> tuple[list[str], NDArray[np.int64]]:
        """Texts without leading spaces in order, and the token of each."""
        rows = sorted((text.lstrip(" "), v) for v, text in enumerate(self.texts) if text and wanted(text))
        return [text for text, _ in rows], np.array([v for _, v in rows], np.int64)

    def add(self, said: str, text: str) -> str:
        """The text after one more token."""
        return said + (text.lstrip(" ") if self._glue and said.endswith("'") else text)

    def _make_bin(self, text: str, history: Pieces, closed: bool) -> int:
        """Where a token goes that makes the text `text`; `closed`: its last word ends there."""
        closed = closed and not (self._glue and text.endswith("'"))  # what follows belongs to the same word
        pieces = self.student.sequence(text, closed)
        if _common(pieces, history) < min(len(pieces), len(history)):
            return self.excluded
        if len(pieces) > len(history):
            return pieces[len(history)]
        if not closed:
            return self.open
        if len(pieces) == len(history):
            return self.complete
        return self.open if self.student.symbols[history[len(pieces)]][0] == _MARK else self.excluded

    def _make_beginning(self, history: Pieces, everything: bool, closed: bool) -> NDArray[np.int32]:
        """Bins (V,) of the tokens that begin a word (or of all, as if they did), of whose pieces `history` is known;
        others: excluded."""
        texts, token_N = self._all if everything else self._begins
        bin_V = np.full(len(self.texts), self.excluded, np.int32)
        begun = self.student.text(history).strip(" ")
        part = slice(bisect_left(texts, begun), bisect_left(texts, begun + _LAST))
        for text, token in zip(texts[part], token_N[part].tolist(), strict=True):
            bin_V[token] = self.bin(text, history, closed)
        return bin_V

    def bins(
        self, p_V: NDArray[np.float64], said: str, history: Pieces, *, closed: bool, following: int | None
    ) -> NDArray[np.int32]:
        """The bin of every token (V,) after the text `said`: a piece, `open` or `excluded`.

        `following`: the piece after a complete word, where it is known. Of the tokens that go on with a word only the
        likeliest are looked at.
        """
        bin_V = np.full(len(self.texts), self.excluded, np.int32)
        done = self.student.sequence(said, True)
        known, read = self.student.text(history).lstrip(" "), " ".join(said.split())
        rest = known[len(read) :] if known.startswith(read) else ""
        glued = self._glue and said.endswith("'")
        between = not said or said.endswith(" ")
        if not glued:
            if len(done) > len(history):
                if done[: len(history)] == history:
                    bin_V[(self._all if between else self._begins)[1]] = done[len(history)]
            elif history[: len(done)] == done:
                bin_V = self._beginning(history[len(done) :], between, closed).copy()
        if not between and not rest.startswith(" "):
            # tokens that go on with the last word of `said` and spell the rest of what is known
            texts, token_N = self._all if glued else self._goes_on
            candidate_N = token_N[bisect_left(texts, rest) : bisect_left(texts, rest + _LAST)]
            bin_V[candidate_N] = self.open
            if len(candidate_N) > _LOOKED_AT:
                candidate_N = candidate_N[np.argpartition(-p_V[candidate_N], _LOOKED_AT)[:_LOOKED_AT]]
            for token in candidate_N.tolist():
                bin_V[token] = self.bin(self.add(said, self.texts[token] or ""), history, closed)
        if not rest:
            bin_V[self._unknown_N] = self.open
        bin_V[bin_V == self.complete] = self.open if following is None else following
        return bin_V
