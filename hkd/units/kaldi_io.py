"""Kaldi's files, the parts that hold no matrices: tokens, integers and reals, each in a binary and a text form.

A binary stream begins with NUL and B; then a token ends with a space, a number is preceded by a byte that gives its size (negative for
unsigned), a vector of integers by that byte and its length. A text stream is words with white space between.
kaldi-native-io is not used here: it unpacks .gz through a shell and only warns where an archive is cut short.

Shape letters: T frames.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError

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
        if not self.binary:
            while self._data[self._at : self._at + 1].isspace():
                self._at += 1
        window = self._data[self._at : self._at + _MAX_TOKEN]
        words = window.split(maxsplit=1)
        if not words or (self.binary and window[:1].isspace()):
            raise ValueError(f"it ends, or holds no word, at byte {self._at}")
        word = words[0]
        self._at += len(word) + 1
        try:
            return word.decode()
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
        if not self.binary:
            return int(self.token())
        size = self._unpack("<b")
        if abs(size) != 4:
            raise ValueError(f"it holds no integer at byte {self._at}")
        return self._unpack("<i" if size > 0 else "<I")

    def real(self) -> float:
        """The next real number, of 32 or 64 bits."""
        if not self.binary:
            return float(self.token())
        size = self._unpack("<b")
        if size not in (4, 8):
            raise ValueError(f"it holds no real number at byte {self._at}")
        return float(self._unpack("<f" if size == 4 else "<d"))

    def integers(self) -> list[int]:
        """The next vector of integers."""
        if self.binary:
            if self._unpack("<b") != 4:
                raise ValueError(f"it holds no vector of integers at byte {self._at}")
            number = self._unpack("<i")
            if number < 0 or self._at + 4 * number > len(self._data):
                raise ValueError(f"it has a vector of {number} integers, more than follow")
            values: list[int] = np.frombuffer(self._data, "<i4", number, self._at).tolist()
            self._at += 4 * number
            return values
        self.expect("[")
        found = []
        while (word := self.token()) != "]":
            found.append(int(word))
        return found

    def _unpack(self, layout: str) -> int:
        try:
            (value,) = struct.unpack_from(layout, self._data, self._at)
        except struct.error:
            raise ValueError(f"it ends at byte {len(self._data)}: is it truncated?") from None
        self._at += struct.calcsize(layout)
        return value  # type: ignore[no-any-return]


def read_bytes(path: Path) -> bytes:
    """A whole file, unpacked where its name ends in .gz. Raises UserError where it cannot be."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} must be whole, but cannot be unpacked ({error}). Copy it anew.") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from None


def read_integer_vectors(path: Path) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """An archive of integer vectors (`ali.1.gz`, an ark, in binary or text): (key, value_T) in its order. Raises UserError."""
    data = read_bytes(path)
    at = 0
    while at < len(data):
        line_end = data.find(b"\n", at)
        space = data.find(b" ", at, at + _MAX_TOKEN + 1)
        key = data[at:space] if space > 0 else b""
        if not key or not key.decode("utf-8", "replace").isprintable():
            raise UserError(f"{path} must be an archive of integer vectors, but has no key at byte {at}.")
        name = key.decode("utf-8", "replace")
        if data[space + 1 : space + 3] == BINARY_MARK:
            head = data[space + 3 : space + 8]
            number = int.from_bytes(head[1:], "little", signed=True) if len(head) == 5 and head[0] == 4 else -1
            start = space + 8
            if number < 0:
                raise UserError(f"{path} must be an archive of integer vectors, but '{name}' is something else.")
            if start + 5 * number > len(data):
                raise UserError(f"{path} must be whole, but ends within '{name}'. Copy it anew.")
            yield name, np.frombuffer(data, _INT32, number, start)["value"].astype(np.int32)
            at = start + 5 * number
        else:
            line = data[space + 1 : line_end if line_end >= 0 else len(data)]
            try:
                yield name, np.array(line.split(), np.int64).astype(np.int32)
            except (ValueError, OverflowError):
                raise UserError(f"{path} must be an archive of integer vectors, but '{name}' is something else.") from None
            at = line_end + 1 if line_end >= 0 else len(data)


def read_symbols(path: Path) -> dict[str, int]:
    """A symbol table (`phones.txt`, `words.txt`): symbol → number. Raises UserError with the line."""
    from hkd.lines import numbered_lines

    found: dict[str, int] = {}
    for number, line in numbered_lines(path, "a symbol table"):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2 or not parts[1].isdecimal() or len(parts[1]) > 9:
            raise UserError(f"{path}:{number}: a line of a symbol table must be `symbol number`, but this one is not.")
        found[parts[0]] = int(parts[1])
    return found
