"""Kaldi's files in pure Python: tokens and numbers, the tree that ties states, the transition model of `final.mdl`.

- A binary stream begins with NUL and B; then a token ends with a space, a number is preceded by a byte that gives its
  size (negative for unsigned), a vector of integers by that byte and its length. A text stream is words with white
  space between. (kaldi-native-io unpacks .gz through a shell, and only warns where an archive is cut short.)
- The tree (`ContextDependency`) asks for values of a phone's window: key 0 … N−1 are the phones around it (P is its own
  place), key −1 its state's class. CE answers, SE asks whether a value is among a set, TE goes where the value says. 0
  is beyond the utterance's ends.
- A transition id is one arc of one HMM state of one phone with one senone; they are numbered from 1 in the order of
  (phone, state, senones). Chain models have two senones a state: one for entering, one for staying (`<Tuples>`); others
  have one (`<Triples>`).
- An alignment may be reordered: the self-loops of a state follow the arc that leaves it, instead of preceding it.

Shape letters: T frames, I transition ids (id 0 is none), P pieces (a state's visit; two where a chain model's senones
differ).
"""

import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import filled_lines

BINARY_MARK = b"\0B"
_MAX_TOKEN = 200
_INT32 = np.dtype([("size", "i1"), ("value", "<i4")])


class KaldiStream:
    """Values of a Kaldi file in order. Raises ValueError where the next one is of another kind or is missing."""

    def __init__(self, data: bytes) -> None:
        self.binary = data.startswith(BINARY_MARK)
        self._data = data
        self._at = 2 if self.binary else 0

    def token(self) -> str:
        """The next word."""
        while not self.binary and self._data[self._at : self._at + 1].isspace():
            self._at += 1
        window = self._data[self._at : self._at + _MAX_TOKEN]
        words = window.split(maxsplit=1)
        if not words or (self.binary and window[:1].isspace()):
            raise ValueError(f"it ends, or holds no word, at byte {self._at}")
        self._at += len(words[0]) + 1
        try:
            return words[0].decode()
        except UnicodeDecodeError:
            raise ValueError(f"it holds no word at byte {self._at}") from None

    def expect(self, *tokens: str) -> str:
        """The next word, which must be one of these."""
        found = self.token()
        if found not in tokens:
            raise ValueError(f"it has '{found[:40]}' where {' or '.join(tokens)} should stand")
        return found

    def integer(self) -> int:
        """The next 32-bit integer."""
        return int(self._number({4: "<i", -4: "<I"}, "integer"))

    def real(self) -> float:
        """The next real number, of 32 or 64 bits."""
        return float(self._number({4: "<f", 8: "<d"}, "real number"))

    def _number(self, layout_of: dict[int, str], what: str) -> Any:
        if not self.binary:
            return self.token()
        size = self._unpack("<b")
        if size not in layout_of:
            raise ValueError(f"it holds no {what} at byte {self._at}")
        return self._unpack(layout_of[size])

    def integers(self) -> list[int]:
        """The next vector of integers."""
        if not self.binary:
            self.expect("[")
            return [int(word) for word in iter(self.token, "]")]
        number = self._number({4: "<i"}, "vector of integers")
        if number < 0 or self._at + 4 * number > len(self._data):
            raise ValueError(f"it has a vector of {number} integers, more than follow")
        values: list[int] = np.frombuffer(self._data, "<i4", number, self._at).tolist()
        self._at += 4 * number
        return values

    def _unpack(self, layout: str) -> Any:
        try:
            (value,) = struct.unpack_from(layout, self._data, self._at)
        except struct.error:
            raise ValueError(f"it ends at byte {len(self._data)}: is it truncated?") from None
        self._at += struct.calcsize(layout)
        return value


def read_bytes(path: Path) -> bytes:
    """A whole file, unpacked where it is gzip. Raises UserError where it cannot be."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} must be whole, but cannot be unpacked ({error}). Copy it again.") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from None


def read_integer_vectors(path: Path) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """An archive of integer vectors (`ali.1.gz`, an ark, binary or text): (key, value_T) in order. Raises UserError."""
    data, rule = read_bytes(path), f"{path} must be an archive of integer vectors, but"
    at = 0
    while at < len(data):
        line_end = data.find(b"\n", at)
        space = data.find(b" ", at, at + _MAX_TOKEN + 1)
        name = data[at:space].decode("utf-8", "replace") if space > 0 else ""
        if not name or not name.isprintable():
            raise UserError(f"{rule} has no key at byte {at}.")
        if data[space + 1 : space + 3] == BINARY_MARK:
            head, start = data[space + 3 : space + 8], space + 8
            number = int.from_bytes(head[1:], "little", signed=True) if len(head) == 5 and head[0] == 4 else -1
            if number < 0:
                raise UserError(f"{rule} '{name}' is something else.")
            at = start + 5 * number
            if at > len(data):
                raise UserError(f"{path} must be whole, but ends within '{name}'. Copy it again.")
            yield name, np.frombuffer(data, _INT32, number, start)["value"].astype(np.int32)
        else:
            at = line_end + 1 if line_end >= 0 else len(data)
            try:
                yield name, np.array(data[space + 1 : at].split(), np.int64).astype(np.int32)
            except (ValueError, OverflowError):
                raise UserError(f"{rule} '{name}' is something else.") from None


def read_symbols(path: Path) -> dict[str, int]:
    """A symbol table (`phones.txt`, `words.txt`): symbol → number. Raises UserError with the line."""
    found: dict[str, int] = {}
    for place, line in filled_lines(path, "a symbol table"):
        parts = line.split()
        if len(parts) != 2 or not parts[1].isdecimal() or len(parts[1]) > 9:
            raise UserError(f"{place}: a line of a symbol table must be `symbol number`, but this one is not.")
        found[parts[0]] = int(parts[1])
    return found


PDF_CLASS = -1
_MAX_TABLE = 1 << 20


@dataclass(frozen=True, slots=True)
class ConstantMap:
    """CE: the answer."""

    senone: int


@dataclass(frozen=True, slots=True)
class SplitMap:
    """SE: `yes` where the value of `key` is in `values`, else `no`."""

    key: int
    values: frozenset[int]
    yes: "Node"
    no: "Node"


@dataclass(frozen=True, slots=True)
class TableMap:
    """TE: the child of the value of `key`; None where there is none."""

    key: int
    children: tuple["Node | None", ...]


Node = ConstantMap | SplitMap | TableMap


@dataclass(frozen=True, kw_only=True)
class ContextTree:
    """`width` phones wide (1: monophones, 3: triphones), the phone itself at place `central`."""

    width: int
    central: int
    root: Node

    def senone(self, window: Sequence[int], pdf_class: int) -> int | None:
        """The senone of a state's class of the window's central phone; None where the tree has no answer."""
        node: Node | None = self.root
        while not isinstance(node, ConstantMap):
            if node is None:
                return None
            value = pdf_class if node.key == PDF_CLASS else window[node.key]
            if isinstance(node, SplitMap):
                node = node.yes if value in node.values else node.no
            else:
                node = node.children[value] if 0 <= value < len(node.children) else None
        return node.senone

    @property
    def num_senones(self) -> int:
        """One more than the highest answer."""
        return 1 + max(_answers(self.root), default=-1)

    def to_text(self) -> str:
        """Kaldi's text form."""
        return f"ContextDependency {self.width} {self.central} ToPdf {_text(self.root)}EndContextDependency \n"


def _answers(node: Node | None) -> Iterator[int]:
    if isinstance(node, ConstantMap):
        yield node.senone
    elif node is not None:
        for child in (node.yes, node.no) if isinstance(node, SplitMap) else node.children:
            yield from _answers(child)


def _text(node: Node | None) -> str:
    if node is None:
        return "NULL "
    if isinstance(node, ConstantMap):
        return f"CE {node.senone} "
    if isinstance(node, SplitMap):
        values = " ".join(map(str, sorted(node.values)))
        return f"SE {node.key} [ {values} ]\n{{ {_text(node.yes)}{_text(node.no)}}} \n"
    return f"TE {node.key} {len(node.children)} ( {''.join(map(_text, node.children))}) \n"


def parse_tree(data: bytes) -> ContextTree:
    """A tree in Kaldi's binary or text form. Raises ValueError where it is none."""
    stream = KaldiStream(data)
    stream.expect("ContextDependency")
    width, central = stream.integer(), stream.integer()
    if not 0 <= central < width <= 16:
        raise ValueError(f"its window of {width} phones has no place {central}")
    stream.expect("ToPdf")
    try:
        root = _node(stream, width)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if root is None:
        raise ValueError("it is empty")
    stream.expect("EndContextDependency")
    return ContextTree(width=width, central=central, root=root)


def _node(stream: KaldiStream, width: int) -> Node | None:
    kind = stream.expect("CE", "SE", "TE", "NULL")
    if kind == "NULL":
        return None
    if kind == "CE":
        senone = stream.integer()
        if senone < 0:
            raise ValueError(f"it answers {senone}")
        return ConstantMap(senone)
    key = stream.integer()
    if not -1 <= key < width:
        raise ValueError(f"it asks for place {key} of a window of {width} phones")
    if kind == "SE":
        values = frozenset(stream.integers())
        stream.expect("{")
        yes, no = _node(stream, width), _node(stream, width)
        stream.expect("}")
        if yes is None or no is None:
            raise ValueError("a question has no answer")
        return SplitMap(key, values, yes, no)
    size = stream.integer()
    if not 0 <= size <= _MAX_TABLE:
        raise ValueError(f"it has a table of {size}")
    stream.expect("(")
    children = tuple(_node(stream, width) for _ in range(size))
    stream.expect(")")
    return TableMap(key, children)


def read_tree(path: Path) -> ContextTree:
    """Read Kaldi's file `tree`. Raises UserError where it is none."""
    try:
        return parse_tree(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} must be a tree of Kaldi, but is not ({error}).") from None


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

    def places(self, phone: int) -> list[int]:
        """The classes that a pass through a phone's HMM meets, in order. Kaldi's silence is passed state by state."""
        states, at, found = self.topology[phone], 0, []
        seen: set[int] = set()
        while states[at].enter >= 0 and at not in seen:
            seen.add(at)
            found.append(states[at].enter)
            if states[at].stay != states[at].enter:
                found.append(states[at].stay)
            at = min((to for to in states[at].arcs if to not in seen), default=len(states) - 1)
        return found

    def pieces(self, id_T: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """An alignment → (start_P of pieces, begins_P: whether a phone does). Raises ValueError for another model's."""
        if not len(id_T):
            raise ValueError("it is empty")
        if int(id_T.min()) < 1 or int(id_T.max()) >= len(self.phone_I):
            raise ValueError(f"it has the transition id {int(id_T.max())}, but the model {len(self.phone_I) - 1}")
        stays_T, ends_T, senone_T = self.stays_I[id_T], self.ends_I[id_T], self.senone_I[id_T]
        phone_T, state_T = self.phone_I[id_T], self.state_I[id_T]
        same_T = (phone_T[1:] == phone_T[:-1]) & (state_T[1:] == state_T[:-1])
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
        key_T = phone_T.astype(np.int64) * 4096 + state_T
        if (key_T != key_T[start_V][visit_of_T]).any():
            raise ValueError("a state's self-loops stand elsewhere than its other arcs: is the model another?")
        first_V = np.concatenate([[True], ends_V[:-1]])
        phone_V = phone_T[start_V]
        if (phone_V != phone_V[np.flatnonzero(first_V)][np.cumsum(first_V) - 1]).any():
            raise ValueError("the phone changes before its last state: is the model another?")
        piece_T = visit_T | np.concatenate([[False], senone_T[1:] != senone_T[:-1]])
        begins_T = np.zeros(len(id_T), np.bool_)
        begins_T[start_V[first_V]] = True
        return np.flatnonzero(piece_T), begins_T[piece_T]


def read_transitions(path: Path) -> TransitionModel:
    """Read the transition model of `final.mdl` (or of a file of nothing else). Raises UserError where it is none."""
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
    if stream.binary:
        phones, entry_of, number = stream.integers(), stream.integers(), stream.integer()
        has_two = number == -1  # classes, as chain models have
        number = stream.integer() if has_two else number
        if not 0 < number < _MAX:
            raise ValueError(f"it has {number} topologies")
        entries = [tuple(_binary_state(stream, has_two) for _ in range(stream.integer())) for _ in range(number)]
        stream.expect("</Topology>")
        return {phone: entries[entry_of[phone]] for phone in phones}
    topology: dict[int, tuple[State, ...]] = {}
    while stream.expect("<TopologyEntry>", "</Topology>") == "<TopologyEntry>":
        stream.expect("<ForPhones>")
        phones = [int(word) for word in iter(stream.token, "</ForPhones>")]
        states: list[State] = []
        while stream.expect("<State>", "</TopologyEntry>") == "<State>":
            stream.integer()
            states.append(_text_state(stream))
        topology |= dict.fromkeys(phones, tuple(states))
    return topology


def _binary_state(stream: KaldiStream, has_two: bool) -> State:
    enter = stream.integer()
    stay = stream.integer() if has_two else enter
    return State(enter=enter, stay=stay, arcs=tuple(_arc(stream) for _ in range(stream.integer())))


def _arc(stream: KaldiStream) -> int:
    """Where an arc leads; its probability is not needed."""
    to = stream.integer()
    stream.real()
    return to


def _text_state(stream: KaldiStream) -> State:
    enter = stay = -1
    arcs = []
    for word in iter(stream.token, "</State>"):
        if word in ("<PdfClass>", "<ForwardPdfClass>"):
            enter = stream.integer()
            stay = enter if word == "<PdfClass>" else stay
        elif word == "<SelfLoopPdfClass>":
            stay = stream.integer()
        elif word == "<Transition>":
            arcs.append(_arc(stream))
        elif word == "<Final>":
            stream.real()
        else:
            raise ValueError(f"its topology has '{word[:40]}'")
    return State(enter=enter, stay=stay, arcs=tuple(arcs))
