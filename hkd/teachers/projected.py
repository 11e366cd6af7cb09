"""A masked or causal language model as a teacher over the student's subwords, for `interpolation` (what is computed: hkd/teachers/projection.py).

- A causal LM gives p(next token | its tokens before). A masked LM gives p(token | the other words, the word's tokens before): a row a token,
  with the word's later tokens masked too (word-l2r; Kauf & Ivanova 2023, "A better way to do masked language model scoring", sec. 3).
  There a word's last token is known to be its last, as the next word's first token stands behind it.
- The question of a position is asked where the teacher has read the last token that lies wholly inside the known pieces. What stays open at
  the reference token is asked again one token later, and so on: these distributions are there. What stays open at the `look_ahead` likeliest
  other tokens is asked of the model, one further row each, and so again behind these. The rest is unplaced: it belongs to the tail.
- A word with a character that the student does not know cannot be read back from its pieces: its positions are unplaced, and those of the
  next word up to its first whole token.

Shape letters: U positions (student pieces), W teacher tokens of a text, V the teacher's vocabulary, S the student's pieces.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import digest_of, digest_of_file
from hkd.sparse import NO_GOLD, TopK
from hkd.teachers.base import Sentence, TeacherInfo
from hkd.teachers.forward import Row, Tokens
from hkd.teachers.projection import Pieces, StudentPieces, TokenMap
from hkd.teachers.questions import ROUNDS, Question
from hkd.teachers.reading import Reader, Reading
from hkd.teachers.transformer import MaskedTeacher, TransformerTeacher
from hkd.topk import select_topk
from hkd.units.inventory import UnitInventory
from hkd.units.level import SUBWORD
from hkd.units.subword import INVENTORY_FILE, MODEL_FILE, SubwordModel

_NOTHING = -30.0  # log-probability of a piece with no mass: finite, and within a codec's range


class ProjectedTeacher:
    """`inner`, asked about the pieces of `subwords`."""

    def __init__(self, inner: TransformerTeacher, subwords: SubwordModel, *, look_ahead: int = 4) -> None:
        if inner.info.options.get("mask_every"):
            raise UserError("mask_every must be 0 where a teacher is projected, which masks the rest of a word. Leave it out.")
        self.figures: dict[str, float | str] = {}
        self.num_candidates = len(subwords.inventory)
        self._inner, self._subwords, self._ahead = inner, subwords, look_ahead
        self._masked = isinstance(inner, MaskedTeacher)
        self._closing = len(inner._around()[1]) if isinstance(inner, MaskedTeacher) else 0
        recorded = {"project": subwords.inventory.digest, "look_ahead": look_ahead}
        self._info = replace(
            inner.info,
            digest=digest_of([inner.info.digest, digest_of_file(subwords.path), str(look_ahead)]),
            given="left-in-word" if self._masked else "left",
            options={**inner.info.options, **recorded},
        )

    @property
    def level(self) -> str:
        """Always subword."""
        return SUBWORD

    @property
    def inventory(self) -> UnitInventory:
        """The student's."""
        return self._subwords.inventory

    @property
    def info(self) -> TeacherInfo:
        """What the store records."""
        return self._info

    @property
    def room(self) -> int:
        """Pieces in a window: as many as the teacher takes tokens, which are no shorter as a rule."""
        return self._inner.room

    def encode(self, words: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Words → (unit_U, word_U): the student's pieces."""
        return self._subwords.encode(words)

    @cached_property
    def _student(self) -> StudentPieces:
        return StudentPieces(self._subwords)

    @cached_property
    def _map(self) -> TokenMap:
        return TokenMap.of(self._inner._tokenizer, len(self._inner.inventory), self._student)

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self._inner, self._subwords, self._student, self._map)

    def score(
        self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = (), selection: str = "topk"
    ) -> list[TopK]:
        """Per sentence the rows of all its positions; the tail holds what is unplaced, the gold unit is −1 where no mass is placed on it."""
        if k < 1:
            raise UserError(f"k must be at least 1, but is {k} instead.")
        if selection != "topk":
            raise UserError(f"selection must be topk where a teacher is projected, but is '{selection}' instead.")
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

    def unplaced_mass(self, sentences: Sequence[Sentence]) -> float:
        """The mean mass of a position that could not be placed."""
        rest_N = np.concatenate([np.zeros(0), *(p_US[:, -1] for p_US in self.distributions(sentences))])
        return float(rest_N.mean()) if len(rest_N) else 0.0

    def distributions(self, sentences: Sequence[Sentence]) -> list[NDArray[np.float64]]:
        """Per sentence (U, S + 1): the placed probabilities of all pieces, and what is unplaced."""
        rows: list[Row] = []
        asked: list[list[Question | None]] = []
        first = 0
        for sentence in sentences:
            read = self._reader.read(sentence)
            asked.append(self._questions(read, first))
            states = len(read.word_T) + (0 if self._masked else 1)
            if states:
                rows += self._rows(read, first, states)
            first += states
        self._ask([q for questions in asked for q in questions if q is not None], rows)
        return [
            np.stack([*map(self._row, questions)]) if questions else np.zeros((0, self.num_candidates + 1)) for questions in asked
        ]

    def _row(self, question: Question | None) -> NDArray[np.float64]:
        out = np.zeros(self.num_candidates + 1)
        out[-1] = 1.0
        if question is not None:
            placed_S, left_open = question.answer()
            total = placed_S.sum() + left_open
            if total > 0:
                out[:-1], out[-1] = placed_S / total, left_open / total
        return out

    # ---- questions ----

    def _questions(self, read: Reading, first: int) -> list[Question | None]:
        """One a position; None where nothing is known."""
        out: list[Question | None] = []
        for word, mine in enumerate(read.pieces):
            if word:
                texts = read.texts[word - 1]
                previous = (texts[-1], read.pieces[word - 1]) if texts is not None else None
            else:
                previous = read.before or ("", ())
            for place in range(len(mine)):
                out.append(self._question(read, word, mine[:place], previous, first))
        return out

    def _question(
        self, read: Reading, word: int, known: Pieces, previous: tuple[str, Pieces] | None, first: int
    ) -> Question | None:
        grown = read.texts[word]
        if grown is None:
            return None
        text = self._student.text(known).strip(" ")
        inside = sum(text.startswith(said) and len(said) <= len(text) for said in grown)
        if inside:
            return self._chain(read, read.begin[word] + inside, grown[inside - 1], known, first)
        if previous is None:
            return None
        return self._chain(read, read.begin[word], previous[0], (*previous[1], *known), first)

    def _chain(self, read: Reading, token: int, said: str, history: Pieces, first: int) -> Question | None:
        """The question before the sentence's token number `token`, and those after the reference tokens that leave it open."""
        last = len(read.word_T)
        if self._masked and token >= last:
            return None
        reference = int(read.token_W[read.first + token]) if token < last else -1
        slots, following = 0, None
        if self._masked:
            word = read.word_T[token]
            slots = read.begin[word + 1] - token
            following = read.pieces[word + 1][0] if word + 1 < len(read.pieces) else read.after
        question = Question(to=first + token, said=said, history=history, slots=slots, following=following, reference=reference)
        text = self._map.texts[reference] if reference >= 0 else None
        if text and slots != 1:
            after = self._map.add(said, text)
            if self._map.bin(after, history, False) == self._map.open:
                question.then = self._chain(read, token + 1, after, history, first)
        return question

    # ---- the model ----

    def _rows(self, read: Reading, first: int, states: int) -> Iterator[Row]:
        """The passes of a sentence's states."""
        at_S, to_S = np.arange(states) + read.first, np.arange(states) + first
        if not self._masked:
            token_W = np.append(read.token_W[: read.first + len(read.word_T)], 0)  # what follows the last token is asked for, too
            yield from self._inner._rows(token_W, at_S, to_S)
            return
        for row in self._inner._rows(read.token_W, at_S, to_S):
            token = int(row.to[0]) - first
            rest = read.begin[read.word_T[token] + 1] - token
            end = min(int(row.at[0]) + rest, len(row.token_L) - self._closing)
            yield replace(row, masked=np.arange(int(row.at[0]), end))

    def _ask(self, roots: Sequence[Question], rows: Sequence[Row]) -> None:
        """Answer the questions and their chains from the rows' distributions; then, round by round, one token further."""
        asked: dict[int, list[Question]] = {}
        for root in roots:
            for question in root.chain():
                asked.setdefault(question.to, []).append(question)
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

    def _one_further(self, row: Row, at: int, token: int, to: int) -> tuple[Row, int]:
        """The pass that has one more token at a state of a row, and the state after it."""
        one, none = np.array([to], np.int64), np.full(1, NO_GOLD, np.int64)
        if not self._masked:
            return Row(np.append(row.token_L[: at + 1], token), row.masked, np.array([at + 1]), none, one), at + 1
        token_L = row.token_L.copy()
        token_L[at] = token
        return Row(token_L, row.masked[1:], np.array([at + 1]), none, one), at + 1

    def _look(self, asked: Mapping[int, Sequence[Question]], where: Mapping[int, tuple[Row, int]]) -> None:
        """Fill in the questions at the states of some rows."""

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
    """The student's subwords by their inventory, their model, or the folder of both. Raises UserError where the two do not fit."""
    folder = path if path.is_dir() else path.parent
    model = SubwordModel(path if path.suffix == ".model" else folder / MODEL_FILE)
    inventory = path if path.suffix == ".json" else folder / INVENTORY_FILE
    if inventory.is_file() and UnitInventory.load(inventory).digest != model.inventory.digest:
        raise UserError(f"{model.path} must have the pieces of {inventory}, but has others. Run `hkd units train` again.")
    return model
