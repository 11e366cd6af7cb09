"""The decision tree that ties states: phones in context and a state's class → senone; Kaldi's `ContextDependency`, read and written.

The tree asks for values of a phone's window: key 0 … N−1 are the phones around it (P is its own place), key −1 its state's class.
CE answers, SE asks whether a value is among a set, TE goes where the value says. 0 stands beyond the utterance's ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hkd.errors import UserError
from hkd.units.kaldi_io import KaldiStream, read_bytes

PDF_CLASS = -1
_MAX_TABLE = 1 << 20


@dataclass(frozen=True, slots=True)
class Leaf:
    """CE: the answer."""

    senone: int


@dataclass(frozen=True, slots=True)
class Split:
    """SE: `yes` where the value of `key` is in `values`, else `no`."""

    key: int
    values: frozenset[int]
    yes: "Node"
    no: "Node"


@dataclass(frozen=True, slots=True)
class Table:
    """TE: the child of the value of `key`; None where there is none."""

    key: int
    children: tuple["Node | None", ...]


Node = Leaf | Split | Table


@dataclass(frozen=True, kw_only=True)
class ContextTree:
    """`width` phones wide (1: monophones, 3: triphones), the phone itself at place `central`."""

    width: int
    central: int
    root: Node

    def senone(self, window: Sequence[int], pdf_class: int) -> int | None:
        """The senone of a state's class of the window's central phone; None where the tree has no answer."""
        node: Node | None = self.root
        while not isinstance(node, Leaf):
            if node is None:
                return None
            value = pdf_class if node.key == PDF_CLASS else window[node.key]
            if isinstance(node, Split):
                node = node.yes if value in node.values else node.no
            else:
                node = node.children[value] if 0 <= value < len(node.children) else None
        return node.senone

    @property
    def num_senones(self) -> int:
        """One more than the highest answer."""
        return 1 + max((leaf.senone for leaf in self._leaves()), default=-1)

    def _leaves(self) -> Iterator[Leaf]:
        stack: list[Node | None] = [self.root]
        while stack:
            node = stack.pop()
            if isinstance(node, Leaf):
                yield node
            elif isinstance(node, Split):
                stack += [node.yes, node.no]
            elif node is not None:
                stack += node.children

    def to_text(self) -> str:
        """Kaldi's text form."""
        return f"ContextDependency {self.width} {self.central} ToPdf {_text(self.root)}EndContextDependency \n"


def _text(node: Node | None) -> str:
    if node is None:
        return "NULL "
    if isinstance(node, Leaf):
        return f"CE {node.senone} "
    if isinstance(node, Split):
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
        return Leaf(senone)
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
        return Split(key, values, yes, no)
    size = stream.integer()
    if not 0 <= size <= _MAX_TABLE:
        raise ValueError(f"it has a table of {size}")
    stream.expect("(")
    children = tuple(_node(stream, width) for _ in range(size))
    stream.expect(")")
    return Table(key, children)


def read_tree(path: Path) -> ContextTree:
    """Read Kaldi's file `tree`. Raises UserError where it is none."""
    try:
        return parse_tree(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} must be a tree of Kaldi, but is not ({error}).") from None
