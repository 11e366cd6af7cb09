"""A store's folder, on this machine or at a URL: where its files are read and published.

- Files appear whole. Only a folder of this machine has locks, so two writers at one URL may compute the same shard.
  Each reads the shard again after writing its mark, so that the mark is for the bytes that are there in the end.
- A store at a URL is read as it was when it was opened: its marks are kept, and each shard, when it is first fetched
  into the cache, is held against the SHA-256 of its mark. So a store that is written again does not mix with the old.
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
from hkd.files import digest_of_file, lock, placed, write_in_order
from hkd.labels import format as files
from hkd.labels.format import DamagedShardError, ShardFile, StoreSpec, backend_of, check_format, parse_index, parse_mark
from hkd.remote import Remote, TooLargeError, cached, location
from hkd.units.inventory import UnitInventory

logger = logging.getLogger(__name__)
Data = bytes | memoryview
MAX_MARK_BYTES = 1 << 16
MAX_INDEX_BYTES, MAX_ROW_BYTES = 1 << 20, 1 << 12  # of the index: in all, and more for each utterance
SHARDS = "labels/shards"  # in the cache
_checked: set[tuple[str, int]] = set()  # cached shards that this process has checked: SHA-256 and inode


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
            why, remedy = error.strerror or error, "Mend that, then run the same command again."
            raise HkdError(f"label store {self.path} cannot be written ({why}). {remedy}") from None

    def read(self, name: str, *, limit: int | None = None) -> bytes | None:
        """A file's bytes, `limit` of them at most; None where it is not there."""
        try:
            with (self._root / name).open("rb") as file:
                return file.read(limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HkdError(f"{self.path}/{name} cannot be read ({error.strerror or error}).") from None

    def read_many(self, names: Sequence[str], *, limit: int | None = None) -> dict[str, bytes]:
        """Those of the files that are there, `limit` bytes of each at most."""
        found = ((name, self.read(name, limit=limit)) for name in names)
        return {name: data for name, data in found if data is not None}

    def size(self, name: str) -> int | None:
        """A file's bytes; None where it is not there."""
        path = self._root / name
        return path.stat().st_size if path.is_file() else None

    def names(self, folder: str = "") -> list[str]:
        """The names in a folder, sorted; none where there is no folder. Raises UserError where it is a file."""
        path = self._root / folder
        with self._writing():
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} must be a folder, but is a file. Give another folder.")
            return sorted(item.name for item in path.iterdir()) if path.is_dir() else []

    def publish(self, named: Sequence[tuple[str, Data | Callable[[], bytes]]]) -> None:
        """Write files, over old ones of the same names, in this order."""
        with self._writing():
            write_in_order([(self._root / name, data) for name, data in named])

    def create(self, name: str, data: Data) -> bool:
        """Write a file that is not there yet; False where it is there. On this machine: under the store's lock."""
        missing = self.size(name) is None
        if missing:
            self.publish([(name, data)])
        return missing

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
            remedy = "Give the folder or URL of a label store."
            raise UserError(f"{self.path} must be a label store, but {name} is missing. {remedy}")
        if len(data) > files.MAX_JSON_BYTES:
            raise HkdError(f"{self.path}/{name} must have at most {files.MAX_JSON_BYTES} bytes, but has more.")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            why = str(error)[:100]
            raise HkdError(f"{self.path}/{name} must be JSON, but is not ({why}). Restore it from a copy.") from None

    def load_json(self) -> dict[str, Any]:
        """The value of store.json, of a format that this hkd reads. Raises UserError or HkdError."""
        value = self._json(files.SPEC)
        with placed(str(self.path)):
            check_format(value)
        return dict(value)

    def load_spec(self) -> StoreSpec:
        """Read store.json and inventory.json. Raises UserError or HkdError."""
        value, symbols = self.load_json(), self._json(files.INVENTORY)
        with placed(str(self.path)):
            return StoreSpec.from_json(value, UnitInventory.from_json(symbols, Path(files.INVENTORY)))

    def mark_bytes(self, shard: int) -> bytes | None:
        return self.read(files.mark_name(shard), limit=MAX_MARK_BYTES)

    def mark(self, spec: StoreSpec, shard: int) -> dict[str, Any] | None:
        """A shard's mark; None where there is none that counts (absent, torn, or of another store)."""
        return parse_mark(self.mark_bytes(shard) or b"", spec.digest, shard)

    def done(self, spec: StoreSpec) -> dict[int, dict[str, Any]]:
        """The marks of the shards whose mark and file are there now."""
        there = {f"{files.DATA}/{name}" for name in self.names(files.DATA)}
        shards = [n for n in range(spec.num_shards) if {files.shard_name(spec, n), files.mark_name(n)} <= there]
        data, digest = self.read_many([files.mark_name(n) for n in shards], limit=MAX_MARK_BYTES), spec.digest
        marks = {n: parse_mark(data.get(files.mark_name(n), b""), digest, n) for n in shards}
        return {shard: mark for shard, mark in marks.items() if mark is not None}

    def lost(self, spec: StoreSpec) -> list[int]:
        """The shards without a mark, or whose file has not as many bytes as that says: by name and size alone."""

        marks = ((shard, self.mark(spec, shard)) for shard in range(spec.num_shards))
        return [n for n, mark in marks if mark is None or self.size(files.shard_name(spec, n)) != mark["bytes"]]

    def is_done(self, spec: StoreSpec, shard: int) -> bool:
        """Whether a shard has its mark and its file now."""
        data = self.read(files.mark_name(shard), limit=MAX_MARK_BYTES) or b""
        return parse_mark(data, spec.digest, shard) is not None and self.size(files.shard_name(spec, shard)) is not None

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
        """A shard's file on this machine; of a URL it is fetched, with `fresh` even where it is in the cache. Raises
        LostShardError where it is not there any more or not what its mark says, HkdError where it cannot be fetched."""
        return self._root / files.shard_name(spec, shard)

    def open_shard(self, spec: StoreSpec, shard: int, *, fresh: bool = False) -> ShardFile:
        """Open a shard. Raises DamagedShardError, and as `shard_file`."""
        return backend_of(spec).open_shard(self.shard_file(spec, shard, fresh=fresh), spec, shard)


class RemoteStoreFolder(Remote, StoreFolder):
    """A folder at a URL. `mark` and `load_spec` give what was there at their first call; all else is read as it is."""

    def __init__(self, url: str) -> None:
        Remote.__init__(self, url)
        self.path = self.url
        self._seen: dict[str, bytes] = {}  # store.json, the inventory, marks
        self._had: set[int] = set()  # shards that were in the cache before, for this process
        self._said = False  # that one was fetched again

    def publish(self, named: Sequence[tuple[str, Data | Callable[[], bytes]]]) -> None:
        for name, data in named:
            self.write(name, data() if callable(data) else data)

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
            names = [files.mark_name(shard) for shard in range(spec.num_shards)]
            self._seen |= self.read_many(names, limit=MAX_MARK_BYTES)
        return spec

    def mark_bytes(self, shard: int) -> bytes | None:
        return self._seen.get(files.mark_name(shard))

    def lost(self, spec: StoreSpec) -> list[int]:
        """The shards without a mark; whether a file is whole is seen when it is fetched."""
        return [shard for shard in range(spec.num_shards) if self.mark(spec, shard) is None]

    def index(self, spec: StoreSpec) -> pa.Table | None:
        data = self.read(files.INDEX, limit=MAX_INDEX_BYTES + MAX_ROW_BYTES * spec.num_utterances)
        return None if data is None else parse_index(pa.py_buffer(data), spec)

    def shard_file(self, spec: StoreSpec, shard: int, *, fresh: bool = False) -> Path:
        mark, name = self.mark(spec, shard), files.shard_name(spec, shard)
        if mark is None:
            sentence = f"shard {shard} of label store {self.path} is missing. Run the command that writes it again."
            raise LostShardError("missing", sentence)

        def fits(path: Path) -> bool:
            status = path.stat()
            if status.st_size != mark["bytes"] or digest_of_file(path) != mark["sha256"]:
                return False
            _checked.add((mark["sha256"], status.st_ino))
            return True

        def is_whole(path: Path) -> bool:
            if (mark["sha256"], path.stat().st_ino) in _checked or fits(path):
                return True
            logger.warning("%s/%s: its copy in the cache, %s, is damaged. It is fetched again.", self.path, name, path)
            return False

        def fetch(part: Path) -> None:
            if shard in self._had and not fresh and not self._said:
                self._said = True
                remedy = "Where the cache is too small for the stores, give HKD_CACHE_BYTES."
                said = "%s/%s is not in the cache any more and is fetched again, as others may be. %s"
                logger.warning(said, self.path, name, remedy)
            for _ in range(2):
                try:
                    self.fetch(name, part, limit=mark["bytes"])
                except FileNotFoundError:
                    sentence = f"{self.path}/{name} is missing, though its mark is there."
                    raise LostShardError("missing", sentence) from None
                except TooLargeError:
                    continue
                if fits(part):
                    return
            rule = f"{self.path}/{name} must have the SHA-256 {mark['sha256']}"
            raise LostShardError("flipped", f"{rule}, but came with another, twice. Run `hkd labels verify` on it.")

        path = cached(SHARDS, mark["sha256"] + files.SUFFIXES[spec.backend], fetch, is_whole=is_whole, fresh=fresh)
        self._had.add(shard)
        return path

    def open_shard(self, spec: StoreSpec, shard: int, *, fresh: bool = False) -> ShardFile:
        for _ in range(2):  # the copy may have been dropped from the cache just now, or damaged since it was checked
            try:
                return super().open_shard(spec, shard, fresh=fresh)
            except DamagedShardError as error:
                logger.warning("%s It is fetched again.", str(error).partition(" Run ")[0])
                fresh = True
        return super().open_shard(spec, shard, fresh=True)


def keep_shard(data: Data, sha256: str, suffix: str) -> None:
    """Put a shard that was just written at a URL into the cache, for this machine's readers. Failing is harmless."""
    with contextlib.suppress(OSError, HkdError):
        cached(SHARDS, sha256 + suffix, lambda part: part.write_bytes(data))


def store_folder(place: Path | str) -> StoreFolder:
    where = location(place) if isinstance(place, str) else place
    return RemoteStoreFolder(where) if isinstance(where, str) else StoreFolder(where)
