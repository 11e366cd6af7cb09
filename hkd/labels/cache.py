"""Remote stores on this machine: a mirror folder a store, and its shards as they are asked for, in a cache of bounded size.

- A mirror is a store's folder without data files: store.json, the inventory, every shard's mark, the index, and `origin.json`, which says
  where the rest lies. So whatever reads stores reads mirrors; who opens a shard of one (`open_shard`) has it fetched.
- A mirror is named by the digest of its store.json and marks, and never changes: a store that was written anew at its URL is another
  mirror, and a run that has begun goes on with the shards that it began with, or says that they are gone.
- Shards are named by their SHA-256, which is checked when one is fetched and when a process first uses it. They appear whole or not at all.
- Over its bound the cache drops what was used longest ago. What another process reads stays readable: a file that is mapped or open
  outlives its name, a mirror in use is locked.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from hkd.errors import HkdError, UserError
from hkd.files import digest_of, digest_of_file, write_bytes, write_json
from hkd.labels import folder as files
from hkd.labels.backend import DamagedShardError, ShardFile, backend_of
from hkd.labels.locks import lock
from hkd.labels.schema import StoreSpec
from hkd.remote import Remote, TooLargeError, bound_bytes, default_cache, location

MAX_MARK_BYTES = 1 << 16
MAX_INDEX_BYTES, MAX_ROW_BYTES = 1 << 20, 1 << 12  # of the index: in all, and more for each utterance
ORIGIN = "origin.json"
ATTEMPTS = 3
LEFTOVER_S = 86400.0  # after which a temporary file is what a killed process left
_in_use: dict[Path, int] = {}  # mirrors, by the handles that hold their locks
_checked: dict[Path, int] = {}  # cached shards whose SHA-256 this process has seen, by inode


class LostShardError(HkdError):
    """A shard of a remote store that cannot be had as its mark says. `kind`: missing or flipped."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


def cache_folder() -> Path:
    """Where remote stores are kept: labels/ in $HKD_CACHE, else in ~/.cache/hkd."""
    return default_cache().absolute() / "labels"


def local_folder(store: Path | str) -> Path:
    """A store's folder on this machine: itself, or the mirror of the store at a URL."""
    place = location(store) if isinstance(store, str) else store
    if isinstance(place, str):
        return mirror(place)
    if (place / ORIGIN).is_file():
        _hold(place)
    return place


def mirror(url: str) -> Path:
    """The mirror of the store that lies at a URL now. Raises UserError where there is none, HkdError where it cannot be read."""
    remote = Remote(url)
    try:
        mirrors = cache_folder() / "mirrors"
        mirrors.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=mirrors, prefix=".") as part:
            spec, content = _content(remote, Path(part))
        path = (
            mirrors / digest_of(item for name, data in content.items() if name != files.INVENTORY for item in (name, data))[:32]
        )
        _hold(path)
        for name, data in content.items():
            _keep(path / name, data)
        _fetch_index(remote, path, spec)
    except OSError as error:
        raise _unusable(error) from None
    return path


def _content(remote: Remote, part: Path) -> tuple[StoreSpec, dict[str, bytes]]:
    """The spec, and the small files by name. `part`: an empty folder to look at them in."""
    content = {}
    for name in (files.SPEC, files.INVENTORY):
        data = remote.read(name, limit=files.MAX_JSON_BYTES)
        if data is None:
            raise UserError(f"{remote} must be a label store, but {name} is missing. Give the URL of a label store.")
        (part / name).write_bytes(data)
        content[name] = data
    try:
        spec = files.load_spec(part)
    except HkdError as error:
        raise type(error)(str(error).replace(str(part), str(remote))) from None
    marks = [files.mark_path(Path(), shard).as_posix() for shard in range(spec.plan.num_shards)]
    return spec, {**content, **remote.read_many([*marks, files.REPORT], limit=MAX_MARK_BYTES)}


def _keep(path: Path, data: bytes) -> None:
    """Write what is not there yet, or was torn when the machine went down."""
    try:
        if path.read_bytes() == data:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def _fetch_index(remote: Remote, path: Path, spec: StoreSpec) -> None:
    """Have the index that lies at the URL, if one does."""
    version = remote.version(files.INDEX)
    origin = {"url": remote.url, "index": version}
    if (path / ORIGIN).is_file() and files.load_json(path / ORIGIN) == origin and (path / files.INDEX).is_file() == bool(version):
        return
    with lock(path / files.LOCKS / "index.lock", wait=True):
        if version is None:
            (path / files.INDEX).unlink(missing_ok=True)
        else:
            part = path / f".{files.INDEX}.tmp"
            with contextlib.suppress(FileNotFoundError, TooLargeError):
                remote.fetch(files.INDEX, part, limit=MAX_INDEX_BYTES + MAX_ROW_BYTES * spec.num_utterances)
                if _is_sound(part):
                    part.replace(path / files.INDEX)
                else:  # it is made from the shards instead
                    part.unlink()
        write_json(path / ORIGIN, origin)


def _is_sound(index: Path) -> bool:
    """Whether all that an index points to lies inside it: what comes from afar is not trusted."""
    try:
        pa.ipc.open_file(pa.memory_map(str(index))).read_all().validate(full=True)
        return True
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        return False


def _hold(path: Path) -> None:
    """Keep a mirror from being dropped while this process lives."""
    if path in _in_use:
        return
    while True:
        handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            if os.fstat(handle).st_ino == path.with_suffix(".lock").stat().st_ino:
                break
        except FileNotFoundError:  # dropped in between
            pass
        os.close(handle)
    _in_use[path] = handle
    if path.is_dir():
        _use(path)


def _unusable(error: OSError) -> HkdError:
    return HkdError(
        f"the cache {cache_folder()} cannot be used ({error.strerror or error}). Mend that, or name another folder in HKD_CACHE."
    )


def open_shard(folder: Path, spec: StoreSpec, shard: int) -> ShardFile:
    """Open a shard of a store or of a mirror, where it is fetched first. Raises DamagedShardError, HkdError."""
    backend = backend_of(spec)
    for attempt in range(ATTEMPTS):
        path = shard_file(folder, spec, shard)
        try:
            return backend.open(path, spec, shard)
        except DamagedShardError:
            if path.exists() or attempt + 1 == ATTEMPTS or origin(folder) is None:  # else it was dropped from the cache right now
                raise
    raise AssertionError


def origin(folder: Path) -> str | None:
    """The URL of the store that a mirror stands for; None for any other folder."""
    return str(files.load_json(folder / ORIGIN)["url"]) if (folder / ORIGIN).is_file() else None


def shard_file(folder: Path, spec: StoreSpec, shard: int, *, fresh: bool = False) -> Path:
    """Where a shard's file lies on this machine; for a mirror it is fetched, with `fresh` even where it is in the cache.

    Raises LostShardError where it is not there any more or not what its mark says, HkdError where it cannot be fetched.
    """
    url = origin(folder)
    if url is None:
        return files.shard_path(folder, spec, shard)
    mark = files.load_mark(folder, spec, shard)
    if mark is None:
        raise LostShardError("missing", f"shard {shard} of label store {url} is missing. Run the command that writes it again.")
    name = files.shard_path(Path(), spec, shard).as_posix()
    path = cache_folder() / "shards" / (mark["sha256"] + name[name.index(".") :])
    try:
        if fresh:
            path.unlink(missing_ok=True)
        return _fetch_shard(Remote(url), name, path, mark)
    except OSError as error:
        raise _unusable(error) from None


def _fetch_shard(remote: Remote, name: str, path: Path, mark: dict[str, Any]) -> Path:
    if _is_whole(path, mark):
        return path
    with lock(cache_folder() / "locks" / f"{path.name}.lock", wait=True):
        if _is_whole(path, mark):  # another process was faster
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.tmp")  # over what a killed process left
        for _ in range(2):
            try:
                remote.fetch(name, part, limit=mark["bytes"])
            except FileNotFoundError:
                raise LostShardError("missing", f"{remote}/{name} is missing, though its mark is there.") from None
            except TooLargeError:
                continue
            if part.stat().st_size == mark["bytes"] and digest_of_file(part) == mark["sha256"]:
                _use(part)
                _checked[path] = part.stat().st_ino
                part.replace(path)
                _shrink(keep=path)
                return path
            part.unlink()
    raise LostShardError(
        "flipped",
        f"{remote}/{name} must have the SHA-256 {mark['sha256']}, but came with another, twice. Run `hkd labels verify` on it.",
    )


def _is_whole(path: Path, mark: dict[str, Any]) -> bool:
    """Whether a cached shard is there and right; marks it as used."""
    try:
        status = path.stat()
        if _checked.get(path) != status.st_ino and (status.st_size != mark["bytes"] or digest_of_file(path) != mark["sha256"]):
            path.unlink()
            return False
        _checked[path] = status.st_ino
        _use(path)
        return True
    except FileNotFoundError:
        return False


def _use(path: Path) -> None:
    """Mark as used now, finer than the kernel's own clock for files."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _shrink(keep: Path) -> None:
    """Drop what was used longest ago until the cache is within its bound. One process at a time; the others leave it to that one."""
    root, bound = cache_folder(), bound_bytes()
    with lock(root / "locks" / "shrink.lock", wait=False) as mine:
        if not mine:
            return
        found = []
        for path in (*(root / "shards").iterdir(), *(root / "mirrors").glob("*/")):
            with contextlib.suppress(OSError):  # gone by now, or another user's
                status = path.stat()
                if path.name.startswith(".") and time.time() - status.st_mtime < LEFTOVER_S:
                    continue
                size = status.st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
                found.append((status.st_mtime_ns, size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= bound:
                break
            with contextlib.suppress(OSError):
                if path != keep and _drop(path):
                    total -= size


def _drop(path: Path) -> bool:
    """Remove a shard, or a mirror that no process uses; whether it is gone."""
    if path.is_file():
        path.unlink(missing_ok=True)
        return True
    handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        path.with_suffix(".lock").unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def keep_shard(data: bytes | memoryview, sha256: str, suffix: str) -> None:
    """Put a shard that was just written elsewhere into the cache, for who reads the store here next. Failing is harmless."""
    path = cache_folder() / "shards" / (sha256 + suffix)
    with contextlib.suppress(OSError, HkdError):
        write_bytes(path, bytes(data))
        _shrink(keep=path)
