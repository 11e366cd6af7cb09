"""CTC prefix beam search (Graves 2006, section 3.2.2; Hannun et al. 2014, First-pass large vocabulary continuous speech recognition).

- A hypothesis is a prefix of units; its probability is the sum over all its paths, kept apart by whether they end in a blank.
- With a `Fusion` the score of a prefix is log p_CTC(prefix) + what the fusion adds; the n best come with both parts.
- With beam, units and threshold unbounded the result is exact: the tests hold it against the enumeration of all paths.

flashlight-text's lexicon decoder was measured and is not used: it takes the frames after a word's end for silence, which word pieces
without a separator do not have, and then reads outside the output.

Shape letters: B utterances, T encoder frames, V classes (blank 0, unit u is class u + 1).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.decode.fusion import Fusion
from hkd.errors import UserError

_NONE = float("-inf")
BLANK = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BeamConfig:
    """How wide. Units less likely than exp(−threshold) of a frame's likeliest class open no new prefix there."""

    beam: int = 16
    units: int = 32  # that may follow in a frame
    threshold: float = 9.0

    def __post_init__(self) -> None:
        if self.beam < 1 or self.units < 1:
            raise UserError(f"beam.beam and beam.units must be at least 1, but are {self.beam} and {self.units} instead.")
        if self.threshold <= 0:
            raise UserError(f"beam.threshold must be positive, but is {self.threshold} instead.")


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
    """A prefix in the tree of all that were looked at. `blank`, `unit`: log-probability of its paths that end in a blank, or not."""

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
        """Unit ids from the beginning."""
        found: list[int] = []
        node: _Prefix | None = self
        while node is not None and node.parent is not None:
            found.append(node.last - 1)
            node = node.parent
        return tuple(reversed(found))


class _NoFusion:
    """Adds nothing, allows everything."""

    def start(self) -> None:
        return None

    def extend(self, pairs: Any) -> list[tuple[Any, float] | None]:
        return [(None, 0.0) for _ in pairs]

    def finish(self, states: Any) -> list[float | None]:
        return [0.0 for _ in states]


def _add(a: float, b: float) -> float:
    """log(exp a + exp b)."""
    if a < b:
        a, b = b, a
    return a if b == _NONE else a + math.log1p(math.exp(b - a))


def beam_search(
    logp_TV: NDArray[np.float32], *, config: BeamConfig = BeamConfig(), fusion: Fusion | None = None, n_best: int = 1
) -> list[Ranked]:
    """The n best prefixes of one utterance, best first; fewer where there are fewer, none where the fusion lets none end."""
    chosen: Fusion = fusion or _NoFusion()
    root = _Prefix(parent=None, last=BLANK, state=chosen.start(), fusion=0.0, blank=0.0)
    beam = [root]
    for logp_V in logp_TV.astype(np.float64):
        beam = _step(beam, logp_V, config, chosen)
    ends = chosen.finish([prefix.state for prefix in beam])
    ranked = [
        Ranked(units=prefix.units(), ctc=_add(prefix.blank, prefix.unit), fusion=prefix.fusion + end)
        for prefix, end in zip(beam, ends, strict=True)
        if end is not None
    ]
    return sorted(ranked, key=lambda r: (-r.score, r.units))[:n_best]


def _candidates(logp_V: NDArray[np.float64], config: BeamConfig) -> list[int]:
    """Classes that may open a new prefix in this frame, the blank left out."""
    limit = float(logp_V.max()) - config.threshold
    classes = np.flatnonzero((logp_V >= limit) & (logp_V > _NONE))
    classes = classes[classes != BLANK]
    if len(classes) > config.units:
        classes = classes[np.argsort(-logp_V[classes], kind="stable")[: config.units]]
    return [int(c) for c in classes]


def _step(beam: list[_Prefix], logp_V: NDArray[np.float64], config: BeamConfig, fusion: Fusion) -> list[_Prefix]:
    """One frame: every prefix stays (blank, or its last unit again) or grows by a unit; the best `beam` go on."""
    classes = _candidates(logp_V, config)
    logp: list[float] = logp_V.tolist()
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
            if child is not None:
                grown = (prefix.blank if c == prefix.last else total) + logp[c]
                if grown > _NONE:
                    child.next_unit = _add(child.next_unit, grown)
                    touched[id(child)] = child
    ranked = sorted(touched.values(), key=lambda p: -(_add(p.next_blank, p.next_unit) + p.fusion))  # stable: ties by age
    for prefix in ranked:
        prefix.blank, prefix.unit, prefix.next_blank, prefix.next_unit = prefix.next_blank, prefix.next_unit, _NONE, _NONE
    for prefix in ranked[config.beam :]:
        prefix.blank = prefix.unit = _NONE  # it may come back later, as a child
    return ranked[: config.beam]


def _open_children(beam: list[_Prefix], classes: list[int], fusion: Fusion) -> None:
    """Make the children of all prefixes for these classes, asking the fusion once."""
    wanted = [(prefix, c) for prefix in beam for c in classes if c not in prefix.children]
    answers = fusion.extend([(prefix.state, c - 1) for prefix, c in wanted])
    for (prefix, c), answer in zip(wanted, answers, strict=True):
        if answer is None:
            prefix.children[c] = None
        else:
            state, added = answer
            prefix.children[c] = _Prefix(parent=prefix, last=c, state=state, fusion=prefix.fusion + added)


def beam_search_batch(
    logits_BTV: torch.Tensor,
    length_B: torch.Tensor,
    *,
    config: BeamConfig = BeamConfig(),
    fusion: Fusion | None = None,
    n_best: int = 1,
) -> list[list[Ranked]]:
    """`beam_search` for each utterance of a batch of logits."""
    logp_BTV = torch.log_softmax(logits_BTV.float(), -1).cpu().numpy()
    return [
        beam_search(logp_TV[:length], config=config, fusion=fusion, n_best=n_best)
        for logp_TV, length in zip(logp_BTV, length_B.tolist(), strict=True)
    ]
