"""A folder on any file system that fsspec knows (s3://, gs://, https://, memory://, hf://datasets/ORG/NAME ...).

- Credentials and endpoints come from the environment and fsspec's own configuration (AWS_*, HF_TOKEN ...).
- Every failure of the far side is one sentence: an HkdError, whatever its package raised.
- Audio is copied to this machine once (`local_copy`) and never updated: a file that changes needs another name.
- An object appears whole or not at all, as object stores promise. `create` is exclusive where the file system can.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hkd.errors import HkdError, MissingPackageError, UserError, first_line, one_line
from hkd.files import digest_of, lock, temporary

WORKERS = 16  # requests at once
EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}
LOCAL = ("file://", "local://")
HUB = "hf://"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
BOUND_BYTES = 20 << 30  # $HKD_CACHE_BYTES
IN_USE_S = 600.0  # copies of sound that were used so lately are left, whatever the bound
LEFTOVER_S = 86400.0  # after which a temporary file is what a killed process left
_fetched_bytes = 0  # by this process since it last looked at the bound


class TooLargeError(HkdError):
    """A file elsewhere that has more bytes than it may have."""


def location(text: str) -> Path | str:
    """What a user wrote: a URL stays as it is, anything else (and file://) is a path."""
    for scheme in LOCAL:
        if text.startswith(scheme):
            return Path(text.removeprefix(scheme))
    return text if "://" in text else Path(text)


def same_place(one: Path | str, other: Path | str) -> bool:
    """Whether two paths or URLs are one place; links are followed."""
    places = (location(str(place)) for place in (one, other))
    here, there = (place.resolve() if isinstance(place, Path) else place.rstrip("/") for place in places)
    return here == there


def hub_parts(url: str) -> tuple[str, str | None, str]:
    """hf://datasets/ORG/NAME[@REVISION][/FOLDER] → ("ORG/NAME", revision, folder). Raises UserError."""
    from huggingface_hub import parse_hf_uri

    wrong = f"URL must be like hf://datasets/ORG/NAME, but is '{url}' instead"
    try:
        found = parse_hf_uri(url)
    except ValueError as error:
        raise UserError(f"{wrong} ({first_line(error)}).") from None
    if found.type != "dataset":
        raise UserError(f"{wrong}.")
    return found.id, found.revision, found.path_in_repo.strip("/")


class Remote:
    """A folder at a URL. Raises UserError where fsspec does not know its file system."""

    def __init__(self, url: str) -> None:
        if "://" not in url:
            raise UserError(f"URL must be like s3://bucket/name, but is '{url}' instead.")
        self.url = url.rstrip("/")
        self._system()

    def _system(self) -> tuple[Any, str]:
        """The file system and the path on it. Asked for at each call, since connections do not survive a fork."""
        import fsspec

        protocol, rule = self.url.partition("://")[0], "URL must name a file system"
        try:
            system, path = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            if protocol in EXTRAS:
                raise MissingPackageError(*EXTRAS[protocol], f"{protocol}://") from None
            raise UserError(f"{rule} whose package is installed, but {self.url}: {error}.") from None
        except ValueError as error:
            raise UserError(f"{rule} that fsspec knows, but {self.url} does not ({error}).") from None
        return system, path.rstrip("/")

    def __str__(self) -> str:
        return self.url

    @contextmanager
    def _reach(self, name: str, verb: str) -> Iterator[tuple[Any, str]]:
        """The file system and a file's path. Exceptions raised inside become a sentence, except FileNotFoundError,
        FileExistsError, and the OSError of a fetch for which this machine has no room."""
        system, path = self._system()
        try:
            yield system, f"{path}/{name}" if name else path
        except (FileNotFoundError, FileExistsError, HkdError):
            raise
        except Exception as error:  # every file system has its own
            if verb == "read" and isinstance(error, OSError) and error.errno in NO_ROOM:
                raise  # on this machine
            place, remedy = f"{self.url}/{name}".rstrip("/"), "Mend that, then run the same command again."
            raise HkdError(f"{place} cannot be {verb} ({one_line(error)}). {remedy}") from None

    def read(self, name: str, *, limit: int | None = None) -> bytes | None:
        """A file's bytes, `limit` of them at most; None where it is not there."""
        return self.read_many([name], limit=limit).get(name)

    def read_many(self, names: Sequence[str], *, limit: int | None = None) -> dict[str, bytes]:
        """Those of the files that are there, as they are now."""
        self._system()[0].invalidate_cache()

        def read(name: str) -> bytes | None:
            with contextlib.suppress(FileNotFoundError), self._reach(name, "read") as (system, path):
                return bytes(system.cat_file(path) if limit is None else system.cat_file(path, start=0, end=limit))
            return None

        with ThreadPoolExecutor(WORKERS) as pool:
            found = [read(names[0])] if len(names) == 1 else list(pool.map(read, names))
        return {name: data for name, data in zip(names, found, strict=True) if data is not None}

    def size(self, name: str) -> int | None:
        """A file's bytes; None where it is not there."""
        with contextlib.suppress(FileNotFoundError), self._reach(name, "read") as (system, path):
            system.invalidate_cache()
            return int(system.info(path)["size"])
        return None

    def names(self, folder: str = "") -> list[str]:
        """What lies right in a folder, sorted; nothing where there is no such folder."""
        absent = (FileNotFoundError, NotADirectoryError)
        with contextlib.suppress(*absent), self._reach(folder, "listed") as (system, path):
            system.invalidate_cache()
            found = system.ls(path, detail=False)
            items = {str(item).strip("/") for item in found} - {path.strip("/")}  # some list the folder itself
            return sorted({item.rpartition("/")[2] for item in items} - {""})
        return []

    def fetch(self, name: str, target: Path, *, limit: int | None = None) -> None:
        """Copy a file to this machine. Raises FileNotFoundError, TooLargeError for one of more than `limit` bytes,
        OSError where there is no room."""
        with self._reach(name, "read") as (system, path):
            if limit is not None:
                system.invalidate_cache()
                size = system.info(path)["size"]  # None where the server does not say
                if size is not None and size > limit:
                    raise TooLargeError(f"{self.url}/{name} must have at most {limit} bytes, but has {size} instead.")
            system.get_file(path, str(target))

    def send(self, name: str, source: Path) -> None:
        """Copy a file from this machine over what is there, in pieces where the file system does so."""
        self._put(name, lambda system, path: system.put_file(str(source), path))

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole file over what is there."""
        self._put(name, lambda system, path: system.pipe_file(path, bytes(data)))

    def create(self, name: str, data: bytes | memoryview) -> bool:
        """Write a file that is not there yet; False where it is. Of two writers at once one wins (see the module)."""
        try:
            self._put(name, lambda system, path: system.pipe_file(path, bytes(data), mode="create"))
            return True
        except FileExistsError:
            return False
        except HkdError:  # servers have other words for it, too
            if self.size(name) is None:
                raise
            return False

    def _put(self, name: str, action: Callable[[Any, str], None]) -> None:
        """Makes the folder where the file system has folders; never a bucket."""
        with self._reach(name, "written") as (system, path):
            try:
                action(system, path)
            except FileNotFoundError:
                bucket = path.partition("/")[0]
                if bucket and not system.exists(bucket):
                    raise HkdError(f"{self.url} cannot be written: {bucket} is not there. Make it first.") from None
                system.makedirs(path.rpartition("/")[0], exist_ok=True)
                action(system, path)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._reach(name, "written") as (system, path):
            system.rm_file(path)


def default_cache() -> Path:
    """Where downloads are kept: $HKD_CACHE, else ~/.cache/hkd."""
    given = os.environ.get("HKD_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "hkd"


def bound_bytes() -> int:
    """How large a cache may grow: $HKD_CACHE_BYTES, else 20 GiB. Raises UserError where that is no number."""
    given = os.environ.get("HKD_CACHE_BYTES", "")
    if not given:
        return BOUND_BYTES
    try:
        return int(float(given))
    except (ValueError, OverflowError):
        raise UserError(f"HKD_CACHE_BYTES must be a number of bytes, but is '{given}' instead.") from None


def cached(
    folder: str, name: str, fetch: Callable[[Path], object], *, is_whole: Callable[[Path], bool] = lambda _: True,
    fresh: bool = False, in_use_s: float = 0.0,
) -> Path:  # fmt: skip
    """The file `name` in a folder of the cache. `fetch` writes it where it is not there or not whole (or with `fresh`).

    Over its bound the folder drops what was used longest ago, but nothing that was used in the last `in_use_s` seconds.
    Raises HkdError where the cache cannot be used, and what `fetch` raises.
    """
    root = default_cache().absolute() / folder
    path = root / name
    try:
        if not fresh and _is_there(path, is_whole):
            return path
        with lock(root.with_name(f"{root.name}.locks") / f"{name}.lock", wait=True):
            if not fresh and _is_there(path, is_whole):  # another process was faster
                return path
            root.mkdir(parents=True, exist_ok=True)
            part = temporary(path)
            try:
                fetch(part)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        _use(path)
        _shrink(root, bound_bytes(), keep=path, in_use_s=in_use_s)
    except OSError as error:
        remedy = "Mend that, or name another folder in HKD_CACHE."
        raise HkdError(f"the cache {root} cannot be used ({error.strerror or error}). {remedy}") from None
    return path


def _is_there(path: Path, is_whole: Callable[[Path], bool]) -> bool:
    """Whether a cached file is there and whole; marks it as used."""
    with contextlib.suppress(FileNotFoundError):
        if is_whole(path):
            _use(path)
            return True
        path.unlink()
    return False


def _use(path: Path) -> None:
    """Mark as used now, finer than the kernel's own clock for files."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def local_copy(url: str) -> Path:
    """The copy of a file at a URL, in files/ of the cache; fetched when it is first asked for.

    Raises UserError where there is no such file, HkdError where it cannot be fetched or kept.
    """

    def fetch(part: Path) -> None:
        try:
            Remote(url).fetch("", part)
        except FileNotFoundError:
            raise UserError(f"{url} must be there, but is not.") from None

    return cached("files", digest_of([url])[:32] + Path(url.partition("?")[0]).suffix, fetch, in_use_s=IN_USE_S)


def _shrink(folder: Path, bound: int, *, keep: Path, in_use_s: float) -> None:
    """Remove what was used longest ago until the rest is within the bound, and what killed processes left."""
    global _fetched_bytes
    _fetched_bytes += keep.stat().st_size
    # looking through a large cache for each small file would take too long
    if in_use_s and _fetched_bytes <= bound // 100:
        return
    _fetched_bytes = 0
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # gone by now
            status = path.stat()
            if not path.name.startswith(".") or time.time() - status.st_mtime > LEFTOVER_S:
                found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        if total <= bound or used / 1e9 > time.time() - in_use_s:
            break
        if path != keep:
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
