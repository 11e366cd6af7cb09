"""The n best word sequences that a search graph holds, each by its best path.

kaldi-decoder's token passing keeps every path near the best one as a lattice over states, in which a word sequence stands once for each way to
time and pronounce it. The lattice is made deterministic over words only where the best sequences go (Mohri & Riley 2002): what is known of a prefix
are all states it may be in, each with its cost; the prefix whose best completion costs least is lengthened first, so that sequences come out
best first, and no more is looked at than they need.

Shape letters: T frames, V senones.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.decode.graph import kaldi_module

LATTICE_BEAM = 8.0
SILENT = 0  # no word
Words = tuple[int, ...]


@dataclass(frozen=True)
class WordLattice:
    """An acyclic lattice, states in topological order: arcs[state] = (word, cost, next state) ..., and the cost of ending there (∞: none)."""

    arcs: list[list[tuple[int, float, int]]]
    final: list[float]
    start: int

    @classmethod
    def parse(cls, text: str) -> "WordLattice":
        """OpenFst's text form of a Kaldi lattice: `FROM TO SENONE WORD GRAPH,SOUND`, `STATE GRAPH,SOUND` where a path may end, the start
        first. kaldifst has no public way through a lattice's arcs."""
        arcs: defaultdict[str, list[tuple[int, float, str]]] = defaultdict(list)
        final: dict[str, float] = {}
        waiting: defaultdict[str, int] = defaultdict(int)  # arcs that lead to a state
        start = ""
        for line in text.splitlines():
            state, *rest, costs = line.split()
            start = start or state
            cost = sum(float(part) for part in costs.split(","))
            if rest:
                arcs[state].append((int(rest[2]), cost, rest[0]))
                waiting[rest[0]] += 1
            else:
                final[state] = cost
        order = [state for state in dict.fromkeys((*arcs, *final)) if not waiting[state]]
        for state in order:
            for _, _, after in arcs[state]:
                waiting[after] -= 1
                if not waiting[after]:
                    order.append(after)
        place = {state: number for number, state in enumerate(order)}
        return cls(
            arcs=[[(word, cost, place[after]) for word, cost, after in arcs[state]] for state in order],
            final=[final.get(state, math.inf) for state in order],
            start=place[start],
        )

    def to_the_end(self) -> list[float]:
        """The cost of the best way from each state to an end."""
        cost = list(self.final)
        for state in reversed(range(len(cost))):
            for _, step, after in self.arcs[state]:
                cost[state] = min(cost[state], step + cost[after])
        return cost

    def sequences(self) -> Iterator[tuple[Words, float]]:
        """All word sequences, each once, with the cost of its best path, cheapest first."""
        rest, ticket = self.to_the_end(), count()
        waiting: list[tuple[float, int, Words, dict[int, float] | None]] = []

        def wait(words: Words, states: dict[int, float]) -> None:
            least = min(cost + rest[state] for state, cost in states.items())
            if least < math.inf:
                heapq.heappush(waiting, (least, next(ticket), words, states))

        wait((), {self.start: 0.0})
        while waiting:
            cost, _, words, states = heapq.heappop(waiting)
            if states is None:
                yield words, cost
                continue
            end, following = self._follow(states)
            if end < math.inf:
                heapq.heappush(waiting, (end, next(ticket), words, None))
            for word, after in following.items():
                wait((*words, word), after)

    def _follow(self, states: dict[int, float]) -> tuple[float, dict[int, dict[int, float]]]:
        """What it costs to end here, and word → the states after it, by silent steps before it."""
        cost = dict(states)
        left = list(cost)
        heapq.heapify(left)  # in topological order, so that a state's cost is final when it comes up
        end = math.inf
        following: defaultdict[int, dict[int, float]] = defaultdict(dict)
        while left:
            state = heapq.heappop(left)
            here = cost[state]
            end = min(end, here + self.final[state])
            for word, step, after in self.arcs[state]:
                reached = cost if word == SILENT else following[word]
                if word == SILENT and after not in cost:
                    heapq.heappush(left, after)
                reached[after] = min(reached.get(after, math.inf), here + step)
        return end, following


def best_sequences(
    fst: Any, score_TV: NDArray[np.float32], *, beam: float, n: int, lattice_beam: float = LATTICE_BEAM
) -> list[tuple[list[int], float]]:
    """(word numbers, score) of the n best, best first; fewer where the lattice holds fewer, [] where no path survives to a word's end.

    beam: of the search; lattice_beam: how much worse than the best a sequence may be. Both in natural logarithms after scaling. Unlike
    the search for the best path alone it keeps all states within the beam, however many, and takes many times as long.
    """
    decoders = kaldi_module("kaldi_decoder")
    decoder = decoders.LatticeSimpleDecoder(fst, decoders.LatticeSimpleDecoderConfig(beam=beam, lattice_beam=lattice_beam))
    if not decoder.decode(decoders.DecodableCtc(score_TV)) or not math.isfinite(decoder.final_relative_cost()):
        return []
    found, lattice = decoder.get_raw_lattice(True)
    if not found:
        return []
    words = WordLattice.parse(lattice.to_str(show_weight_one=True, fst_field_separator=" "))
    return [(list(sequence), -cost) for sequence, cost in islice(words.sequences(), n)]
