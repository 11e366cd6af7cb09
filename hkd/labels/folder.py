"""A store's folder, on this machine or at a URL: where its files are read and published.

- Both publish files whole. A folder of this machine also has locks; without them two writers at one URL may compute the same shard. Each
  looks again after its mark, which is for the bytes that lie there in the end.
- A store at a URL is read as it was when it was opened: its marks are kept, and a shard is fetched into the cache when it is first asked
  for, and held against the SHA-256 of its mark. A store written again at its URL does not mix with it.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from hkd.errors import HkdError, UserError
from hkd.files import digest_of_file, lock, write_in_order
from hkd.labels import format as files
from hkd.labels.format import DamagedShardError, ShardFile, StoreSpec, backend_of, check_format, parse_index, parse_mark
from hkd.remote import Remote, TooLargeError, cached, location
from hkd.units.inventory import UnitInventory

logger = logging.getLogger(__name__)
Data = bytes | memoryview
MAX_MARK_BYTES = 1 << 16
MAX_INDEX_BYTES, MAX_ROW_BYTES = 1 << 20, 1 << 12  # of the index: in all, and more for each utterance
ATTEMPTS = 3
SHARDS = "labels/shards"  # in the cache
_checked: dict[Path, int] = {}  # cached shards whose SHA-256 this process has seen, by inode


class LostShardError(HkdError):
    """A shard at a URL that is not as its mark says. `kind`: missing or flipped."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class StoreFolder:
    """A folder of this machine; names are relative to it. What cannot be done is an HkdError in one sentence."""

    def __init__(self, path: Path) -> None:
        self.path: Path | str = path
        self._root = path

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """OSError → one sentence."""
        try:
            yield
        except OSError as error:
            raise HkdError(
                f"label store {self.path} cannot be written ({error.strerror or error}). "
                "Mend that, then run the same command again."
            ) from None

    def read(self, name: str, *, limit: int | None = None) -> bytes | None:
        """A file's bytes, `limit` of them at most; None where it is not there."""
        try:
            with (self._root / name).open("rb") as file:
                return file.read() if limit is None else file.read(limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HkdError(f"{self.path}/{name} cannot be read ({error.strerror or error}).") from None

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the (small) files that are there."""
        found = ((name, self.read(name, limit=MAX_MARK_BYTES)) for name in names)
        return {name: data for name, data in found if data is not None}

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return (self._root / name).is_file()

    def names(self, folder: str = "") -> list[str]:
        """The names in a folder, sorted; none where there is no folder. Raises UserError where it is a file."""
        path = self._root / folder
        with self._writing():
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} must be a folder, but is a file. Give another folder.")
            return sorted(item.name for item in path.iterdir()) if path.is_dir() else []

    def publish(self, named: Sequence[tuple[str, Data | Callable[[], bytes]]]) -> None:
        """Write files over those of their names, none before those that it is named after."""
        with self._writing():
            write_in_order([(self._root / name, data) for name, data in named])

    def create(self, name: str, data: Data) -> bool:
        """Write a file that is not there yet; False where it is there."""
        if self.exists(name):  # asked under a lock
            return False
        self.publish([(name, data)])
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._writing():
            (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold a lock between processes; False where another holds it and `wait` is false. At a URL: always true."""
        with contextlib.ExitStack() as stack:
            with self._writing():
                mine = stack.enter_context(lock(self._root / files.LOCKS / f"{name}.lock", wait=wait))
            yield mine

    def sweep(self) -> None:
        """Remove what killed writers left."""
        with self._writing():
            for folder in (self._root, self._root / files.DATA):
                for left in folder.glob(".*.tmp"):
                    left.unlink(missing_ok=True)
            for left in (self._root / files.LOCKS).glob("[0-9]*.lock"):
                with lock(left, wait=False):  # leaving it removes it
                    pass

    def _content(self, name: str) -> bytes | None:
        return self.read(name, limit=files.MAX_JSON_BYTES + 1)

    def _json(self, name: str) -> Any:
        data = self._content(name)
        if data is None:
            raise UserError(f"{self.path} must be a label store, but {name} is missing. Give the folder or URL of a label store.")
        if len(data) > files.MAX_JSON_BYTES:
            raise HkdError(f"{self.path}/{name} must have at most {files.MAX_JSON_BYTES} bytes, but has more.")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise HkdError(f"{self.path}/{name} must be JSON, but is not ({str(error)[:100]}). Restore it from a copy.") from None

    def load_spec(self) -> StoreSpec:
        """Read store.json and inventory.json. Raises UserError or HkdError."""
        value = self._json(files.SPEC)
        try:
            check_format(value)
            inventory = UnitInventory.from_json(self._json(files.INVENTORY), Path(files.INVENTORY))
            return StoreSpec.from_json(value, inventory)
        except UserError as error:
            said = str(error)
            raise UserError(said if said.startswith(str(self.path)) else f"{self.path}: {said}") from None

    def mark_bytes(self, shard: int) -> bytes | None:
        """A mark as it lies there."""
        return self.read(files.mark_name(shard), limit=MAX_MARK_BYTES)

    def mark(self, spec: StoreSpec, shard: int) -> dict[str, Any] | None:
        """A shard's mark; None where there is none that counts (absent, torn, or of another store)."""
        data = self.mark_bytes(shard)
        return None if data is None else parse_mark(data, spec.digest, shard)

    def done(self, spec: StoreSpec) -> dict[int, dict[str, Any]]:
        """The marks of the shards that are done now: mark and file are there."""
        there = set(self.names(files.DATA))
        numbers = range(spec.plan.num_shards)
        named = {files.mark_name(n): n for n in numbers if files.shard_name(spec, n).rpartition("/")[2] in there}
        data = self.read_many([name for name in named if name.rpartition("/")[2] in there])
        marks = {named[name]: parse_mark(found, spec.digest, named[name]) for name, found in data.items()}
        return {shard: mark for shard, mark in marks.items() if mark is not None}

    def is_done(self, spec: StoreSpec, shard: int) -> bool:
        """Whether a shard has its mark and its file now."""
        data = self.read(files.mark_name(shard), limit=MAX_MARK_BYTES)
        return (
            data is not None and parse_mark(data, spec.digest, shard) is not None and self.exists(files.shard_name(spec, shard))
        )

    def report(self) -> dict[str, Any]:
        """The free figures in report.json; empty where there are none."""
        try:
            value = json.loads(self.read(files.REPORT, limit=files.MAX_JSON_BYTES) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def index(self, spec: StoreSpec) -> pa.Table | None:
        """The index, memory-mapped; None where it is absent or not that of this store."""
        try:
            return parse_index(pa.memory_map(str(self._root / files.INDEX)), spec)
        except (OSError, pa.ArrowException):
            return None

    def shard_file(self, spec: StoreSpec, shard: int, *, fresh: bool = False) -> Path:
        """A shard's file on this machine; of a URL it is fetched, with `fresh` even where it is in the cache.

        Raises LostShardError where it is not there any more or not what its mark says, HkdError where it cannot be fetched.
        """
        del fresh
        return self._root / files.shard_name(spec, shard)

    def open_shard(self, spec: StoreSpec, shard: int) -> ShardFile:
        """Open a shard. Raises DamagedShardError, HkdError."""
        return backend_of(spec).open_shard(self.shard_file(spec, shard), spec, shard)


class RemoteStoreFolder(StoreFolder):
    """A folder at a URL. `mark` and `load_spec` say what lay there when they were first asked; all else is as it is now."""

    def __init__(self, url: str) -> None:
        self._remote = Remote(url)
        self.path = self._remote.url
        self._seen: dict[str, bytes] = {}  # store.json, the inventory, marks
        self._had: set[int] = set()  # shards that were in the cache before, for this process
        self._said = False  # that one was fetched again

    def read(self, name: str, *, limit: int | None = None) -> bytes | None:
        return self._remote.read(name, limit=limit)

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        return self._remote.read_many(names, limit=MAX_MARK_BYTES)

    def exists(self, name: str) -> bool:
        return self._remote.size(name) is not None

    def names(self, folder: str = "") -> list[str]:
        return self._remote.names(folder)

    def publish(self, named: Sequence[tuple[str, Data | Callable[[], bytes]]]) -> None:
        for name, data in named:
            self._remote.write(name, data() if callable(data) else data)

    def create(self, name: str, data: Data) -> bool:
        return self._remote.create(name, data)

    def remove(self, name: str) -> None:
        self._remote.remove(name)

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        yield True

    def sweep(self) -> None:
        """Nothing: what is not published does not exist there."""

    def _content(self, name: str) -> bytes | None:
        if name not in self._seen and (data := super()._content(name)) is not None:
            self._seen[name] = data
        return self._seen.get(name)

    def load_spec(self) -> StoreSpec:
        spec = super().load_spec()
        if files.mark_name(0) not in self._seen:
            self._seen |= self.read_many([files.mark_name(shard) for shard in range(spec.plan.num_shards)])
        return spec

    def mark_bytes(self, shard: int) -> bytes | None:
        return self._seen.get(files.mark_name(shard))

    def index(self, spec: StoreSpec) -> pa.Table | None:
        data = self.read(files.INDEX, limit=MAX_INDEX_BYTES + MAX_ROW_BYTES * spec.num_utterances)
        return None if data is None else parse_index(pa.py_buffer(data), spec)

    def shard_file(self, spec: StoreSpec, shard: int, *, fresh: bool = False) -> Path:
        mark = self.mark(spec, shard)
        if mark is None:
            raise LostShardError(
                "missing", f"shard {shard} of label store {self.path} is missing. Run the command that writes it again."
            )
        name = files.shard_name(spec, shard)

        def is_whole(path: Path) -> bool:
            status = path.stat()
            if _checked.get(path) == status.st_ino:
                return True
            if status.st_size != mark["bytes"] or digest_of_file(path) != mark["sha256"]:
                logger.warning("%s/%s: its copy in the cache, %s, is damaged. It is fetched again.", self.path, name, path)
                return False
            _checked[path] = status.st_ino
            return True

        def fetch(part: Path) -> None:
            if shard in self._had and not fresh and not self._said:
                self._said = True
                logger.warning(
                    "%s/%s is not in the cache any more and is fetched again, as others may be. Where the cache is too small for the "
                    "stores, give HKD_CACHE_BYTES.",
                    self.path,
                    name,
                )
            for _ in range(2):
                try:
                    self._remote.fetch(name, part, limit=mark["bytes"])
                except FileNotFoundError:
                    raise LostShardError("missing", f"{self.path}/{name} is missing, though its mark is there.") from None
                except TooLargeError:
                    continue
                if part.stat().st_size == mark["bytes"] and digest_of_file(part) == mark["sha256"]:
                    return
            raise LostShardError(
                "flipped",
                f"{self.path}/{name} must have the SHA-256 {mark['sha256']}, but came with another, twice. "
                "Run `hkd labels verify` on it.",
            )

        path = cached(SHARDS, mark["sha256"] + files.SUFFIXES[spec.backend], fetch, is_whole=is_whole, fresh=fresh)
        self._had.add(shard)
        return path

    def open_shard(self, spec: StoreSpec, shard: int) -> ShardFile:
        for attempt in range(ATTEMPTS):
            try:  # what is not readable was dropped from the cache right now, or has been damaged there since it was checked
                return backend_of(spec).open_shard(self.shard_file(spec, shard, fresh=attempt > 0), spec, shard)
            except DamagedShardError as error:
                if attempt + 1 == ATTEMPTS:
                    raise
                logger.warning("%s It is fetched again.", str(error).partition(" Run ")[0])
        raise AssertionError


def keep_shard(data: Data, sha256: str, suffix: str) -> None:
    """Put a shard that was just written at a URL into the cache, for who reads the store here next. Failing is harmless."""
    with contextlib.suppress(OSError, HkdError):
        cached(SHARDS, sha256 + suffix, lambda part: part.write_bytes(data))


def store_folder(place: Path | str) -> StoreFolder:
    """The folder that a path or a URL names."""
    where = location(place) if isinstance(place, str) else place
    return RemoteStoreFolder(where) if isinstance(where, str) else StoreFolder(where)


def load_spec(place: Path | str) -> StoreSpec:
    """The spec of the store in a folder or at a URL. Raises UserError or HkdError."""
    return store_folder(place).load_spec()
