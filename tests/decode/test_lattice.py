"""n best word sequences of a lattice, held against all its paths."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.decode.lattice import WordLattice

Arc = tuple[int, int, int, float]


@st.composite
def lattices(draw: st.DrawFn) -> tuple[list[Arc], dict[int, float]]:
    """Acyclic, a few states, silent arcs, several arcs between two states, costs of both signs."""
    num_states = draw(st.integers(1, 7))
    costs = st.integers(-20, 20).map(lambda c: c / 4)
    pairs = list(itertools.combinations(range(num_states), 2))
    places = draw(st.lists(st.sampled_from(pairs), max_size=14)) if pairs else []
    arcs = [(a, b, draw(st.integers(0, 2)), draw(costs)) for a, b in places]
    ends = draw(st.dictionaries(st.integers(0, num_states - 1), costs, min_size=1))
    return arcs, ends


def text_of(arcs: list[Arc], ends: dict[int, float], names: np.ndarray) -> str:
    """As kaldifst prints it: the start's lines first."""
    lines = [f"{names[a]} {names[b]} 7 {word} {cost - 1},1" for a, b, word, cost in arcs]
    lines += [f"{names[state]} {cost},0" for state, cost in ends.items()]
    own = [line for line in lines if line.split()[0] == str(names[0])]
    return "\n".join(own + [line for line in lines if line not in own])


def all_sequences(arcs: list[Arc], ends: dict[int, float]) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = {}

    def walk(state: int, words: tuple[int, ...], cost: float) -> None:
        if state in ends:
            found[words] = min(found.get(words, math.inf), cost + ends[state])
        for a, b, word, step in arcs:
            if a == state:
                walk(b, (*words, word) if word else words, cost + step)

    walk(0, (), 0.0)
    return found


@settings(max_examples=300, deadline=None)
@given(lattice=lattices(), seed=st.integers(0, 9))
def test_every_sequence_comes_once_cheapest_first(lattice: tuple[list[Arc], dict[int, float]], seed: int) -> None:
    arcs, ends = lattice
    names = np.random.default_rng(seed).permutation(8)
    lines = text_of(arcs, ends, names)
    if lines.split()[0] != str(names[0]):  # nothing leaves the start and nothing ends there
        return
    found = list(WordLattice.parse(lines).sequences())
    expected = all_sequences(arcs, ends)
    assert dict(found) == pytest.approx(expected)
    assert len(found) == len(expected)
    costs = [cost for _, cost in found]
    assert costs == sorted(costs)


def test_many_ways_to_say_the_same_are_one_sequence() -> None:
    """2^60 paths, two sequences: nothing is enumerated that need not be."""
    lines = [f"{i} {i + 1} 5 0 {cost},0" for i in range(60) for cost in (0.5, 1.0)]
    lines += ["60 61 5 3 0,0", "60 61 5 4 1,0", "61 0,0"]
    found = list(WordLattice.parse("\n".join(lines)).sequences())
    assert found == [((3,), pytest.approx(30.0)), ((4,), pytest.approx(31.0))]
