"""Language models beside the acoustic output in beam search (shallow fusion): what a prefix of units costs.

- A fusion scores prefixes of *units*; `WordFusion` puts a word LM behind it: a word is scored when the next one begins, or at the end.
- With a lexicon only its words can come out, and a prefix tree of their pieces keeps a look-ahead: the best unigram below a node is
  counted in advance and taken back when the word is known, so that totals are exact and pruning is fair.
- score = Σ weight · log p_LM(word | before) + bonus · number of words.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

WORD_MARK = "▁"


class Fusion(Protocol):
    """Adds to the score of a prefix of units. States are opaque and never changed."""

    def start(self) -> Any:
        """The state of the empty prefix."""

    def extend(self, pairs: Sequence[tuple[Any, int]]) -> list[tuple[Any, float] | None]:
        """(state, unit) → (state after the unit, what it adds to the score), or None where the unit may not follow."""

    def finish(self, states: Sequence[Any]) -> list[float | None]:
        """What the end adds; None where the prefix may not end here."""


class WordLm(Protocol):
    """A language model over words: `hkd.decode.arpa.ArpaLm`, `hkd.decode.teacher_lm.TeacherLm`."""

    def start(self) -> Any:
        """The state at the beginning of a sentence."""

    def prepare(self, pairs: Sequence[tuple[Any, str]]) -> None:
        """Told which (state, word) will be asked for next, so that they can be computed together."""

    def extend(self, state: Any, word: str) -> tuple[Any, float]:
        """The state after a word, and log p(word | state)."""

    def finish(self, state: Any) -> float:
        """log p(end | state)."""


@dataclass(slots=True)
class Node:
    """A node of the prefix tree of pieces. `ahead`: the best unigram log-probability of the words below."""

    children: dict[int, "Node"] = field(default_factory=dict)
    word: str | None = None
    ahead: float = float("-inf")


def prefix_tree(
    words: Iterable[str], encode: Callable[[str], Sequence[int]], unigram: Callable[[str], float] = lambda _: 0.0
) -> Node:
    """The tree of the words' pieces; words without pieces are left out."""
    root = Node()
    for word in words:
        pieces = encode(word)
        if not len(pieces):
            continue
        logp = unigram(word)
        node = root
        for piece in pieces:
            node.ahead = max(node.ahead, logp)
            node = node.children.setdefault(int(piece), Node())
        node.ahead = max(node.ahead, logp)
        node.word = word
    return root


@dataclass(frozen=True, slots=True)
class _State:
    """LM state before the open word; the open word as a node of the tree or as text; what the look-ahead has counted for it."""

    lm: Any
    node: Node | None
    text: str
    ahead: float


class WordFusion:
    """A word LM with weight and bonus, with a lexicon (a prefix tree) or without (any pieces make a word)."""

    def __init__(
        self,
        lm: WordLm | None,
        symbols: Sequence[str],
        *,
        weight: float = 0.5,
        bonus: float = 0.0,
        lexicon: Node | None = None,
    ) -> None:
        self._lm, self._symbols, self._weight, self._bonus, self._lexicon = lm, tuple(symbols), weight, bonus, lexicon

    def start(self) -> _State:
        """No word is open."""
        return _State(None if self._lm is None else self._lm.start(), self._lexicon, "", 0.0)

    def extend(self, pairs: Sequence[tuple[Any, int]]) -> list[tuple[Any, float] | None]:
        """Grow the open word by a piece, or close it and open the next."""
        self._prepare(state for state, unit in pairs if self._symbols[unit].startswith(WORD_MARK))
        closed: dict[int, tuple[Any, float] | None] = {}  # many units close the same word
        return [self._extend(state, unit, closed) for state, unit in pairs]

    def finish(self, states: Sequence[Any]) -> list[float | None]:
        """Close the open word, and the sentence."""
        self._prepare(states)
        ends: list[float | None] = []
        for state in states:
            closed = self._close(state)
            if closed is None:
                ends.append(None)
                continue
            lm_state, added = closed
            ends.append(added + (0.0 if self._lm is None else self._weight * self._lm.finish(lm_state)))
        return ends

    def _extend(self, state: _State, unit: int, known: dict[int, tuple[Any, float] | None]) -> tuple[_State, float] | None:
        piece = self._symbols[unit]
        added = 0.0
        if piece.startswith(WORD_MARK) and state.text:
            if id(state) not in known:
                known[id(state)] = self._close(state)
            closed = known[id(state)]
            if closed is None:
                return None
            lm_state, added = closed
            state = _State(lm_state, self._lexicon, "", 0.0)
        if self._lexicon is None:
            return _State(state.lm, None, state.text + piece, 0.0), added
        node = None if state.node is None else state.node.children.get(unit)
        if node is None:
            return None
        ahead = self._weight * node.ahead
        return _State(state.lm, node, state.text + piece, ahead), added + ahead - state.ahead

    def _prepare(self, states: Iterable[_State]) -> None:
        """Tell the LM which open words are about to be closed."""
        if self._lm is not None:
            pairs = {(state.lm, word): None for state in states if (word := self._word(state))}
            self._lm.prepare(list(pairs))

    def _word(self, state: _State) -> str | None:
        """The open word, "" where none is open; None where the lexicon has no such word."""
        if self._lexicon is None or not state.text:
            return state.text.replace(WORD_MARK, "")
        return None if state.node is None else state.node.word

    def _close(self, state: _State) -> tuple[Any, float] | None:
        """(LM state after the open word, what it adds); None where the lexicon has no such word."""
        word = self._word(state)
        if word is None:
            return None
        if not word:
            return state.lm, -state.ahead
        if self._lm is None:
            return None, self._bonus - state.ahead
        lm_state, logp = self._lm.extend(state.lm, word)
        return lm_state, self._weight * logp + self._bonus - state.ahead
