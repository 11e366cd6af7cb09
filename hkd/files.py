"""Local files that appear whole or not at all, and digests."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout


def temporary(path: Path) -> Path:
    """A name beside `path` that no other thread or process uses. Open it with "xb": the file gets the permissions of
    any new file."""
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
    """As json.dumps with an indent of 2 writes it one level down. Lists of texts go through its C encoder, which is
    faster."""
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
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped(name: str) -> Path:
    """A folder that lies beside `hkd/` in a checkout and inside it once installed: pipelines, data_manifests."""
    here = Path(__file__).parent
    return here / name if (here / name).is_dir() else here.parent / name
