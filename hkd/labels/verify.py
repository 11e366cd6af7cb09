"""Checking a store: what is missing, damaged, foreign or torn; and what can be repaired without a teacher."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from hkd.errors import HkdError
from hkd.files import digest_of, digest_of_file
from hkd.labels import format as files
from hkd.labels.codec import decode
from hkd.labels.folder import LostShardError, StoreFolder, store_folder
from hkd.labels.format import StoreSpec, index_bytes
from hkd.labels.store import index_table, shard_tables
from hkd.progress import Progress, no_progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong: kind = missing | torn | flipped | foreign | damaged | index; `shard` where it concerns one."""

    kind: str
    text: str
    shard: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What `repair` did, and the shards that must be dumped again (their marks are gone, so that the dump's resume writes them)."""

    done: list[str] = field(default_factory=list)
    dump_again: list[int] = field(default_factory=list)


def verify(path: Path | str, *, deep: bool = True, progress: Progress = no_progress) -> list[Problem]:
    """All problems of a store; none means that it is as it was written. `deep` also decodes every block.

    Raises UserError or HkdError where store.json or the inventory cannot be read.
    """
    folder = store_folder(path)
    spec = folder.load_spec()
    problems = [
        Problem(kind="foreign", text=f"data/{name} is not in the plan of {spec.plan.num_shards} shards")
        for name in _strangers(folder, spec)
    ]
    for shard in range(spec.plan.num_shards):
        problems += _check_shard(folder, spec, shard, deep)
        progress(shard + 1, spec.plan.num_shards)
    if not problems:
        problems += _check_index(folder, spec)
    return problems


def _strangers(folder: StoreFolder, spec: StoreSpec) -> list[str]:
    suffix, num_shards = files.SUFFIXES[spec.backend], spec.plan.num_shards

    def planned(name: str) -> bool:
        number = files.shard_number(name)
        return number is not None and number < num_shards and name in (f"{number:05d}{suffix}", f"{number:05d}.json")

    return [name for name in folder.names(files.DATA) if not planned(name) and not name.endswith(".tmp")]


def _check_shard(folder: StoreFolder, spec: StoreSpec, shard: int, deep: bool) -> list[Problem]:
    def problem(kind: str, text: str) -> list[Problem]:
        return [Problem(kind=kind, text=f"shard {shard}: {text}", shard=shard)]

    mark = folder.mark(spec, shard)
    if mark is None:
        data = folder.mark_bytes(shard)
        if data is None:
            return problem("missing", f"its mark {shard:05d}.json is missing")
        try:
            foreign = isinstance(value := json.loads(data), dict) and value.get("store") != spec.digest
        except (ValueError, RecursionError):
            foreign = False
        return problem("foreign", "it was written for another store") if foreign else problem("torn", "its mark is torn")
    try:
        path = folder.shard_file(spec, shard, fresh=True)
    except LostShardError as error:
        return problem(error.kind, str(error))
    if isinstance(
        folder.path, Path
    ):  # one that was fetched has been held against its mark right now, and may be dropped at any time
        if not path.is_file():
            return problem("missing", f"{path.name} is missing")
        sha256 = digest_of_file(path)
        if path.stat().st_size != mark["bytes"] or sha256 != mark["sha256"]:
            return problem("flipped", f"its SHA-256 must be {mark['sha256']}, but is {sha256}")
    try:
        file_ = folder.open_shard(spec, shard)
        utterances = file_.utterances
        counts = len(utterances.length_B), int(utterances.length_B.sum())
        if counts != (mark["utterances"], mark["positions"]) or counts[0] != len(spec.plan.rows(shard)):
            return problem(
                "damaged", f"it holds {counts[0]} utterances with {counts[1]} positions, its mark or the plan says otherwise"
            )
        offset_B1 = utterances.offset_B1
        for block, (a, b) in enumerate(pairwise(file_.cuts) if deep else ()):
            inner_B1 = offset_B1[a : b + 1] - offset_B1[a]
            decode(spec, file_.planes(block), inner_B1)
    except HkdError as error:
        return problem("foreign" if "another store" in str(error) else "damaged", str(error))
    return []


def _check_index(folder: StoreFolder, spec: StoreSpec) -> list[Problem]:
    """Only asked where all shards are well."""
    index = folder.index(spec)
    if index is None:
        return [Problem(kind="index", text=f"{files.INDEX} is missing or not that of this store")]
    differs, last, in_order = False, "", True

    def ids() -> Iterator[str]:
        nonlocal differs, last, in_order
        for shard, made in enumerate(shard_tables(folder, spec)):
            rows = spec.plan.rows(shard)
            differs = differs or not index.slice(rows.start, len(rows)).equals(made)
            for name in made["id"].to_pylist():
                in_order, last = in_order and last < name, name
                yield name

    digest = digest_of(ids())
    if differs:
        return [Problem(kind="index", text=f"{files.INDEX} does not say what the shards hold")]
    if digest != spec.ids_digest or not in_order:
        return [Problem(kind="damaged", text="the utterances of the shards are not those that the store was planned for")]
    return []


def repair(path: Path | str, problems: list[Problem], *, dry_run: bool = False) -> Repair:
    """Take away what is wrong: strangers and broken shards with their marks go; the index is made again where all shards are there.

    `path`: a folder, or a URL. `dry_run`: only say what would be done.
    """
    folder = store_folder(path)
    spec = folder.load_spec()
    result = Repair()

    def remove(name: str) -> None:
        if folder.exists(name):
            result.done.append(f"{'would remove' if dry_run else 'removed'} {name}")
            if not dry_run:
                folder.remove(name)

    for problem in problems:
        if problem.shard is not None:
            remove(files.mark_name(problem.shard))
            remove(files.shard_name(spec, problem.shard))
            result.dump_again.append(problem.shard)
    for name in _strangers(folder, spec):
        if files.shard_number(name) is not None:
            remove(f"{files.DATA}/{name}")
    if result.dump_again:
        remove(files.INDEX)
    else:
        result.done.append(f"{'would write' if dry_run else 'wrote'} {files.INDEX}")
        if not dry_run:
            folder.publish([(files.INDEX, index_bytes(index_table(folder, spec)))])
    return result
