"""Text files by line, strictly: UTF-8 with or without a byte order mark, LF or CRLF, lines of bounded length, no NUL
bytes.

What is broken is an error that names file and line; nothing is skipped or replaced in silence, and memory stays
constant.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from hkd.errors import UserError

MAX_LINE_BYTES = 1 << 20
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def numbered_lines(path: Path, what: str = "a text file", *, remedy: str = "") -> Iterator[tuple[int, str]]:
    """Stream a file's lines, without their ends, numbered from 1; a name that ends in .gz is unpacked. Raises
    UserError.

    `what` names the file in errors ("a manifest"), `remedy` is the sentence for a file that cannot be opened.
    """
    number = 0
    try:
        with path.open("rb") as plain:
            file = cast("IO[bytes]", gzip.GzipFile(fileobj=plain)) if path.suffix == ".gz" else plain
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                yield number, _decode(raw.removeprefix(_UTF8_MARK) if number == 1 else raw, what, f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}:{number + 1}: {what} must be whole, but cannot be unpacked ({error}). Copy it anew."
        ) from None
    except ValueError as error:  # a name with a NUL byte
        raise UserError(f"{what} must be a readable file, but {str(path)!r}: {error}. {remedy}".rstrip()) from None
    except OSError as error:
        raise UserError(f"{what} must be a readable file, but {path}: {error.strerror}. {remedy}".rstrip()) from None


def filled_lines(path: Path, what: str = "a text file") -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place, FILE:LINE. Raises as `numbered_lines`."""
    return ((f"{path}:{number}", line) for number, line in numbered_lines(path, what) if line.strip())


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Put the place before what a UserError says."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _decode(raw: bytes, what: str, place: str) -> str:
    if raw.startswith(_UTF16_MARKS):
        raise UserError(f"{place}: {what} must be UTF-8, but is UTF-16. Re-encode the file.")
    if b"\0" in raw:
        raise UserError(
            f"{place}: {what} must be text in UTF-8, but this line holds a NUL byte. Is it another kind of file?"
        )
    if len(raw) > MAX_LINE_BYTES:
        raise UserError(f"{place}: {what} must have lines shorter than {MAX_LINE_BYTES} bytes, but this one is longer.")
    try:
        return raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{place}: {what} must be UTF-8, but this line is not. Re-encode the file.") from None


def one_line(error: BaseException, most: int = 200) -> str:
    """All that an exception says, in one line; what it is, where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def first_line(error: BaseException) -> str:
    """What an exception of another library says, in one line without a full stop."""
    said = str(error).strip().splitlines()
    return said[0].strip().rstrip(".:")[:300] if said else type(error).__name__
