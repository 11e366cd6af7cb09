"""CTC output to units: the greedy path, or prefix beam search with a language model beside it (shallow fusion).

- Greedy: the likeliest class of every frame, repetitions joined, blanks left out (Graves et al. 2006, section 3.2.1).
- Beam (Graves 2006, section 3.2.2; Hannun et al. 2014, First-pass large vocabulary continuous speech recognition): a
  hypothesis is a prefix of units. Its probability is the sum over all its paths, kept apart by whether they end in a
  blank. With beam, units and threshold unbounded the result is exact.
- Fusion: score = log p_CTC(prefix) + Σ weight · log p_LM(word | words before) + bonus · number of words. A word is
  scored when the next one begins, or at the end. With a lexicon (a prefix tree of pieces) only its words can come out.
  The best unigram below a node is added in advance and taken back when the word is known, so totals are exact and
  pruning is fair.
- flashlight-text's lexicon decoder takes frames after a word's end for silence; pieces without a separator have none.

Shape letters: B utterances, T encoder frames, V classes (blank 0, unit u is class u + 1).
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.arpa import is_arpa
from hkd.decode.graph import HybridConfig
from hkd.decode.lm import ArpaLm, TeacherLm, usable_words
from hkd.errors import check_choice, check_setting
from hkd.units.sequences import SubwordModel

logger = logging.getLogger(__name__)

BLANK = 0
WORD_MARK = "▁"
_NONE = float("-inf")


@torch.no_grad()
def greedy_ctc(logits_BTV: torch.Tensor, length_B: torch.Tensor) -> list[list[int]]:
    """Best path of every utterance as unit ids; ties go to the lower class. logits_BTV: scores in any monotone scale;
    length_B: valid frames, the rest is not looked at. Raises ValueError where lengths do not fit the logits."""
    num_frames = logits_BTV.shape[1]
    if length_B.numel() and (int(length_B.max()) > num_frames or int(length_B.min()) < 0):
        raise ValueError(f"length_B must lie within 0 and {num_frames}, but is {length_B.tolist()} instead")
    class_BT = logits_BTV.argmax(-1).cpu()
    return [collapse(row_T[:length].tolist()) for row_T, length in zip(class_BT, length_B.tolist(), strict=True)]


def collapse(path: Sequence[int]) -> list[int]:
    """A CTC path → its unit ids: repetitions joined, blanks left out."""
    return [c - 1 for c, _ in groupby(path) if c != BLANK]


class WordLm(Protocol):
    """A language model over words: `hkd.decode.lm.ArpaLm`, `hkd.decode.lm.TeacherLm`."""

    def start(self) -> Any:
        """The state at the beginning of a sentence."""

    def prepare(self, pairs: Sequence[tuple[Any, str]]) -> None:
        """Announce which (state, word) come next, so that they can be computed together."""

    def extend(self, state: Any, word: str) -> tuple[Any, float]:
        """The state after a word, and log p(word | state)."""

    def finish(self, state: Any) -> float:
        """log p(end | state)."""


@dataclass(slots=True)
class PrefixNode:
    """A node of the prefix tree of pieces. `ahead`: the best unigram log-probability of the words below."""

    children: dict[int, "PrefixNode"] = field(default_factory=dict)
    word: str | None = None
    ahead: float = float("-inf")


def prefix_tree(
    words: Iterable[str], encode: Callable[[str], Sequence[int]], unigram: Callable[[str], float] = lambda _: 0.0
) -> PrefixNode:
    """The tree of the words' pieces; words without pieces are left out."""
    root = PrefixNode()
    for word in words:
        pieces = encode(word)
        if not len(pieces):
            continue
        path = [root]
        for piece in pieces:
            path.append(path[-1].children.setdefault(int(piece), PrefixNode()))
        path[-1].word, logp = word, unigram(word)
        for node in path:
            node.ahead = max(node.ahead, logp)
    return root


@dataclass(frozen=True, slots=True)
class _State:
    """LM state before the open word; that word as a node of the tree or as text; its look-ahead so far."""

    lm: Any
    node: PrefixNode | None
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
        lexicon: PrefixNode | None = None,
    ) -> None:
        self._lm, self._symbols, self._weight, self._bonus, self._lexicon = lm, tuple(symbols), weight, bonus, lexicon

    def start(self) -> _State:
        """The state of the empty prefix: no word is open."""
        return _State(None if self._lm is None else self._lm.start(), self._lexicon, "", 0.0)

    def extend(self, pairs: Sequence[tuple[_State, int]]) -> list[tuple[_State, float] | None]:
        """(state, unit) → (state after the unit, what it adds to the score), or None where the unit may not follow."""
        self._prepare(state for state, unit in pairs if self._symbols[unit].startswith(WORD_MARK))
        closed: dict[int, tuple[Any, float] | None] = {}  # many units close the same word
        return [self._extend(state, unit, closed) for state, unit in pairs]

    def finish(self, states: Sequence[_State]) -> list[float | None]:
        """What the end of the open word and of the sentence adds; None where the prefix may not end here."""
        self._prepare(states)
        closed = [self._close(state) for state in states]
        return [c and c[1] + (0.0 if self._lm is None else self._weight * self._lm.finish(c[0])) for c in closed]

    def _extend(
        self, state: _State, unit: int, known: dict[int, tuple[Any, float] | None]
    ) -> tuple[_State, float] | None:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class BeamConfig:
    beam: int = 16  # prefixes that are kept
    units: int = 32  # that may follow in a frame
    threshold: float = 9.0  # units less likely than exp(-threshold) of a frame's likeliest open no prefix

    def __post_init__(self) -> None:
        for name in ("beam", "units"):
            check_setting(f"beam.{name}", getattr(self, name), "be at least 1", getattr(self, name) >= 1)
        check_setting("beam.threshold", self.threshold, "be positive", self.threshold > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """One of the n best: unit ids, log p_CTC, what the fusion added; `score` is their sum."""

    units: tuple[int, ...]
    ctc: float
    fusion: float

    @property
    def score(self) -> float:
        """What the hypotheses are ranked by."""
        return self.ctc + self.fusion


@dataclass(slots=True, eq=False)
class _Prefix:
    """A prefix in the tree of all looked at. `blank`, `unit`: log p of its paths that end in a blank, or not."""

    parent: "_Prefix | None"
    last: int  # class of the last unit; the blank for the empty prefix
    state: Any
    fusion: float
    children: dict[int, "_Prefix | None"] = field(default_factory=dict)  # None: the fusion forbids it
    blank: float = _NONE
    unit: float = _NONE
    next_blank: float = _NONE
    next_unit: float = _NONE

    def units(self) -> tuple[int, ...]:
        found: list[int] = []
        node: _Prefix | None = self
        while node is not None and node.parent is not None:
            found.append(node.last - 1)
            node = node.parent
        return tuple(reversed(found))


def _add(a: float, b: float) -> float:
    """log(exp a + exp b)."""
    if a < b:
        a, b = b, a
    return a if b == _NONE else a + math.log1p(math.exp(b - a))


def beam_search(
    logp_TV: NDArray[np.float32],
    *,
    config: BeamConfig = BeamConfig(),
    fusion: WordFusion | None = None,
    n_best: int = 1,
) -> list[Ranked]:
    """The n best prefixes of one utterance, best first; fewer where there are fewer or the fusion lets fewer end."""
    beam = [_Prefix(parent=None, last=BLANK, state=fusion.start() if fusion else None, fusion=0.0, blank=0.0)]
    for logp_V in logp_TV.astype(np.float64):
        beam = _step(beam, logp_V, config, fusion)
    ends = fusion.finish([prefix.state for prefix in beam]) if fusion else [0.0] * len(beam)
    ranked = [
        Ranked(units=prefix.units(), ctc=_add(prefix.blank, prefix.unit), fusion=prefix.fusion + end)
        for prefix, end in zip(beam, ends, strict=True)
        if end is not None
    ]
    return sorted(ranked, key=lambda r: (-r.score, r.units))[:n_best]


def _candidates(logp_V: NDArray[np.float64], config: BeamConfig) -> list[int]:
    """Classes that may open a new prefix in this frame, the blank left out."""
    classes = np.flatnonzero((logp_V >= logp_V.max() - config.threshold) & (logp_V > _NONE))
    classes = classes[classes != BLANK]
    if len(classes) > config.units:
        classes = classes[np.argsort(-logp_V[classes], kind="stable")[: config.units]]
    found: list[int] = classes.tolist()
    return found


def _step(
    beam: list[_Prefix], logp_V: NDArray[np.float64], config: BeamConfig, fusion: WordFusion | None
) -> list[_Prefix]:
    """One frame: every prefix stays (blank, or its last unit again) or grows by a unit; the best `beam` go on."""
    classes, logp = _candidates(logp_V, config), logp_V.tolist()
    _open_children(beam, classes, fusion)
    touched: dict[int, _Prefix] = {}
    for prefix in beam:
        total = _add(prefix.blank, prefix.unit)
        prefix.next_blank = _add(prefix.next_blank, total + logp[BLANK])
        if prefix.last != BLANK:
            prefix.next_unit = _add(prefix.next_unit, prefix.unit + logp[prefix.last])
        touched[id(prefix)] = prefix
        for c in classes:
            child = prefix.children[c]
            # the same unit again needs a blank between, else it is the same prefix
            grown = (prefix.blank if c == prefix.last else total) + logp[c]
            if child is not None and grown > _NONE:
                child.next_unit = _add(child.next_unit, grown)
                touched[id(child)] = child
    ranked = sorted(touched.values(), key=lambda p: -(_add(p.next_blank, p.next_unit) + p.fusion))  # ties by age
    for prefix in ranked:
        prefix.blank, prefix.unit = prefix.next_blank, prefix.next_unit
        prefix.next_blank = prefix.next_unit = _NONE
    for prefix in ranked[config.beam :]:
        prefix.blank = prefix.unit = _NONE  # it may come back later, as a child
    return ranked[: config.beam]


def _open_children(beam: list[_Prefix], classes: list[int], fusion: WordFusion | None) -> None:
    """Make the children of all prefixes for these classes, asking the fusion once."""
    wanted = [(prefix, c) for prefix in beam for c in classes if c not in prefix.children]
    answers = fusion.extend([(prefix.state, c - 1) for prefix, c in wanted]) if fusion else [(None, 0.0)] * len(wanted)
    for (prefix, c), answer in zip(wanted, answers, strict=True):
        prefix.children[c] = answer and _Prefix(prefix, c, answer[0], prefix.fusion + answer[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """greedy, or beam: with an LM (given beside) `lm_weight` · log p_LM + `word_bonus` · words are added. A hybrid
    student's output is always searched with a graph, as `hybrid` says."""

    decoder: str = "greedy"  # greedy | beam (which an LM needs)
    beam: BeamConfig = field(default_factory=BeamConfig)  # how wide the beam search of CTC is
    lm_weight: float = 0.5  # of the LM's log-probability beside the student's
    word_bonus: float = 0.0  # added for each word
    lexicon: bool = True  # only the LM's words, where the LM has a list of words (ARPA)
    hybrid: HybridConfig = field(default_factory=HybridConfig)  # how the output of a hybrid student is searched

    def __post_init__(self) -> None:
        check_choice("decoder", self.decoder, ("greedy", "beam"))
        check_setting("lm_weight", self.lm_weight, "not be negative", self.lm_weight >= 0)
        check_setting("word_bonus", self.word_bonus, "be a number", True)


class Search:
    """Logits → unit ids. Made once for a student; the LM is loaded once."""

    def __init__(
        self, config: SearchConfig, subwords: SubwordModel, *, lm: str | None = None, device: str = "cpu"
    ) -> None:
        """lm: an ARPA file over words, a folder of `hkd lm train` (causal or n-gram, over the student's subwords), or a
        causal LM's folder or hub name. Raises UserError where it is none of them, holds no word that the subwords
        spell, or is given for greedy decoding."""
        if lm is not None:
            rule, remedy = f"be beam where there is an LM ({lm})", "Take --decoder beam."
            check_setting("decoder", config.decoder, rule, config.decoder != "greedy", remedy)
        self.config, self.lm_parameters, self._subwords = config, 0, subwords
        self._words: WordLm | None = None
        self._lexicon: PrefixNode | None = None
        self.symbols: Sequence[str] = subwords.inventory.symbols
        if lm is not None:
            self._words = self._load(lm, subwords, device)
            if isinstance(self._words, ArpaLm):
                pieces = cache(lambda word: subwords.encode([word])[0].tolist())
                known, rule = self._words.words, "the student's pieces can spell"
                spelled, note = usable_words(lm, known, lambda word: subwords.unknown not in pieces(word), rule=rule)
                if note:
                    logger.warning("%s %s", lm, note)
                if config.lexicon:
                    self._lexicon = prefix_tree(spelled, pieces, self._words.unigram)

    def _load(self, lm: str, subwords: SubwordModel, device: str) -> WordLm:
        if is_arpa(lm):
            return ArpaLm(Path(lm).expanduser())
        from hkd.teachers.load import load_teacher

        teacher = load_teacher(lm, unit="subword", device=device)
        own = teacher.inventory.digest == subwords.inventory.digest
        model: Any = getattr(teacher, "model", None) or getattr(teacher, "_model", None)
        if isinstance(model, torch.nn.Module):
            self.lm_parameters = sum(p.numel() for p in model.parameters())
        return TeacherLm(teacher, subwords.encode if own else None)

    @property
    def fusion(self) -> WordFusion | None:
        """What is added to the acoustic score; None without an LM."""
        if self._words is None:
            return None
        weight, bonus = self.config.lm_weight, self.config.word_bonus
        return WordFusion(self._words, self.symbols, weight=weight, bonus=bonus, lexicon=self._lexicon)

    def ranked(self, logits_BTV: torch.Tensor, length_B: torch.Tensor, *, n_best: int) -> list[list[Ranked]]:
        """The n best of every utterance by beam search."""
        logp_BTV = torch.log_softmax(logits_BTV.float(), -1).cpu().numpy()
        options: dict[str, Any] = {"config": self.config.beam, "fusion": self.fusion, "n_best": n_best}
        rows = zip(logp_BTV, length_B.tolist(), strict=True)
        return [beam_search(logp_TV[:length], **options) for logp_TV, length in rows]

    def best(self, logits_BTV: torch.Tensor, length_B: torch.Tensor) -> list[list[int]]:
        """The best unit ids of every utterance; [] where the lexicon lets nothing end."""
        if self.config.decoder == "greedy":
            return greedy_ctc(logits_BTV, length_B)
        return [list(row[0].units) if row else [] for row in self.ranked(logits_BTV, length_B, n_best=1)]

    def text(self, units: Sequence[int]) -> str:
        return self._subwords.decode(units)
