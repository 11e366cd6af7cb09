"""What a student's next piece is, as a tree of questions to a language model: what a token leaves open is asked again behind it.

Shape letters: V the teacher's vocabulary, S the student's pieces.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.teachers.projection import Pieces, TokenMap

ROUNDS = 2  # how many tokens further is looked

_LOOKED_AT = 128  # tokens that go on with a word, at a state; less likely ones are open
_LEAST = 1e-3  # share of what is not excluded, for an open token to be asked behind


@dataclass(kw_only=True, slots=True, eq=False)
class Question:
    """Which piece comes after `history`, where the teacher has read `said`."""

    to: int  # the teacher's state: a scored place
    said: str
    history: Pieces
    slots: int  # tokens that the word still has, the next one included; 0: it is not known
    following: int | None  # the piece after that word, where it is known
    reference: int = -1  # the transcript's next token; −1: none
    then: "Question | None" = None  # asked behind the reference token, where that leaves the piece open
    state: Any = None  # the row and the place in it
    placed_S: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    open: float = 1.0
    reference_p: float = 0.0
    candidates: list[tuple[float, int]] = field(default_factory=list)  # open tokens by falling probability
    behind: list[tuple[float, "Question"]] = field(default_factory=list)

    def chain(self) -> Iterator["Question"]:
        """The question and those behind the reference tokens."""
        yield self
        if self.then is not None:
            yield from self.then.chain()

    def fill(self, tokens: TokenMap, p_V: NDArray[np.float64], *, keep: int) -> None:
        """Take the teacher's distribution at the state: what is placed, what is open, and the `keep` likeliest open tokens."""
        closed = self.slots == 1
        bin_V = tokens.bins(p_V, self.said, self.history, closed=closed, following=self.following, most=_LOOKED_AT)
        if self.reference >= 0 and (text := tokens.texts[self.reference]):
            where = tokens.bin(tokens.add(self.said, text), self.history, closed)
            if where == tokens.complete:
                where = tokens.open if self.following is None else self.following
            bin_V[self.reference] = where
        sum_B = np.bincount(bin_V, weights=p_V, minlength=tokens.complete).astype(np.float64)  # S pieces, open, excluded
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

    def open_tokens(self, most: int) -> list[tuple["Question", float, int]]:
        """The open tokens of the whole tree that weigh most: (where, p there, token)."""
        found: list[tuple[float, Question, float, int]] = []

        def collect(question: Question, weight: float) -> None:
            found.extend((weight * p, question, p, token) for p, token in question.candidates)
            if question.then is not None:
                collect(question.then, weight * question.reference_p)
            for p, further in question.behind:
                collect(further, weight * p)

        collect(self, 1.0)
        found.sort(key=lambda one: -one[0])
        least = _LEAST * (self.placed_S.sum() + self.open + self.reference_p)
        return [(question, p, token) for weight, question, p, token in found[:most] if weight >= least]

    def ask_behind(self, p: float, token: int, *, to: int, said: str) -> "Question":
        """A question behind an open token, which answers for its mass."""
        self.candidates.remove((p, token))
        self.open -= p
        further = Question(to=to, said=said, history=self.history, slots=max(0, self.slots - 1), following=self.following)
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
