"""Copying whole stores to and from fsspec URLs (s3://, memory://, file://, hf://datasets/ORG/NAME ...).

- Only names that the plan gives are copied; nothing in a remote store can name another path.
- `push` writes store.json last, so that a store copied by halves is none; what is there already with the same size is left.
- `pull` fetches into a folder beside the destination, checks every shard's SHA-256, and renames it when all is well.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from hkd.errors import HkdError, UserError
from hkd.labels import folder as files
from hkd.labels.schema import StoreSpec
from hkd.labels.verify import verify
from hkd.progress import Progress, no_progress

OPTIONAL = (files.INDEX, files.REPORT, files.CARD)


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it. Raises UserError where its protocol or package is not known."""
    if "://" not in url:
        raise UserError(f"URL must be like s3://bucket/name, but is '{url}' instead.")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"URL must name a file system that fsspec knows, but {url} does not ({error}).") from None
    return system, path.rstrip("/")


def _shards(root: Path, spec: StoreSpec) -> Iterator[str]:
    for shard in range(spec.plan.num_shards):
        yield str(files.shard_path(root, spec, shard).relative_to(root))
        yield str(files.mark_path(root, shard).relative_to(root))


def push(store: Path | str, url: str, *, overwrite: bool = False, progress: Progress = no_progress) -> int:
    """Copy a complete, verified store to a URL; returns the bytes sent.

    Raises UserError where another store lies there, HkdError where the store has problems or the remote fails.
    """
    root = Path(store)
    spec = files.load_spec(root)
    problems = verify(root, deep=False)
    if problems:
        raise HkdError(f"label store {root} must be whole to be pushed, but: {problems[0].text}. Run `hkd labels verify`.")
    system, path = _open(url)
    names = [*_shards(root, spec), *(name for name in OPTIONAL if (root / name).is_file()), files.INVENTORY, files.SPEC]
    sent = 0
    try:
        if system.exists(f"{path}/{files.SPEC}") and system.cat_file(f"{path}/{files.SPEC}") != (root / files.SPEC).read_bytes():
            if not overwrite:
                raise UserError(f"{url} must be empty or hold this store, but holds another. Give another URL, or --overwrite.")
            system.rm_file(f"{path}/{files.SPEC}")
        for done, name in enumerate(names, 1):
            data = (root / name).read_bytes()
            target = f"{path}/{name}"
            if overwrite or not system.exists(target) or system.cat_file(target) != data:
                system.makedirs(target.rpartition("/")[0], exist_ok=True)
                system.pipe_file(target, data)
                sent += len(data)
            progress(done, len(names))
    except OSError as error:
        raise HkdError(f"{url} cannot be written ({error}). Run the same command again: it goes on where it was.") from None
    return sent


def pull(url: str, out: Path | str, *, progress: Progress = no_progress) -> StoreSpec:
    """Fetch a store from a URL into a new folder, checked. A pull that was broken off goes on where it was.

    Raises UserError where `out` is there already or the URL holds no store, HkdError where the remote fails or its store has problems.
    """
    target = Path(out)
    if target.exists():
        raise UserError(f"OUT must not be there yet, but {target} is. Remove it, or give another folder.")
    system, path = _open(url)
    part = target.parent / f".{target.name}.pull"
    try:
        if not system.exists(f"{path}/{files.SPEC}"):
            raise UserError(f"{url} must be a label store, but has no {files.SPEC}.")
        (part / files.DATA).mkdir(parents=True, exist_ok=True)
        for name in (files.SPEC, files.INVENTORY):
            if system.size(f"{path}/{name}") > files.MAX_JSON_BYTES:
                raise HkdError(f"{url}/{name} must have at most {files.MAX_JSON_BYTES} bytes, but has more.")
            system.get_file(f"{path}/{name}", str(part / name))
        spec = files.load_spec(part)
        names = [*_shards(part, spec), *OPTIONAL]
        for done, name in enumerate(names, 1):
            local = part / name
            if not local.is_file() or local.stat().st_size != system.size(f"{path}/{name}"):
                if system.exists(f"{path}/{name}"):
                    system.get_file(f"{path}/{name}", str(local))
                elif name not in OPTIONAL:
                    raise HkdError(f"{url} is not complete: {name} is missing.")
            progress(done, len(names))
    except OSError as error:
        raise HkdError(f"{url} cannot be read ({error}). Run the same command again: it goes on where it was.") from None
    problems = verify(part)
    if any(problem.kind == "index" for problem in problems) and len(problems) == 1:
        files.write_index(part, spec)
        problems = []
    if problems:
        shutil.rmtree(part)
        raise HkdError(f"{url} holds a store with problems: {problems[0].text}. Nothing was written.")
    part.rename(target)
    return spec
