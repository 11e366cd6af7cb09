"""Kaldi's transition model, the first part of `final.mdl`: transition ids → senones, phones and states of HMMs.

- A transition id is one arc of one HMM state of one phone with one senone; they are numbered from 1 in the order of (phone, state, senones).
- Chain models have two senones a state: one for entering, one for staying (`<Tuples>`); others have one (`<Triples>`).
- An alignment may be reordered: the self-loops of a state stand after the arc that leaves it, not before.

Shape letters: T frames, I transition ids (id 0 is none), P pieces (a state's visit; two where a chain model's senones differ).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.units.kaldi_io import KaldiStream, read_bytes

_END = b"</TransitionModel>"
_MAX = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """An HMM state: its classes for entering and staying (−1: it emits nothing), and where its arcs lead."""

    enter: int
    stay: int
    arcs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TransitionModel:
    """What each transition id is."""

    topology: dict[int, tuple[State, ...]]  # by phone
    phone_I: NDArray[np.int32]
    state_I: NDArray[np.int32]  # state of the phone's HMM
    senone_I: NDArray[np.int32]
    stays_I: NDArray[np.bool_]  # self-loops
    ends_I: NDArray[np.bool_]  # arcs into the final state
    owner: dict[int, tuple[int, int]]  # senone → (phone, place in the phone), the first of those that share it

    @property
    def num_senones(self) -> int:
        """Highest senone + 1."""
        return int(self.senone_I.max()) + 1

    def places(self, phone: int) -> list[int]:
        """The classes that a pass through a phone's HMM meets, in order: what text gives."""
        states, at, found = self.topology[phone], 0, []
        seen: set[int] = set()
        while states[at].enter >= 0 and at not in seen:
            seen.add(at)
            found.append(states[at].enter)
            if states[at].stay != states[at].enter:
                found.append(states[at].stay)
            at = next((to for to in states[at].arcs if to != at), len(states) - 1)
        return found

    def pieces(self, id_T: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """An alignment → (start_P: where pieces begin, begins_P: whether a phone does). Raises ValueError where it is none of this model's."""
        if not len(id_T):
            raise ValueError("it is empty")
        if int(id_T.min()) < 1 or int(id_T.max()) >= len(self.phone_I):
            raise ValueError(f"it has the transition id {int(id_T.max())}, but the model {len(self.phone_I) - 1}")
        stays_T, ends_T, senone_T = self.stays_I[id_T], self.ends_I[id_T], self.senone_I[id_T]
        same_T = (self.phone_I[id_T][1:] == self.phone_I[id_T][:-1]) & (self.state_I[id_T][1:] == self.state_I[id_T][:-1])
        turn = np.flatnonzero(same_T & (stays_T[1:] != stays_T[:-1]))
        reordered = bool(turn.size) and not bool(stays_T[turn[0]])
        visit_T = ~stays_T if reordered else np.concatenate([[True], ~stays_T[:-1]])
        visit_T[0] = True
        visit_of_T = np.cumsum(visit_T) - 1
        start_V = np.flatnonzero(visit_T)
        ends_V = np.zeros(len(start_V), np.bool_)
        np.logical_or.at(ends_V, visit_of_T, ends_T)
        if not ends_V[-1]:
            raise ValueError("it ends within a phone")
        key_T = self.phone_I[id_T].astype(np.int64) * 4096 + self.state_I[id_T]
        if (key_T != key_T[start_V][visit_of_T]).any():
            raise ValueError("a state's self-loops stand elsewhere than its other arcs: is the model another?")
        first_V = np.concatenate([[True], ends_V[:-1]])
        phone_V = self.phone_I[id_T[start_V]]
        if (phone_V != phone_V[np.flatnonzero(first_V)][np.cumsum(first_V) - 1]).any():
            raise ValueError("the phone changes before its last state: is the model another?")
        piece_T = visit_T | np.concatenate([[False], senone_T[1:] != senone_T[:-1]])
        begins_T = np.zeros(len(id_T), np.bool_)
        begins_T[start_V[first_V]] = True
        return np.flatnonzero(piece_T), begins_T[piece_T]


def read_transitions(path: Path) -> TransitionModel:
    """Read the transition model of `final.mdl` (or of a file that holds nothing else). Raises UserError where it is none."""
    data = read_bytes(path)
    try:
        return _parse(data[: data.find(_END) + len(_END)] if _END in data else data)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} must be an acoustic model of Kaldi, but is not ({error}).") from None


def _parse(data: bytes) -> TransitionModel:
    stream = KaldiStream(data)
    stream.expect("<TransitionModel>")
    topology = _topology(stream)
    kind = stream.expect("<Triples>", "<Tuples>")
    number = stream.integer()
    if not 0 < number < _MAX:
        raise ValueError(f"it has {number} states")
    rows = []
    for _ in range(number):
        phone, state, enter = stream.integer(), stream.integer(), stream.integer()
        rows.append((phone, state, enter, stream.integer() if kind == "<Tuples>" else enter))
    stream.expect("</Triples>", "</Tuples>")
    columns: list[tuple[int, int, int, bool, bool]] = [(0, 0, 0, False, False)]
    owner: dict[int, tuple[int, int]] = {}
    for phone, state, enter, stay in rows:
        if phone not in topology or not 0 <= state < len(topology[phone]) or min(enter, stay) < 0:
            raise ValueError(f"it has state {state} of phone {phone}, which its topology lacks")
        for to in topology[phone][state].arcs:
            columns.append((phone, state, stay if to == state else enter, to == state, to + 1 == len(topology[phone])))
        owner.setdefault(enter, (phone, 2 * state if enter != stay else state))
        owner.setdefault(stay, (phone, 2 * state + 1))
    table = np.array(columns, np.int32)
    return TransitionModel(
        topology=topology, phone_I=table[:, 0], state_I=table[:, 1], senone_I=table[:, 2],
        stays_I=table[:, 3].astype(np.bool_), ends_I=table[:, 4].astype(np.bool_), owner=owner,
    )  # fmt: skip


def _topology(stream: KaldiStream) -> dict[int, tuple[State, ...]]:
    stream.expect("<Topology>")
    return _binary_topology(stream) if stream.binary else _text_topology(stream)


def _binary_topology(stream: KaldiStream) -> dict[int, tuple[State, ...]]:
    phones, entry_of = stream.integers(), stream.integers()
    number = stream.integer()
    two_classes = number == -1  # of chain models
    if two_classes:
        number = stream.integer()
    if not 0 < number < _MAX:
        raise ValueError(f"it has {number} topologies")
    entries = []
    for _ in range(number):
        states = []
        for _ in range(stream.integer()):
            enter = stream.integer()
            stay = stream.integer() if two_classes else enter
            arcs = []
            for _ in range(stream.integer()):
                arcs.append(stream.integer())
                stream.real()
            states.append(State(enter=enter, stay=stay, arcs=tuple(arcs)))
        entries.append(tuple(states))
    stream.expect("</Topology>")
    return {phone: entries[entry_of[phone]] for phone in phones}


def _text_topology(stream: KaldiStream) -> dict[int, tuple[State, ...]]:
    topology: dict[int, tuple[State, ...]] = {}
    while stream.expect("<TopologyEntry>", "</Topology>") == "<TopologyEntry>":
        stream.expect("<ForPhones>")
        phones = []
        while (word := stream.token()) != "</ForPhones>":
            phones.append(int(word))
        states: list[State] = []
        while stream.expect("<State>", "</TopologyEntry>") == "<State>":
            stream.integer()
            states.append(_text_state(stream))
        topology |= dict.fromkeys(phones, tuple(states))
    return topology


def _text_state(stream: KaldiStream) -> State:
    enter = stay = -1
    arcs = []
    while (word := stream.token()) != "</State>":
        if word == "<PdfClass>":
            enter = stay = stream.integer()
        elif word == "<ForwardPdfClass>":
            enter = stream.integer()
        elif word == "<SelfLoopPdfClass>":
            stay = stream.integer()
        elif word == "<Transition>":
            arcs.append(stream.integer())
            stream.real()
        elif word == "<Final>":
            stream.real()
        else:
            raise ValueError(f"its topology has '{word[:40]}'")
    return State(enter=enter, stay=stay, arcs=tuple(arcs))
