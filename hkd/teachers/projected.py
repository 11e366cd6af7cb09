"""A masked or causal language model as a teacher over the student's subwords, for `interpolation`.

What is asked: after the pieces H (of the word before and of this one), p(next piece = s). The teacher has read whole
tokens with the text X, which H goes beyond by some letters or none (the rest), and gives p(t | X). Each token t makes
the text X·t, and with it stands one of these:

- *placed*: t spells the rest, and every continuation of X·t begins with the pieces H and then s: p(t) counts to s;
- *excluded*: t does not spell the rest, or no continuation of X·t begins with H;
- *open*: neither; p(t) is split in the same way after one more token, where p( . | X·t) is known, else it is unplaced.

    p̂(s | H, X) = Σ_{t placed at s} p(t | X) / Σ_{t not excluded} p(t | X),    unplaced = 1 − Σ_s p̂(s | H, X)

So p̂(s) ≤ p(s) ≤ p̂(s) + unplaced, where p(s) is the teacher's own distribution over texts, given its tokens so far,
that one token spells the rest, and H: nothing is invented. (Spellings of the rest by several tokens are all but
impossible in a trained LM, but each would need a pass, and what is left of them would drown an unlikely word.)

Which pieces every continuation has: a word that is complete has the pieces that the student's model gives it. For a
word that may go on, the unigram model's best path (Viterbi; Kudo 2018, sec. 3.2) over any continuation either has a
border at the end of what is there, or a piece that crosses it; that piece must end the best path to its own end. So the
common beginning of these finitely many segmentations is exactly what is sure. BPE has no such rule: there only complete
words are sure.

Texts are compared as `hkd.units.text` makes them: lower case, punctuation separates words. Tokens with digits, spoken
symbols or half characters stay open, for what they are spoken as is not known.

How the model is asked:

- A causal LM gives p(next token | its tokens before). A masked LM gives p(token | the other words, the word's tokens
  before): a row a token, with the word's later tokens masked too (word-l2r; Kauf & Ivanova 2023, "A better way to do
  masked language model scoring", sec. 3). There a word's last token is known to be its last, as the next word's first
  token stands behind it.
- The question of a position is asked where the teacher has read the last token that lies wholly inside the known
  pieces. What stays open at the reference token is asked again one token later, and so on: these distributions are
  there. What stays open at the `look_ahead` likeliest other tokens is asked of the model, one further row each, and so
  again behind these. The rest is unplaced: it belongs to the tail.
- A word with a character that the student does not know cannot be read back from its pieces: its positions are
  unplaced, and those of the next word up to its first whole token.

Shape letters: U positions (student pieces), W teacher tokens of a text, V the teacher's vocabulary, S the student's
pieces.
"""

import math
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.errors import UserError, check_setting
from hkd.files import digest_of, digest_of_file
from hkd.sparse import NO_GOLD, TopK
from hkd.teachers.base import Sentence, Teacher
from hkd.teachers.forward import TokenRow, Tokens
from hkd.teachers.transformer import MaskedTeacher, TransformerTeacher
from hkd.topk import select_topk
from hkd.units.inventory import UnitInventory
from hkd.units.sequences import INVENTORY_FILE, MODEL_FILE, WORD_MARK, SubwordModel
from hkd.units.text import APOSTROPHES, PLAIN_WORD, words

Pieces = tuple[int, ...]

ROUNDS = 2  # how many tokens further is looked
_UNKNOWN = re.compile("[&%\ufffd]")
_COMBINING = frozenset(map(chr, range(0x300, 0x370)))
_LAST = "\U0010ffff"
_TABLES_KEPT = 128
_LOOKED_AT = 128  # tokens that go on with a word, at a state; less likely ones are open
_WORDS_KEPT = 1 << 18
_LEAST = 1e-3  # share of what is not excluded, for an open token to be asked behind
_NOTHING = -30.0  # log-probability of a piece with no mass: finite, and within a codec's range


def spoken(text: str) -> str | None:
    """Letters, apostrophes and spaces, as `hkd.units.text` reads plain text; None where the text alone does not say."""
    text = unicodedata.normalize("NFKC", text.translate(APOSTROPHES)).translate(APOSTROPHES).lower()
    if _UNKNOWN.search(text) or any(c.isalnum() and not c.isalpha() for c in text) or text[:1] in _COMBINING:
        return None
    said = "".join(c if c.isalpha() or c == "'" or c in _COMBINING else " " for c in text)
    # other scripts' marks, and letters that are newer than Python's tables
    return said if words(said) == words(text) else None


def token_texts(tokenizer: Any, size: int) -> list[str | None]:
    """The spoken text that each token adds after a letter (a leading space: it begins a word); None: unknown."""
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
        return "".join(self.symbols[piece] for piece in pieces).replace(WORD_MARK, " ")

    def _open(self, word: str) -> Pieces:
        """The pieces with which every word begins that begins with `word`; an apostrophe at its end may also go."""
        if not self._unigram:
            return ()
        whole = self.closed(word)
        sure = len(whole)
        if word.endswith("'"):
            sure = _common(whole, self.closed(word[:-1]))
        marked = WORD_MARK + word
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
        if marked == WORD_MARK:
            return (self.symbols.index(WORD_MARK),) if WORD_MARK in self.symbols else None
        return self.closed(marked[1:]) if marked else ()

    def _sequence(self, text: str, closed: bool) -> Pieces:
        """The sure pieces of a text of words; the last may go on unless `closed` or a separator stands behind it."""
        found = [match.span() for match in PLAIN_WORD.finditer(text)]
        if not found:
            return ()
        *before, (start, end) = found
        pieces = [piece for a, b in before for piece in self.closed(text[a:b])]
        if not closed and text[end:] in ("", "'"):
            return (*pieces, *self.open(text[start:]))
        return (*pieces, *self.closed(text[start:end]))


def _common(left: Pieces, right: Pieces) -> int:
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))


class TokenMap:
    """Where each token puts its probability: a piece (its id), `open`, `excluded`, or `complete`: the known pieces."""

    def __init__(self, texts: Sequence[str | None], student: StudentPieces, *, glue: bool, end: int | None) -> None:
        """`glue`: an apostrophe joins what stands beside it; `end`: the token after which nothing comes."""
        self.texts, self.student, self._glue = list(texts), student, glue
        self.may_go_on_V = np.array([bool(text) for text in texts])
        if end is not None:
            self.may_go_on_V[end] = False
        size = len(student.symbols)
        self.open, self.excluded, self.complete = size, size + 1, size + 2
        self._all = self._sorted(bool)
        self._begins = self._sorted(lambda text: text[0] == " ")
        self._goes_on = self._sorted(lambda text: text[0] != " ")
        self._unknown_N = np.array([v for v, text in enumerate(texts) if not text], np.int64)
        self._beginning = lru_cache(_TABLES_KEPT)(self._make_beginning)
        self.bin = lru_cache(_WORDS_KEPT)(self._make_bin)

    @classmethod
    def of(cls, tokenizer: Any, size: int, student: StudentPieces) -> "TokenMap":
        """Of a tokenizer. Where it writes "it's" as it ' s without a trace of that (as BERT's), apostrophes glue."""
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
        return self.open if self.student.symbols[history[len(pieces)]][0] == WORD_MARK else self.excluded

    def _make_beginning(self, history: Pieces, everything: bool, closed: bool) -> NDArray[np.int32]:
        """Bins (V,) of tokens that begin a word (or of all, as if they did), else excluded; `history`: its pieces."""
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
        """The bin of every token (V,) after the text `said`: a piece, `open` or `excluded`; of those that go on with a
        word only the likeliest are looked at. `following`: the piece after a complete word, where it is known."""
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


@dataclass(frozen=True, kw_only=True)
class TeacherInput:
    """A sentence as the teacher reads it."""

    token_W: Tokens
    first: int  # the sentence's own tokens: their place in token_W
    word_T: list[int]  # the word of each
    pieces: list[Pieces]  # a word's student pieces
    texts: list[list[str] | None]  # a word's text after each of its tokens; None: it cannot be told
    begin: list[int]  # a word's first token
    before: tuple[str, Pieces] | None  # the word before the first, and its pieces
    after: int | None  # the first piece of what follows


def _split(units: Sequence[int], symbols: Sequence[str]) -> list[Pieces]:
    """Pieces by words; what stands before the first word's beginning is left out."""
    out: list[list[int]] = []
    for unit in units:
        if symbols[unit].startswith(WORD_MARK):
            out.append([unit])
        elif out:
            out[-1].append(unit)
    return [tuple(word) for word in out]


@dataclass(kw_only=True, slots=True, eq=False)
class PieceQuery:
    """Which piece comes after `history`, where the teacher has read `said`; what is open is asked again behind it."""

    to: int  # the teacher's state: a scored place
    said: str
    history: Pieces
    slots: int  # tokens that the word still has, the next one included; 0: it is not known
    following: int | None  # the piece after that word, where it is known
    reference: int = -1  # the transcript's next token; −1: none
    then: "PieceQuery | None" = None  # asked behind the reference token, where that leaves the piece open
    state: Any = None  # the row and the place in it
    placed_S: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    open: float = 1.0
    reference_p: float = 0.0
    candidates: list[tuple[float, int]] = field(default_factory=list)  # open tokens by falling probability
    behind: list[tuple[float, "PieceQuery"]] = field(default_factory=list)

    def fill(self, tokens: TokenMap, p_V: NDArray[np.float64], *, keep: int) -> None:
        """Take the teacher's distribution at the state: what is placed, what open, the `keep` likeliest open tokens."""
        closed = self.slots == 1
        bin_V = tokens.bins(p_V, self.said, self.history, closed=closed, following=self.following)
        if self.reference >= 0 and (text := tokens.texts[self.reference]):
            where = tokens.bin(tokens.add(self.said, text), self.history, closed)
            if where == tokens.complete:
                where = tokens.open if self.following is None else self.following
            bin_V[self.reference] = where
        # S pieces, open, excluded
        sum_B = np.bincount(bin_V, weights=p_V, minlength=tokens.complete).astype(np.float64)
        self.placed_S, self.open = sum_B[: tokens.open], float(sum_B[tokens.open])
        open_V = (bin_V == tokens.open) & tokens.may_go_on_V
        if self.then is not None:
            self.reference_p = float(p_V[self.reference])
            self.open -= self.reference_p
            open_V[self.reference] = False
        if keep and not closed:
            open_N = np.flatnonzero(open_V & (p_V >= _LEAST * (1.0 - sum_B[tokens.excluded])))
            best_N = open_N[np.argsort(-p_V[open_N], kind="stable")][:keep]
            self.candidates = [(float(p_V[token]), token) for token in best_N.tolist()]

    def open_tokens(self, most: int) -> list[tuple["PieceQuery", float, int]]:
        """The open tokens of the whole tree that weigh most: (where, p there, token)."""
        found: list[tuple[float, PieceQuery, float, int]] = []

        def collect(question: PieceQuery, weight: float) -> None:
            found.extend((weight * p, question, p, token) for p, token in question.candidates)
            if question.then is not None:
                collect(question.then, weight * question.reference_p)
            for p, further in question.behind:
                collect(further, weight * p)

        collect(self, 1.0)
        found.sort(key=lambda one: -one[0])
        least = _LEAST * (self.placed_S.sum() + self.open + self.reference_p)
        return [(question, p, token) for weight, question, p, token in found[:most] if weight >= least]

    def ask_behind(self, p: float, token: int, *, to: int, said: str) -> "PieceQuery":
        """A question behind an open token, which answers for its mass."""
        self.candidates.remove((p, token))
        self.open -= p
        further = PieceQuery(
            to=to, said=said, history=self.history, slots=max(0, self.slots - 1), following=self.following
        )
        self.behind.append((p, further))
        return further

    def answer(self) -> tuple[NDArray[np.float64], float]:
        """(placed_S, open) of the whole tree; with what is excluded they sum to one."""
        placed_S, left_open = self.placed_S.copy(), self.open
        for p, further in [*self.behind, *([(self.reference_p, self.then)] if self.then is not None else [])]:
            placed, rest = further.answer()
            placed_S += p * placed
            left_open += p * rest
        return placed_S, left_open


class ProjectedTeacher(Teacher):
    """`inner`, asked about the pieces of `subwords`."""

    def __init__(self, inner: TransformerTeacher, subwords: SubwordModel, *, look_ahead: int = 4) -> None:
        if inner.info.options.get("mask_every"):
            raise UserError(
                "mask_every must be 0 where a teacher is projected, which masks the rest of a word. Leave it out."
            )
        self.num_candidates = len(subwords.inventory)
        self._inner, self._subwords, self._ahead = inner, subwords, look_ahead
        inner.spaced = True  # here a word ends at a space
        self._masked = isinstance(inner, MaskedTeacher)
        self._student = StudentPieces(subwords)
        self._map = TokenMap.of(inner._tokenizer, len(inner.inventory), self._student)
        # pieces in a window: as many as the teacher takes tokens, which are no shorter as a rule
        self.room = inner.room
        info = replace(
            inner.info,
            digest=digest_of([inner.info.digest, digest_of_file(subwords.path), str(look_ahead)]),
            given="left-in-word" if self._masked else "left",
            options={**inner.info.options, "project": subwords.inventory.digest, "look_ahead": look_ahead},
        )
        super().__init__(inventory=subwords.inventory, info=info)

    def encode(self, words: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Words → (unit_U, word_U): the student's pieces."""
        return self._subwords.encode(words)

    def score(
        self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = (), selection: str = "topk"
    ) -> list[TopK]:
        """Per sentence the rows of its positions; the tail holds what is unplaced; a gold unit without mass is −1."""
        check_setting("k", k, "be at least 1", k >= 1)
        check_setting("selection", f"'{selection}'", "be topk where a teacher is projected", selection == "topk")
        size = self.num_candidates
        rest_V = torch.zeros(size + 1, dtype=torch.bool)
        rest_V[size] = True
        scored = []
        for sentence, p_US in zip(sentences, self.distributions(sentences), strict=True):
            gold_U = sentence.unit_U.astype(np.int64)
            gold_U = np.where(p_US[np.arange(len(gold_U)), gold_U] > 0, gold_U, NO_GOLD)
            logp_US = np.log(np.maximum(p_US, math.exp(_NOTHING)))
            given = (torch.from_numpy(logp_US), torch.from_numpy(gold_U))
            scored.append(select_topk(*given, k=k, temperatures=temperatures, exclude_V=rest_V))
        return scored

    def measured(self, sentences: Sequence[Sentence]) -> dict[str, float]:
        """The mean mass of a position that could not be placed."""
        rest_N = np.concatenate([np.zeros(0), *(p_US[:, -1] for p_US in self.distributions(sentences))])
        return {"unplaced_mass": float(rest_N.mean()) if len(rest_N) else 0.0}

    def distributions(self, sentences: Sequence[Sentence]) -> list[NDArray[np.float64]]:
        """Per sentence (U, S + 1): the placed probabilities of all pieces, and what is unplaced."""
        rows: list[TokenRow] = []
        asked: list[list[PieceQuery | None]] = []
        first = 0
        for sentence in sentences:
            read = self._read(sentence)
            asked.append(self._questions(read, first))
            states = len(read.word_T) + (0 if self._masked else 1)
            if states:
                rows += self._rows(read, first, states)
            first += states
        self._ask([q for questions in asked for q in questions if q is not None], rows)
        return [np.reshape([*map(self._row, questions)], (-1, self.num_candidates + 1)) for questions in asked]

    def _row(self, question: PieceQuery | None) -> NDArray[np.float64]:
        row = np.zeros(self.num_candidates + 1)
        row[-1] = 1.0  # all unplaced
        if question is not None:
            answer = np.append(*question.answer())
            total = answer[:-1].sum() + answer[-1]
            row = answer / total if total > 0 else row
        return row

    # ---- reading ----

    def _read(self, sentence: Sentence) -> TeacherInput:
        """The sentence's words in the teacher's tokens."""
        count, unknown = int(sentence.word_U.max(initial=-1)) + 1, self._subwords.unknown
        pieces = [tuple(sentence.unit_U[sentence.word_U == word].tolist()) for word in range(count)]
        own = [self._said(mine) for mine in pieces]
        before, after = (_split(unit, self._student.symbols) for unit in (sentence.before, sentence.after))
        left_W, right_W = (self._inner.encode([*map(self._said, part)])[0] for part in (before, after))
        token_T, word_T = self._inner.encode(own)
        begin = np.cumsum([0, *np.bincount(word_T, minlength=count)]).tolist()
        texts = [
            None if unknown in mine else self._grown(word, token_T[a:b].tolist())
            for word, mine, (a, b) in zip(own, pieces, pairwise(begin), strict=True)
        ]
        return TeacherInput(
            token_W=np.concatenate([left_W, token_T, right_W]).astype(np.int64),
            first=len(left_W),
            word_T=word_T.tolist(),
            pieces=pieces,
            texts=texts,
            begin=begin,
            before=(self._said(before[-1]), before[-1]) if before and unknown not in before[-1] else None,
            after=after[0][0] if after else None,
        )

    def _said(self, pieces: Sequence[int]) -> str:
        return self._student.text([piece for piece in pieces if piece != self._subwords.unknown]).strip()

    def _grown(self, word: str, tokens: Sequence[int]) -> list[str] | None:
        """The word's text after each token; None where the tokens do not spell the word."""
        said, grown = "", []
        for token in tokens:
            if not (text := self._map.texts[token]):
                return None
            said = self._map.add(said, text).lstrip(" ")
            grown.append(said)
        return grown if grown and words(said) == [word] else None

    # ---- questions ----

    def _questions(self, read: TeacherInput, first: int) -> list[PieceQuery | None]:
        """A question for each position; None where it cannot be told what the teacher has read there."""
        out: list[PieceQuery | None] = []
        # the word before, and its pieces, where they are known
        previous: tuple[str, Pieces] | None = read.before or ("", ())
        for mine, grown, begin in zip(read.pieces, read.texts, read.begin[:-1], strict=True):
            for known in (mine[:place] for place in range(len(mine))):
                text = self._student.text(known).strip(" ")
                inside = sum(map(text.startswith, grown or ()))  # tokens of the word that lie inside the known pieces
                if grown and inside:
                    out.append(self._chain(read, begin + inside, grown[inside - 1], known, first))
                elif grown and previous:
                    out.append(self._chain(read, begin, previous[0], (*previous[1], *known), first))
                else:
                    out.append(None)
            previous = (grown[-1], mine) if grown else None
        return out

    def _chain(self, read: TeacherInput, token: int, said: str, history: Pieces, first: int) -> PieceQuery | None:
        """The question before the sentence's token `token`, and those after the reference tokens that leave it open."""
        last = len(read.word_T)
        if self._masked and token >= last:
            return None
        reference = int(read.token_W[read.first + token]) if token < last else -1
        slots, following = 0, None
        if self._masked:
            word = read.word_T[token]
            slots = read.begin[word + 1] - token
            following = read.pieces[word + 1][0] if word + 1 < len(read.pieces) else read.after
        question = PieceQuery(
            to=first + token, said=said, history=history, slots=slots, following=following, reference=reference
        )
        text = self._map.texts[reference] if reference >= 0 else None
        if text and slots != 1:
            after = self._map.add(said, text)
            if self._map.bin(after, history, False) == self._map.open:
                question.then = self._chain(read, token + 1, after, history, first)
        return question

    # ---- the model ----

    def _rows(self, read: TeacherInput, first: int, states: int) -> Iterator[TokenRow]:
        at_S, to_S = np.arange(states) + read.first, np.arange(states) + first
        if not self._masked:
            # what follows the last token is asked for, too
            token_W = np.append(read.token_W[: read.first + len(read.word_T)], 0)
            yield from self._inner._rows(token_W, at_S, to_S)
            return
        for row in self._inner._rows(read.token_W, at_S, to_S):
            token = int(row.to[0]) - first
            rest = read.begin[read.word_T[token] + 1] - token
            end = min(int(row.at[0]) + rest, len(row.token_L) - len(self._inner._end))
            yield replace(row, masked=np.arange(int(row.at[0]), end))

    def _ask(self, roots: Sequence[PieceQuery], rows: Sequence[TokenRow]) -> None:
        """Answer the questions and their chains from the rows' distributions, then round by round one token further."""
        asked: dict[int, list[PieceQuery]] = {}
        for root in roots:
            question: PieceQuery | None = root
            while question is not None:
                asked.setdefault(question.to, []).append(question)
                question = question.then
        where = {int(to): (row, int(at)) for row in rows for to, at in zip(row.to, row.at, strict=True)}
        for _ in range(ROUNDS):
            self._look(asked, where)
            further: dict[tuple[int, int, int], int] = {}
            asked, beyond = {}, {}
            for root in roots if self._ahead else ():
                for parent, p, token in root.open_tokens(self._ahead):
                    row, at = parent.state
                    to = further.setdefault((id(row), at, token), len(further))
                    if to not in beyond:
                        beyond[to] = self._one_further(row, at, token, to)
                    said = self._map.add(parent.said, self._map.texts[token] or "")
                    asked.setdefault(to, []).append(parent.ask_behind(p, token, to=to, said=said))
            if not asked:
                return
            where = beyond
        self._look(asked, where)

    def _one_further(self, row: TokenRow, at: int, token: int, to: int) -> tuple[TokenRow, int]:
        """The pass that has one more token at a state of a row, and the state after it."""
        one, none = np.array([to], np.int64), np.full(1, NO_GOLD, np.int64)
        if not self._masked:
            return TokenRow(np.append(row.token_L[: at + 1], token), row.masked, np.array([at + 1]), none, one), at + 1
        token_L = row.token_L.copy()
        token_L[at] = token
        return TokenRow(token_L, row.masked[1:], np.array([at + 1]), none, one), at + 1

    def _look(self, asked: Mapping[int, Sequence[PieceQuery]], where: Mapping[int, tuple[TokenRow, int]]) -> None:
        def choose(logits_MV: torch.Tensor, gold_M: Tokens, to_M: Tokens) -> TopK:
            for logits_V, to in zip(logits_MV, to_M.tolist(), strict=True):
                if to in asked:
                    p_V = torch.softmax(logits_V.double().cpu(), -1).numpy()
                    for question in asked[to]:
                        question.state = where[to]
                        question.fill(self._map, p_V, keep=self._ahead)
            return TopK.empty(1)

        if rows := list({id(row): row for row, _ in where.values()}.values()):
            self._inner._scorer.score(rows, choose)


def student_subwords(path: Path) -> SubwordModel:
    """The student's subwords by their inventory, model, or folder of both. Raises UserError where these do not fit."""
    if words("a'") != ["a"]:
        rule = 'teacher.project must be left out where [normalisation] apostrophes is "letters", but is given'
        raise UserError(f"{rule}: it takes words to end in letters. Leave out one of the two.")
    folder = path if path.is_dir() else path.parent
    model = SubwordModel(path if path.suffix == ".model" else folder / MODEL_FILE)
    inventory = path if path.suffix == ".json" else folder / INVENTORY_FILE
    if inventory.is_file() and UnitInventory.load(inventory).digest != model.inventory.digest:
        rule = f"{model.path} must have the pieces of {inventory}"
        raise UserError(f"{rule}, but has others. Run `hkd units train` again.")
    return model
