"""n-gram language models in ARPA files: the one reader, for teachers, for search graphs and beside beam search.

- Plain text or packed (gzip, bzip2, xz), found by the first bytes, so that a file may have any name.
- Blanks separate columns. A missing back-off weight is log 1. A log-probability of -inf is read as SRILM's zero, -99.
- `<S>`, `<UNK>` and so on are read as `<s>`, `</s>` and `<unk>`. An n-gram written more than once counts as its
  likeliest line, and is reported.
- A file that is cut off, damaged or no ARPA file is refused in one line; a broken line is refused with its number.

Shape letters: M n-grams of an order n.
"""

import bz2
import gzip
import logging
import lzma
import re
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError

logger = logging.getLogger(__name__)

START, STOP, UNKNOWN = "<s>", "</s>", "<unk>"
ZERO = -99.0  # log10 of a probability of 0
ENDINGS = (".arpa", ".lm", ".gz", ".bz2", ".xz", ".zst", ".binary", ".bin", ".klm", ".mmap")
_MARKS = {mark.encode(): mark for mark in (START, STOP, UNKNOWN)}
_MAX_LINE_BYTES = 1 << 20
_WHOLE = 0.98, 1.02  # what probabilities of whole distributions add up to
_BINARY = {
    b"mmap lm http://kheafield.com": "a binary file of KenLM",
    b"blmt": "a binary file of IRSTLM",
    b"Trie Language Model": "a binary file of Sphinx",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"\x04\x22\x4d\x18": "packed by lz4",
}
_PACKED: dict[bytes, tuple[str, Callable[[Any], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\0": ("xz", lzma.LZMAFile),
}
_SECTION = re.compile(rb"\\(\d+)-grams:")
_COUNT = re.compile(rb"ngram\s+(\d+)\s*=\s*(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Grams:
    """All n-grams of one order: ids of their symbols, log-probabilities and back-off weights (0 for none)."""

    ids_Mn: NDArray[np.int64]
    logp_M: NDArray[np.float64]
    bow_M: NDArray[np.float64]

    def take(self, which: Any) -> "Grams":
        """Some of them, by a mask or by their rows."""
        return Grams(ids_Mn=self.ids_Mn[which], logp_M=self.logp_M[which], bow_M=self.bow_M[which])


@dataclass(frozen=True, kw_only=True, slots=True)
class Arpa:
    """An ARPA file. `symbols`: of the ids; `orders`: the n-grams of order 1, 2, ..., logarithms to base 10."""

    path: Path
    symbols: tuple[str, ...]
    orders: tuple[Grams, ...]

    @property
    def words(self) -> list[str]:
        """The symbols without `<s>`, `</s>`, `<unk>` and others in angle brackets."""
        return [symbol for symbol in self.symbols if not (symbol.startswith("<") and symbol.endswith(">"))]


def is_arpa(name: str) -> bool:
    """Whether a name is that of an n-gram file rather than of a folder or a model of the hub."""
    path = Path(name).expanduser()
    return path.is_file() or (not path.is_dir() and name.lower().endswith(ENDINGS))


def read_arpa(path: Path) -> Arpa:
    """Read a file. Raises UserError where it is missing, damaged, cut off or no ARPA file."""
    reader = _Reader(path)
    with _opened(path) as file:
        reader.read(file)
    return reader.finish()


def write_arpa(path: Path, arpa: Arpa, *, only: Sequence[str]) -> None:
    """Write the n-grams of these symbols, as other programs' stricter readers take them."""
    wanted = {*only, START, STOP}
    kept_V = np.array([symbol in wanted for symbol in arpa.symbols])
    orders = [grams.take(np.all(kept_V[grams.ids_Mn], axis=1)) for grams in arpa.orders]
    with path.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(grams.logp_M)}\n" for n, grams in enumerate(orders, 1)))
        for n, grams in enumerate(orders, 1):
            file.write(f"\n\\{n}-grams:\n")
            for ids, logp, bow in zip(grams.ids_Mn.tolist(), grams.logp_M.tolist(), grams.bow_M.tolist(), strict=True):
                symbols = " ".join(arpa.symbols[i] for i in ids)
                file.write(f"{logp}\t{symbols}\t{bow}\n" if n < len(orders) else f"{logp}\t{symbols}\n")
        file.write("\n\\end\\\n")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file. Turns the errors of file systems and of unpacking into one line."""
    packed = ""
    try:
        with path.open("rb") as plain:
            head = plain.read(6)
            plain.seek(0)
            packed, unpack = next((found for magic, found in _PACKED.items() if head.startswith(magic)), ("", None))
            file = unpack(plain) if unpack else plain
            refused = None
            try:
                yield file
            except UserError as error:
                refused = error
            while packed and file.read(1 << 20):  # to the checksum, since a damaged archive may unpack to broken lines
                pass
            if refused:
                raise refused
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and not (packed and error.errno is None):
            why = error.strerror or error
            raise UserError(f"n-gram file {path} cannot be read ({why}). Give an ARPA file.") from None
        why = f"is cut off or damaged ({str(error).rstrip('.')})"
        raise UserError(f"{path} must be a whole {packed} file, but {why}. Fetch it again.") from None


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.id_of: dict[bytes, int] = {}
        self.symbols: list[str] = []
        self.counts: dict[int, int] = {}  # the header's
        self.lines: list[int] = []  # those that were read, an order
        self.ids: list[array[int]] = []
        self.values: list[array[float]] = []
        self.number = 0

    def _refuse(self, rule: str, remedy: str = "Make the file again.") -> UserError:
        return UserError(f"{self.path}:{self.number}: {rule}. {remedy}")

    def read(self, file: IO[bytes]) -> None:
        order, ended = 0, False
        for self.number, raw in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), 1):
            if self.number == 1:
                raw = self._first(raw)
            line = raw.strip()
            if line.startswith(b"\\"):
                if line.lower() == b"\\end\\":
                    ended = True
                    break
                section = _SECTION.fullmatch(line.lower())
                order = self._begin(int(section[1])) if section else 0
            elif order and line:
                self._add(order, line.split())
            elif found := _COUNT.fullmatch(line):
                self.counts[int(found[1])] = int(found[2])
        if not self.lines:
            raise UserError(f"{self.path} must be an ARPA file, but has no \\1-grams: section. Give an ARPA file.")
        if not ended:
            why = f"ends after line {self.number} without \\end\\"
            raise UserError(f"{self.path} must be a whole ARPA file, but {why}. It is cut off: fetch it again.")

    def _first(self, line: bytes) -> bytes:
        rule = f"{self.path} must be an ARPA file"
        for magic, kind in _BINARY.items():
            if line.startswith(magic):
                raise UserError(f"{rule}, but is {kind}. Give the ARPA file that it was made from.")
        if line.startswith(b"iARPA"):
            raise UserError(f"{rule}, but is IRSTLM's iARPA. Write it as ARPA: compile-lm --text=yes.")
        if line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{self.path} must be UTF-8, but is UTF-16. Re-encode it: iconv -f UTF-16 -t UTF-8.")
        if b"\0" in line:
            raise UserError(f"{rule}, but is a binary file or an archive. Give the ARPA file.")
        return line.removeprefix(b"\xef\xbb\xbf")

    def _begin(self, order: int) -> int:
        before = len(self.lines)
        if order != before + 1:
            wanted = f"\\{before + 1}-grams:"
            raise self._refuse(f"the section after the {before}-grams must be {wanted}, but is \\{order}-grams:")
        self.lines.append(0)
        self.ids.append(array("q"))
        self.values.append(array("d"))
        return order

    def _add(self, order: int, fields: Sequence[bytes]) -> None:
        if len(fields) not in (order + 1, order + 2):
            raise self._refuse(
                f"a line of the {order}-grams must have {order + 1} or {order + 2} columns, but has {len(fields)}",
                "Mend the line; symbols must hold no blanks.",
            )
        logp = self._value(fields[0])
        if logp > 0:
            said = fields[0].decode(errors="replace")
            raise self._refuse(f"the logarithm of a probability must be 0 or less, but is {said}")
        bow = self._value(fields[order + 1]) if len(fields) > order + 1 else 0.0
        if bow == np.inf:
            raise self._refuse("a back-off weight must be finite, but is inf")
        self.ids[order - 1].extend([self._id(symbol, order) for symbol in fields[1 : order + 1]])
        self.values[order - 1].extend((max(logp, ZERO), max(bow, ZERO)))
        self.lines[order - 1] += 1

    def _value(self, field: bytes) -> float:
        try:
            value = float(field)
        except ValueError:
            value = np.nan
        if value != value or b"_" in field:
            said = field[:40].decode(errors="replace")
            raise self._refuse(f"a logarithm in an ARPA file must be a number, but is {said}")
        return value

    def _id(self, symbol: bytes, order: int) -> int:
        number = self.id_of.get(symbol)
        if number is not None:
            return number
        try:
            text = symbol.decode()
        except UnicodeDecodeError:
            remedy = "Re-encode it: iconv -t UTF-8."
            raise self._refuse("an ARPA file must be UTF-8, but this line is not", remedy) from None
        mark = _MARKS.get(symbol.lower())
        if mark is None and order > 1:
            raise self._refuse(f"the symbols of an n-gram must be among the 1-grams, but {text} is not")
        if mark is not None and mark.encode() in self.id_of:
            number = self.id_of[mark.encode()]
        else:
            number = len(self.symbols)
            self.symbols.append(mark or text)
            if order > 1:  # a mark that no 1-gram has
                self.ids[0].append(number)
                self.values[0].extend((ZERO, 0.0))
            if mark is not None:
                self.id_of[mark.encode()] = number
        self.id_of[symbol] = number
        return number

    def finish(self) -> Arpa:
        if not self.lines[0]:
            why = "its \\1-grams: section is empty"
            raise UserError(f"{self.path} must hold n-grams, but {why}. Give another ARPA file.")
        for n, count in self.counts.items():
            if n > len(self.lines) and count:
                rule, why = f"must have the {count} {n}-grams of its header", f"has no \\{n}-grams: section"
                raise UserError(f"{self.path} {rule}, but {why}. Fetch it again.")
            if n <= len(self.lines) and count != (found := self.lines[n - 1]):
                said = "%s: the header says %d %d-grams, but there are %d; those that are there are used."
                logger.warning(said, self.path, count, n, found)
        orders, twice = [], 0
        for n, (ids, values) in enumerate(zip(self.ids, self.values, strict=True), 1):
            value_M2 = np.asarray(values).reshape(-1, 2)
            grams = Grams(ids_Mn=np.asarray(ids).reshape(-1, n), logp_M=value_M2[:, 0], bow_M=value_M2[:, 1])
            once = _once(grams)
            twice += len(grams.logp_M) - len(once)
            orders.append(grams.take(once))
        if twice:
            said = "%s: %d n-grams are written more than once; the likeliest line of each is used."
            logger.warning(said, self.path, twice)
        own, natural = (float((base ** orders[0].logp_M[orders[0].logp_M > ZERO]).sum()) for base in (10.0, np.e))
        if own < _WHOLE[0] and _WHOLE[0] < natural < _WHOLE[1]:
            why = f"its 1-grams add up to {own:.2g} so, and to {natural:.3g} with natural ones"
            remedy = "Divide all numbers by 2.302585."
            raise UserError(f"{self.path} must have logarithms to base 10, but {why}. {remedy}")
        while len(orders) > 1 and not len(orders[-1].logp_M):
            orders.pop()
        return Arpa(path=self.path, symbols=tuple(self.symbols), orders=tuple(orders))


def _once(grams: Grams) -> NDArray[np.int64]:
    """The rows of different n-grams, in the file's order; of those of the same n-gram the likeliest."""
    row_M = np.lexsort((-grams.logp_M, *grams.ids_Mn.T[::-1]))
    sorted_Mn = grams.ids_Mn[row_M]
    first_M = np.ones(len(row_M), np.bool_)
    first_M[1:] = (sorted_Mn[1:] != sorted_Mn[:-1]).any(axis=1)
    return np.sort(row_M[first_M])
