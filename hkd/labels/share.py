"""Copying whole stores to and from fsspec URLs (s3://, memory://, file://, hf://datasets/ORG/NAME ...).

- Only names that the plan gives are copied; nothing in a remote store can name another path.
- `push` writes store.json last, so that a store copied by halves is none; what is there already is left. To the Hugging Face Hub it is
  one commit.
- `pull` fetches into a folder beside the destination, checks every shard's SHA-256, fetches damaged ones a second time, and renames the
  folder when all is well.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from hkd.errors import HkdError, UserError
from hkd.labels import folder as files
from hkd.labels import hub
from hkd.labels.cache import MAX_INDEX_BYTES, MAX_MARK_BYTES, MAX_ROW_BYTES, origin
from hkd.labels.schema import StoreSpec
from hkd.labels.verify import Repair, repair, verify
from hkd.progress import Progress, no_progress
from hkd.remote import Remote, location

log = logging.getLogger(__name__)

OPTIONAL = (files.INDEX, files.REPORT, files.CARD)


def _pairs(spec: StoreSpec) -> Iterator[tuple[str, str]]:
    """The names of every shard and of its mark."""
    for shard in range(spec.plan.num_shards):
        yield files.shard_path(Path(), spec, shard).as_posix(), files.mark_path(Path(), shard).as_posix()


def _is_of_a_store(name: str) -> bool:
    """Whether a file is one that a store writes, and not somebody's card."""
    folder, _, file = name.rpartition("/")
    return name in (files.INDEX, files.REPORT) or (folder == files.DATA and files.shard_number(file) is not None)


def push(store: Path | str, url: str, *, overwrite: bool = False, progress: Progress = no_progress) -> int:
    """Copy a complete, verified store to a URL; returns the bytes sent.

    Raises UserError where another store lies there, HkdError where the store has problems or the remote fails.
    """
    place = location(str(store))
    if isinstance(place, str) or origin(place) is not None:
        far = place if isinstance(place, str) else origin(place)
        raise UserError(f"STORE must lie on this machine to be pushed, but lies at {far}. `hkd labels pull` it first.")
    root, spec = place, files.load_spec(place)
    problems = verify(root, deep=False)
    if problems:
        raise HkdError(f"label store {root} must be whole to be pushed, but: {problems[0].text}. Run `hkd labels verify`.")
    remote = Remote(url)
    there = remote.read(files.SPEC)
    if there is not None and there != (root / files.SPEC).read_bytes() and not overwrite:
        raise UserError(f"{url} must be empty or hold this store, but holds another. Give another URL, or --overwrite.")
    others = [name for name in OPTIONAL if (root / name).is_file()]
    if hub.is_hub(url):
        names = [name for pair in _pairs(spec) for name in pair]
        return hub.push(root, url, [*names, *others, files.INVENTORY, files.SPEC], _is_of_a_store)
    if there is not None and overwrite:
        remote.remove(files.SPEC)
        planned = {name for pair in _pairs(spec) for name in pair} | {*others}
        for name in (*OPTIONAL, *(f"{files.DATA}/{name}" for name in remote.names(files.DATA))):
            if name not in planned and _is_of_a_store(name):
                remote.remove(name)
    sent = 0
    pairs = list(_pairs(spec))
    for done, (shard, mark) in enumerate(pairs, 1):
        if overwrite or remote.read(mark) != (root / mark).read_bytes() or remote.size(shard) != (root / shard).stat().st_size:
            sent += _send(remote, root, shard) + _send(remote, root, mark)
        progress(done, len(pairs))
    for name in (*others, files.INVENTORY, files.SPEC):
        if overwrite or remote.read(name) != (root / name).read_bytes():
            sent += _send(remote, root, name)
    return sent


def _send(remote: Remote, root: Path, name: str) -> int:
    remote.send(name, root / name)
    return (root / name).stat().st_size


def pull(url: str, out: Path | str, *, progress: Progress = no_progress) -> StoreSpec:
    """Fetch a store from a URL into a new folder, checked. A pull that was broken off goes on where it was.

    Raises UserError where `out` is there already or the URL holds no store, HkdError where the remote fails or its store has problems.
    """
    target = Path(out)
    if target.exists():
        raise UserError(f"OUT must not be there yet, but {target} is. Remove it, or give another folder.")
    remote = Remote(url)
    part = target.parent / f".{target.name}.pull"
    if remote.size(files.SPEC) is None:
        raise UserError(f"{url} must be a label store, but has no {files.SPEC}.")
    try:
        spec = _fetch_all(remote, part, progress)
        problems = verify(part)
        broken = sorted({problem.shard for problem in problems if problem.shard is not None})
        if broken:
            named = ", ".join(map(str, broken[:5])) + (" ..." if len(broken) > 5 else "")
            log.warning(
                "%s: %d of %d shards came damaged (%s) and are fetched again.", url, len(broken), spec.plan.num_shards, named
            )
            repair(part, problems)
            _fetch_all(remote, part, progress)
            problems = verify(part)
        repaired = repair(part, problems) if problems else Repair()
        if repaired.dump_again:
            good = spec.plan.num_shards - len(repaired.dump_again)
            raise HkdError(
                f"{url} holds a store with problems: {problems[0].text}. The same command keeps the {good} shards that came well "
                f"and fetches the others."
            )
        if any(problem.kind == "damaged" for problem in problems):
            shutil.rmtree(part)
            raise HkdError(f"{url} holds a store with problems: {problems[0].text}. Nothing was written.")
        part.rename(target)
    except OSError as error:
        raise HkdError(
            f"{target} cannot be written ({error.strerror or error}). Run the same command again: it goes on where it was."
        ) from None
    return spec


def _fetch_all(remote: Remote, part: Path, progress: Progress) -> StoreSpec:
    (part / files.DATA).mkdir(parents=True, exist_ok=True)
    for name in (files.SPEC, files.INVENTORY):
        _fetch(remote, part, name, files.MAX_JSON_BYTES)
    spec = files.load_spec(part)
    if hub.is_hub(remote.url):
        hub.pull(remote.url, part, [*(name for pair in _pairs(spec) for name in pair), *OPTIONAL])
        return spec
    pairs = list(_pairs(spec))
    for done, (shard, mark) in enumerate(pairs, 1):
        _fetch(remote, part, mark, MAX_MARK_BYTES)
        found = files.parse_mark((part / mark).read_bytes(), spec.digest, done - 1)
        if found is None:
            raise HkdError(
                f"{remote}/{mark} must be the mark of a shard of this store, but is not. Run `hkd labels verify` on it."
            )
        if not (part / shard).is_file() or (part / shard).stat().st_size != found["bytes"]:
            _fetch(remote, part, shard, found["bytes"])
        progress(done, len(pairs))
    for name in OPTIONAL:
        if remote.size(name) is not None:
            _fetch(remote, part, name, MAX_INDEX_BYTES + MAX_ROW_BYTES * spec.num_utterances)
    return spec


def _fetch(remote: Remote, part: Path, name: str, limit: int) -> None:
    try:
        remote.fetch(name, part / name, limit=limit)
    except FileNotFoundError:
        raise HkdError(f"{remote} is not complete: {name} is missing.") from None
