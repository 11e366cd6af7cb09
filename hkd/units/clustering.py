"""Tying states by a decision tree over phones in context (Young, Odell & Woodland 1994): questions made from the data,
not by hand.

- A state in context is one diagonal Gaussian, known by its count, sum and sum of squares. A set of them has the
  log-likelihood L = −n/2 · Σ_f (log 2π + 1 + log σ²_f) of its own maximum-likelihood Gaussian (equation 1 there).
- Questions: the sets of phones that arise when phones are merged bottom up, always the pair that loses the least; and
  single phones.
- All (phone, state) begin as leaves; the split that gains most is made next, until there are as many leaves as asked
  for.
- Ties go to the first: the same statistics give the same tree.

Shape letters: M states in context, Q phones (0: none), F features, G sums of a state (1 + 2 F), K questions, C clusters
of phones.
"""

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hkd.units.kaldi import PDF_CLASS, ContextTree, Leaf, Node, Split, Table

LEFT, CENTRE, RIGHT = 0, 1, 2  # places of a window of three phones
_VARIANCE_FLOOR = 1e-3  # of the variance of all
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Sums over the frames of each state in context."""

    context_M4: Ints  # left, phone, right, state
    sums_MG: Floats  # number of frames, sum of each feature, sum of its squares

    @cached_property
    def floor_F(self) -> Floats:
        """No Gaussian is narrower: a thousandth of the variance of all frames together."""
        mean_F, square_F = np.split(self.sums_MG[:, 1:].sum(0) / self.sums_MG[:, 0].sum(), 2)
        floor: Floats = np.maximum(_VARIANCE_FLOOR * (square_F - mean_F**2), 1e-8)
        return floor


def log_likelihood(sums: Floats, floor_F: Floats) -> Floats:
    """L of pooled states, (..., G) → (...); 0 where there is nothing."""
    count = sums[..., 0]
    mean_F, square_F = np.split(sums[..., 1:] / np.maximum(count, 1e-10)[..., None], 2, axis=-1)
    variance_F = np.maximum(square_F - mean_F**2, floor_F)
    value: Floats = -0.5 * count * (np.log(2 * np.pi) + 1 + np.log(variance_F)).sum(-1)
    return np.where(count > 0, value, 0.0)


def phone_questions(stats: Statistics, phones: Sequence[int]) -> list[frozenset[int]]:
    """Sets of phones that sound alike, small ones first, each once; no set of all."""
    questions = [frozenset((phone,)) for phone in phones]
    if not questions:
        return []
    clusters, floor_F = questions[:], stats.floor_F
    sums_CG = np.stack([stats.sums_MG[stats.context_M4[:, CENTRE] == phone].sum(0) for phone in phones])
    while len(clusters) > 2:
        own_C = log_likelihood(sums_CG, floor_F)
        first, second = np.triu_indices(len(clusters), 1)
        pooled = sums_CG[first] + sums_CG[second]
        at = int((own_C[first] + own_C[second] - log_likelihood(pooled, floor_F)).argmin())
        pair = (int(first[at]), int(second[at]))
        questions.append(clusters[pair[0]] | clusters[pair[1]])
        sums_CG = np.append(np.delete(sums_CG, pair, 0), pooled[at : at + 1], 0)
        clusters = [cluster for number, cluster in enumerate(clusters) if number not in pair] + questions[-1:]
    return sorted(set(questions), key=lambda question: (len(question), sorted(question)))


@dataclass(kw_only=True, eq=False)
class _Growing:
    """A leaf, with the best question about it and the rows of yes and no; once that is asked, with its children."""

    rows_M: Ints
    place: int = -1
    question: frozenset[int] = frozenset()
    parts: tuple[Ints, ...] = ()
    children: "tuple[_Growing, ...]" = ()


def grow_tree(
    stats: Statistics,
    *,
    states: dict[int, int],
    num_senones: int,
    whole: Collection[int] = (),
    min_frames: float = 100.0,
) -> tuple[ContextTree, dict[int, tuple[int, int]]]:
    """(tree, senone → (phone, state)). states: how many each phone has; whole: phones that are never split (silence).

    Fewer senones than asked for where no split leaves `min_frames` on both sides. Raises ValueError where there are
    more (phone, state).
    """
    phone_M, state_M = stats.context_M4[:, CENTRE], stats.context_M4[:, 3]
    roots = {
        (phone, state): _Growing(rows_M=np.flatnonzero((phone_M == phone) & (state_M == state)))
        for phone in states
        for state in range(states[phone])
    }
    if num_senones < len(roots):
        raise ValueError(f"{len(roots)} states without context are more than {num_senones} senones")
    speech = [phone for phone in states if phone not in whole and stats.sums_MG[phone_M == phone, 0].sum() > 0]
    questions = phone_questions(stats, speech) + [frozenset(whole)] * bool(whole)
    asks_KQ = np.zeros((len(questions), max(states) + 1))
    for number, question in enumerate(questions):
        asks_KQ[number, sorted(question)] = 1
    queue: list[tuple[float, int, _Growing]] = []
    offered, num_leaves = 0, len(roots)
    new = [leaf for (phone, _), leaf in roots.items() if phone not in whole and len(leaf.rows_M)]
    while True:
        for leaf in new:
            gain = _best_question(stats, leaf, questions, asks_KQ, min_frames)
            if gain > 0:
                heapq.heappush(queue, (-gain, offered, leaf))
            offered += 1
        if not queue or num_leaves >= num_senones:
            break
        _, _, leaf = heapq.heappop(queue)
        new = [_Growing(rows_M=part) for part in leaf.parts]
        leaf.children = tuple(new)
        num_leaves += 1
    owner: dict[int, tuple[int, int]] = {}
    tables: list[Node | None] = [None] * (max(states) + 1)
    for phone, number in states.items():
        tables[phone] = Table(
            PDF_CLASS, tuple(_node(roots[phone, state], (phone, state), owner) for state in range(number))
        )
    return ContextTree(width=3, central=CENTRE, root=Table(CENTRE, tuple(tables))), owner


def _best_question(
    stats: Statistics, leaf: _Growing, questions: Sequence[frozenset[int]], asks_KQ: Floats, min_frames: float
) -> float:
    """The gain of the best question about a leaf, which is noted in it; 0 where there is none."""
    sums_MG, floor_F, best = stats.sums_MG[leaf.rows_M], stats.floor_F, 0.0
    own = log_likelihood(sums_MG.sum(0), floor_F)
    for place in (LEFT, RIGHT):
        phone_M = stats.context_M4[leaf.rows_M, place]
        sums_QG = np.zeros((asks_KQ.shape[1], sums_MG.shape[1]))
        np.add.at(sums_QG, phone_M, sums_MG)
        # one product for counts, sums and squares together would round otherwise, and another of two equal questions
        # would win
        yes_KG = np.concatenate([asks_KQ @ part for part in np.split(sums_QG, (1, 1 + len(floor_F)), 1)], 1)
        no_KG = sums_QG.sum(0) - yes_KG
        gain_K = log_likelihood(yes_KG, floor_F) + log_likelihood(no_KG, floor_F) - own
        gain_K[(yes_KG[:, 0] < min_frames) | (no_KG[:, 0] < min_frames)] = 0
        if len(gain_K) and gain_K.max() > best:
            at = int(gain_K.argmax())
            best, leaf.place, leaf.question = float(gain_K[at]), place, questions[at]
            is_yes_M = np.isin(phone_M, sorted(questions[at]))
            leaf.parts = (leaf.rows_M[is_yes_M], leaf.rows_M[~is_yes_M])
    return best


def _node(leaf: _Growing, of: tuple[int, int], owner: dict[int, tuple[int, int]]) -> Node:
    if not leaf.children:
        senone = len(owner)
        owner[senone] = of
        return Leaf(senone)
    yes, no = (_node(child, of, owner) for child in leaf.children)
    return Split(leaf.place, leaf.question, yes, no)
