"""Files whole or not at all, their digests, text by the line, TOML; cores. Is an artefact what was asked for?

Text is read strictly: UTF-8 with or without a byte order mark, LF or CRLF, lines of bounded length, no NUL bytes. What
is broken is an error that names file and line; nothing is skipped or replaced in silence, and memory stays constant.
"""

import gzip
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from filelock import FileLock, Timeout

from hkd.errors import UserError


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def temporary(path: Path) -> Path:
    """A name beside `path` that no other thread or process uses. Open it with "xb", for a new file's permissions."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync it and rename it to `path`, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary(path)
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    sync(path.parent)


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock between processes and threads. It is a file, removed afterwards, with its folder where that is empty.

    False where another holds it and `wait` is false. The lock of a killed process is free. Raises OSError.
    """
    held = FileLock(path)
    while not held.is_locked:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except (FileNotFoundError, FileExistsError):  # the folder went with another's lock, perhaps during mkdir
            if path.parent.is_file():
                raise
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # before it is released: filelock takes no lock on a file that is gone
        held.release()
        with suppress(OSError):  # others are in it
            path.parent.rmdir()


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_in_order(files: Sequence[tuple[Path, bytes | memoryview | Callable[[], bytes]]]) -> None:
    """Write several files atomically: all are on the disk before the first appears, and they appear in this order.

    A function in place of bytes gives them: it is called when the files before are written.
    """
    parts: list[tuple[Path, Path]] = []
    try:
        for path, data in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = temporary(path)
            parts.append((part, path))
            with part.open("xb") as file:
                file.write(data() if callable(data) else data)
        with ThreadPoolExecutor(max(1, len(parts))) as pool:
            list(pool.map(sync, [part for part, _ in parts]))
        for part, path in parts:
            part.replace(path)
    except BaseException:
        for part, _ in parts:
            with suppress(OSError):
                part.unlink()
        raise
    for folder in {path.parent for _, path in parts}:
        sync(folder)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as file:
        file.write(data)


def json_bytes(value: Any) -> bytes:
    """JSON as we write it: indented by two spaces, keys in the author's order, a final newline."""
    if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
        return (_json(value, indent=2) + "\n").encode()
    lines = (f"  {_json(key)}: {_indented_json(item)}" for key, item in value.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _json(value: Any, **layout: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)


def _indented_json(item: Any) -> str:
    """As json.dumps with an indent of 2 writes it one level down. Lists of texts go through its faster C encoder."""
    if isinstance(item, list) and item and all(isinstance(text, str) for text in item):
        return "[\n    " + _json(item, separators=(",\n    ", ": "))[1:-1] + "\n  ]"
    return _json(item, indent=2).replace("\n", "\n  ")


def write_json(path: Path, value: Any) -> None:
    """Write `json_bytes` atomically."""
    write_bytes(path, json_bytes(value))


def digest_of(parts: Iterable[str | bytes | memoryview]) -> str:
    """SHA-256, in hex, of the parts in order, each preceded by its length as 8 little-endian bytes."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def digest_of_json(value: Any) -> str:
    """SHA-256, in hex, of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped(name: str) -> Path:
    """A folder that lies beside `hkd/` in a checkout and inside it once installed: pipelines, data_manifests."""
    here = Path(__file__).parent
    return here / name if (here / name).is_dir() else here.parent / name


MAX_LINE_BYTES = 1 << 20
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def numbered_lines(path: Path, what: str = "a text file", *, remedy: str = "") -> Iterator[tuple[int, str]]:
    """Stream a file's lines, without their ends, numbered from 1; a name in .gz is unpacked. Raises UserError.

    `what` names the file in errors ("a manifest"), `remedy` is the sentence for a file that cannot be opened.
    """
    number, rule = 0, f"{what} must be a readable file"
    try:
        with path.open("rb") as plain:
            file = cast("IO[bytes]", gzip.GzipFile(fileobj=plain)) if path.suffix == ".gz" else plain
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                yield number, _decode(raw.removeprefix(_UTF8_MARK) if number == 1 else raw, what, f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        why = f"cannot be unpacked ({error})"
        raise UserError(f"{path}:{number + 1}: {what} must be whole, but {why}. Copy it again.") from None
    except ValueError as error:  # a name with a NUL byte
        raise UserError(f"{rule}, but {str(path)!r}: {error}. {remedy}".rstrip()) from None
    except OSError as error:
        raise UserError(f"{rule}, but {path}: {error.strerror}. {remedy}".rstrip()) from None


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
        remedy = "Is it another kind of file?"
        raise UserError(f"{place}: {what} must be text in UTF-8, but this line holds a NUL byte. {remedy}")
    if len(raw) > MAX_LINE_BYTES:
        raise UserError(f"{place}: {what} must have lines shorter than {MAX_LINE_BYTES} bytes, but this one is longer.")
    try:
        return raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{place}: {what} must be UTF-8, but this line is not. Re-encode the file.") from None


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """A table as TOML text: values first, then sub-tables, in the given order; None is left out."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    values = {key: value for key, value in table.items() if key not in inner and value is not None}
    text = "".join(f"{assignment(key, value)}\n" for key, value in values.items())
    for key, value in inner.items():
        name = f"{prefix}{_key(key)}"
        body = to_toml(value, f"{name}.")
        head = f"[{name}]\n" if not value or any(not isinstance(v, Mapping) for v in value.values()) else ""
        text += ("\n" if text and head else "") + head + body
    return text


def assignment(key: str, value: Any) -> str:
    """A line "key = value"; a table is written inline."""
    return f"{_key(key)} = {_value(value)}"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _quote(name)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(assignment(key, part) for key, part in value.items()) + "}"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return _quote(value) if isinstance(value, str) else repr(value)


def _quote(text: str) -> str:
    """A TOML basic string: JSON's escapes, and DEL's, which JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings → {"a.b": leaf}; tuples become lists, as JSON has them."""
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    leaves: dict[str, Any] = {}
    for name, part in value.items():
        leaves |= flatten(part, f"{prefix}.{name}" if prefix else str(name))
    return leaves


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, value there, value asked for) of the leaves that differ as JSON, None where a side lacks one."""
    was, now = (flatten(json.loads(json.dumps(side))) for side in (there, asked))
    return [(name, was.get(name), now.get(name)) for name in {**was, **now} if was.get(name) != now.get(name)]


def brief(value: Any) -> str:
    """A value of a description as a message shows it."""
    text = value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if value is None:
        return "not given"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_same(rule: str, there: Mapping[str, Any], asked: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError "RULE, but its NAME is OLD instead of NEW. REMEDY" where the two descriptions differ."""
    found = differences(there, asked)
    if found:
        shown = "; ".join(f"its {name} is {brief(was)} instead of {brief(now)}" for name, was, now in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(f"{rule}, but {shown}{more}. {remedy}")


class Contents:
    """SHA-256 of files, kept in a JSON file. A file is read again only when its size or one of its times changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}  # absolute path → size, mtime in ns, ctime in ns, SHA-256
        self._is_changed = False
        with suppress(OSError, ValueError):
            self._known = json.loads(path.read_text(encoding="utf-8"))

    def digest(self, path: Path, *, without: Path | None = None) -> str | None:
        """Digest of a file, or of a folder's names and files (links followed, hidden and temporary left out)."""
        if path.is_dir():
            files = sorted(_files(path, without and without.absolute()))
            names = [str(file.relative_to(path)) for file in files]
            return digest_of(part for pair in zip(names, self.of_files(files), strict=True) for part in pair)
        return self.of_files([path])[0] if path.exists() else None

    def of_files(self, files: Iterable[Path]) -> list[str]:
        """The SHA-256 of each file; "" for those that are absent."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._of_file, files))

    def save(self) -> None:
        """Write the JSON file where something changed."""
        if self._is_changed:
            text = json.dumps(self._known, ensure_ascii=False, separators=(",", ":"))
            write_bytes(self._path, text.encode(errors="replace"))
            self._is_changed = False

    def _of_file(self, path: Path) -> str:
        try:
            stat = path.stat()
        except FileNotFoundError:
            return ""
        marks, name = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns], str(path.absolute())
        known = self._known.get(name)
        if known is None or known[:3] != marks:
            known = self._known[name] = [*marks, digest_of_file(path)]
            self._is_changed = True
        return str(known[3])


def _files(folder: Path, without: Path | None) -> Iterator[Path]:
    visited: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        here = Path(name)
        stat = here.stat()
        if (stat.st_dev, stat.st_ino) in visited or here.absolute() == without:  # a link to a folder above
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders[:] = [child for child in folders if not child.startswith(".")]
        for file in files:
            if not file.startswith(".") and not file.endswith((".tmp", ".lock")) and (here / file).is_file():
                yield here / file
