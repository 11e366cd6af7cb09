"""Tying states by a decision tree over phones in context (Young, Odell & Woodland 1994): questions made from the data, not by hand.

- A state in context is one diagonal Gaussian, known by its count, sum and sum of squares. A set of them has the log-likelihood
  L = −n/2 · Σ_f (log 2π + 1 + log σ²_f) of its own maximum-likelihood Gaussian (equation 1 there).
- Questions: the sets of phones that arise when phones are merged bottom up, always the pair that loses the least; and single phones.
- All (phone, state) begin as leaves; the split that gains most is made next, until there are as many leaves as asked for.
- Ties go to the first: the same statistics give the same tree.

Shape letters: M states in context, Q phones (0: none), F features, K questions.
"""

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkd.units.kaldi import PDF_CLASS, ContextTree, Leaf, Node, Split, Table

LEFT, CENTRE, RIGHT = 0, 1, 2  # places of a window of three phones
_VARIANCE_FLOOR = 1e-3  # of the variance of all
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Sums over the frames of each state in context. `floor_F`: no Gaussian is narrower."""

    context_M4: Ints  # left, phone, right, state
    count_M: Floats
    sum_MF: Floats
    square_MF: Floats

    @property
    def floor_F(self) -> Floats:
        """A thousandth of the variance of all frames together."""
        total = self.count_M.sum()
        floor: Floats = _VARIANCE_FLOOR * (self.square_MF.sum(0) / total - (self.sum_MF.sum(0) / total) ** 2)
        return np.maximum(floor, 1e-8)


def log_likelihood(count: Floats, sum_F: Floats, square_F: Floats, floor_F: Floats) -> Floats:
    """L of pooled states, over the last axis of sum and square; 0 where there is nothing."""
    n = np.maximum(count, 1e-10)[..., None]
    variance_F = np.maximum(square_F / n - (sum_F / n) ** 2, floor_F)
    value: Floats = -0.5 * count * (np.log(2 * np.pi) + 1 + np.log(variance_F)).sum(-1)
    return np.where(count > 0, value, 0.0)


def phone_questions(stats: Statistics, phones: Sequence[int]) -> list[frozenset[int]]:
    """Sets of phones that sound alike, small ones first, each once; no set of all."""
    questions = [frozenset((phone,)) for phone in phones]
    if not questions:
        return []
    mine = [stats.context_M4[:, CENTRE] == phone for phone in phones]
    parts = [np.stack([part[own].sum(0) for own in mine]) for part in (stats.count_M, stats.sum_MF, stats.square_MF)]
    clusters, floor_F = questions[:], stats.floor_F
    while len(clusters) > 2:
        own_C = log_likelihood(parts[0], parts[1], parts[2], floor_F)
        first, second = np.triu_indices(len(clusters), 1)
        pooled = [part[first] + part[second] for part in parts]
        at = int((own_C[first] + own_C[second] - log_likelihood(pooled[0], pooled[1], pooled[2], floor_F)).argmin())
        pair = (int(first[at]), int(second[at]))
        parts = [np.append(np.delete(part, pair, 0), new[at : at + 1], 0) for part, new in zip(parts, pooled, strict=True)]
        merged = clusters[pair[0]] | clusters[pair[1]]
        clusters = [cluster for number, cluster in enumerate(clusters) if number not in pair] + [merged]
        questions.append(merged)
    return sorted(set(questions), key=lambda question: (len(question), sorted(question)))


@dataclass(kw_only=True, eq=False)
class _Growing:
    """A leaf that may be split, or has been."""

    rows_M: Ints
    split: tuple[int, frozenset[int]] | None = None  # place and question
    children: "tuple[_Growing, _Growing] | None" = None
    senone: int = -1
    parts: tuple[Ints, Ints] | None = None  # rows of yes and no


def grow_tree(
    stats: Statistics, *, states: dict[int, int], num_senones: int, whole: Collection[int] = (), min_frames: float = 100.0
) -> tuple[ContextTree, dict[int, tuple[int, int]]]:
    """(tree, senone → (phone, state)). states: how many each phone has; whole: phones that are never split (silence).

    Fewer senones than asked for where no split leaves `min_frames` on both sides. Raises ValueError where there are more (phone, state).
    """
    roots = {(phone, state): _Growing(rows_M=_rows(stats, phone, state)) for phone in states for state in range(states[phone])}
    if num_senones < len(roots):
        raise ValueError(f"{len(roots)} states without context are more than {num_senones} senones")
    speech = [phone for phone in states if phone not in whole and stats.count_M[stats.context_M4[:, CENTRE] == phone].sum() > 0]
    questions = phone_questions(stats, speech) + [frozenset(whole)] * bool(whole)
    asks_KQ = np.zeros((len(questions), max(states) + 1))
    for number, question in enumerate(questions):
        asks_KQ[number, sorted(question)] = 1
    queue: list[tuple[float, int, _Growing]] = []
    order = 0

    def offer(leaf: _Growing) -> None:
        nonlocal order
        gain = _best_split(stats, leaf, questions, asks_KQ, min_frames)
        if gain > 0:
            heapq.heappush(queue, (-gain, order, leaf))
            order += 1

    for (phone, _), leaf in roots.items():
        if phone not in whole and len(leaf.rows_M):
            offer(leaf)
    leaves = len(roots)
    while queue and leaves < num_senones:
        _, _, leaf = heapq.heappop(queue)
        assert leaf.parts is not None
        leaf.children = (_Growing(rows_M=leaf.parts[0]), _Growing(rows_M=leaf.parts[1]))
        leaves += 1
        for child in leaf.children:
            offer(child)
    owner: dict[int, tuple[int, int]] = {}
    tables: list[Node | None] = [None] * (max(states) + 1)
    for phone, number in states.items():
        tables[phone] = Table(PDF_CLASS, tuple(_node(roots[phone, state], (phone, state), owner) for state in range(number)))
    return ContextTree(width=3, central=CENTRE, root=Table(CENTRE, tuple(tables))), owner


def _rows(stats: Statistics, phone: int, state: int) -> Ints:
    return np.flatnonzero((stats.context_M4[:, CENTRE] == phone) & (stats.context_M4[:, 3] == state))


def _best_split(
    stats: Statistics, leaf: _Growing, questions: Sequence[frozenset[int]], asks_KQ: Floats, min_frames: float
) -> float:
    """The gain of the best question about a leaf, which is noted in it; 0 where there is none."""
    rows = leaf.rows_M
    count, sum_MF, square_MF = stats.count_M[rows], stats.sum_MF[rows], stats.square_MF[rows]
    floor_F = stats.floor_F
    own = float(log_likelihood(count.sum(), sum_MF.sum(0), square_MF.sum(0), floor_F))
    best = 0.0
    for place in (LEFT, RIGHT):
        phone_M = stats.context_M4[rows, place]
        columns = [np.zeros((asks_KQ.shape[1], *part.shape[1:])) for part in (count, sum_MF, square_MF)]
        for column, part in zip(columns, (count, sum_MF, square_MF), strict=True):
            np.add.at(column, phone_M, part)
        yes = [asks_KQ @ column for column in columns]
        no = [column.sum(0) - part for column, part in zip(columns, yes, strict=True)]
        gain_K = log_likelihood(yes[0], yes[1], yes[2], floor_F) + log_likelihood(no[0], no[1], no[2], floor_F) - own
        gain_K[(yes[0] < min_frames) | (no[0] < min_frames)] = 0
        if len(gain_K) and gain_K.max() > best:
            at = int(gain_K.argmax())
            best, leaf.split = float(gain_K[at]), (place, questions[at])
            inside = np.isin(phone_M, sorted(questions[at]))
            leaf.parts = (rows[inside], rows[~inside])
    return best


def _node(leaf: _Growing, of: tuple[int, int], owner: dict[int, tuple[int, int]]) -> Node:
    if leaf.children is None or leaf.split is None:
        senone = len(owner)
        owner[senone] = of
        return Leaf(senone)
    place, question = leaf.split
    yes, no = (_node(child, of, owner) for child in leaf.children)
    return Split(place, question, yes, no)
