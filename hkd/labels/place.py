"""Where a writer writes: a folder of this machine, or one at a URL. Both publish files whole; a folder also has locks.

Without locks two writers at one URL may compute the same shard. The first to publish it wins, and the other's mark is for what is there.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Protocol

from hkd.errors import HkdError, UserError
from hkd.files import temporary, write_bytes, write_in_order
from hkd.labels import folder as files
from hkd.labels.cache import MAX_MARK_BYTES, mirror
from hkd.labels.locks import lock
from hkd.remote import Remote, location

Data = bytes | memoryview


class Draft:
    """A file that grows under a temporary name, or nothing at all."""

    def __init__(self, file: BinaryIO | None = None, path: Path = Path()) -> None:
        self.path, self._file, self._size = path, file, 0

    def write(self, data: Data) -> None:
        """Add to it. The disk begins to write at once (Linux), so that publishing waits for less."""
        if self._file is not None:
            self._file.write(data)
            self._file.flush()
            if hasattr(os, "posix_fadvise"):
                with contextlib.suppress(OSError):  # a hint, which not every kernel takes
                    os.posix_fadvise(self._file.fileno(), self._size, len(data), os.POSIX_FADV_DONTNEED)
            self._size += len(data)


class Place(Protocol):
    """A folder to write a store in; names are relative to it. What cannot be done is an HkdError in one sentence."""

    @property
    def path(self) -> Path | str:
        """The folder or the URL."""

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where it is not there."""

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the files that are there."""

    def exists(self, name: str) -> bool:
        """Whether a file is there."""

    def names(self, folder: str = "") -> list[str]:
        """What lies right in a folder; nothing where there is none. Raises UserError where it is a file."""

    def write(self, name: str, data: Data) -> None:
        """Publish a file over what is there."""

    def write_in_order(self, named: Sequence[tuple[str, Data]]) -> None:
        """Publish files of one folder over what is there, none before those that it is named after."""

    def draft(self, name: str) -> AbstractContextManager[Draft]:
        """Begin a file of which the bytes come bit by bit. What is not published is removed."""

    def create(self, name: str, data: Data, *more: tuple[str, bytes]) -> bool:
        """Publish a file that is not there yet, and `more` files after it; False, and nothing else, where it is."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def lock(self, name: str, *, wait: bool) -> AbstractContextManager[bool]:
        """Be the only one in this; False where another is and `wait` is false. Without locks: always true."""

    def sweep(self) -> None:
        """Remove what killed writers left."""

    def folder(self) -> Path:
        """A folder of this machine through which the store's marks and shards can be read."""


class LocalPlace:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _world(self) -> Iterator[None]:
        """OSError → one sentence."""
        try:
            yield
        except OSError as error:
            raise HkdError(
                f"label store {self.path} cannot be written ({error.strerror or error}). "
                "Mend that, then run the same command again."
            ) from None

    def read(self, name: str) -> bytes | None:
        with self._world():
            try:
                return (self.path / name).read_bytes()
            except FileNotFoundError:
                return None

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        found = ((name, self.read(name)) for name in names)
        return {name: data for name, data in found if data is not None}

    def exists(self, name: str) -> bool:
        return (self.path / name).is_file()

    def names(self, folder: str = "") -> list[str]:
        path = self.path / folder
        with self._world():
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} must be a folder, but is a file. Give another folder.")
            return sorted(item.name for item in path.iterdir()) if path.is_dir() else []

    def write(self, name: str, data: Data) -> None:
        with self._world():
            write_bytes(self.path / name, data)

    def write_in_order(self, named: Sequence[tuple[str, Data | Path]]) -> None:
        with self._world():
            write_in_order([(self.path / name, data) for name, data in named])

    @contextmanager
    def draft(self, name: str) -> Iterator[Draft]:
        path = self.path / name
        with self._world():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = temporary(path)
            try:
                with part.open("xb") as file:
                    yield Draft(file, part)
            finally:
                part.unlink(missing_ok=True)

    def create(self, name: str, data: Data, *more: tuple[str, bytes]) -> bool:
        if self.exists(name):  # asked under a lock
            return False
        self.write_in_order([(name, data), *more])
        return True

    def remove(self, name: str) -> None:
        with self._world():
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        with contextlib.ExitStack() as stack:
            with self._world():
                mine = stack.enter_context(lock(self.path / files.LOCKS / f"{name}.lock", wait=wait))
            yield mine

    def sweep(self) -> None:
        with self._world():
            for place in (self.path, self.path / files.DATA):
                for left in place.glob(".*.tmp"):
                    left.unlink(missing_ok=True)
            for left in (self.path / files.LOCKS).glob("[0-9]*.lock"):
                with lock(left, wait=False):  # leaving it removes it
                    pass

    def folder(self) -> Path:
        return self.path


class RemotePlace:
    """A folder at a URL."""

    def __init__(self, url: str) -> None:
        self._remote = Remote(url)
        self.path: Path | str = self._remote.url
        if url.startswith("hf://"):
            raise UserError(
                f"a store must not be written at {url} shard by shard. Write it to a folder, then `hkd labels push` it."
            )

    def read(self, name: str) -> bytes | None:
        return self._remote.read(name)

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        return self._remote.read_many(names, limit=MAX_MARK_BYTES)

    def exists(self, name: str) -> bool:
        return self._remote.size(name) is not None

    def names(self, folder: str = "") -> list[str]:
        return self._remote.names(folder)

    def write(self, name: str, data: Data) -> None:
        self._remote.write(name, data)

    def write_in_order(self, named: Sequence[tuple[str, Data]]) -> None:
        for name, data in named:
            self.write(name, data)

    def draft(self, name: str) -> AbstractContextManager[Draft]:
        return nullcontext(Draft())

    def create(self, name: str, data: Data, *more: tuple[str, bytes]) -> bool:
        if not self._remote.create(name, data):
            return False
        self.write_in_order(more)
        return True

    def remove(self, name: str) -> None:
        self._remote.remove(name)

    def lock(self, name: str, *, wait: bool) -> AbstractContextManager[bool]:
        return nullcontext(True)

    def sweep(self) -> None:
        """Nothing: what is not published does not exist there."""

    def folder(self) -> Path:
        return mirror(self._remote.url)


def place_of(path: Path | str) -> Place:
    """The place that a path or a URL names."""
    where = location(path) if isinstance(path, str) else path
    return RemotePlace(where) if isinstance(where, str) else LocalPlace(where)
