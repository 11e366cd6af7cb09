"""Checking a store: what is missing, damaged, foreign or torn; and what can be repaired without a teacher."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc

from hkd.errors import HkdError
from hkd.files import digest_of, digest_of_file
from hkd.labels import format as files
from hkd.labels.codec import decode_block
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
    """What `repair` did, and the shards that must be dumped again (their marks are gone, so that the dump's resume
    writes them)."""

    done: list[str] = field(default_factory=list)
    dump_again: list[int] = field(default_factory=list)


def verify(path: Path | str, *, deep: bool = True, progress: Progress = no_progress) -> list[Problem]:
    """All problems of a store; none where it is as it was written. `deep` also decodes every block.

    Raises UserError or HkdError where store.json or the inventory cannot be read.
    """
    folder = store_folder(path)
    spec = folder.load_spec()
    plan = f"is not in the plan of {spec.num_shards} shards"
    problems = [Problem(kind="foreign", text=f"{name} {plan}") for name in _strangers(folder, spec)]
    for shard in range(spec.num_shards):
        if fault := _fault_of(folder, spec, shard, deep):
            problems.append(Problem(kind=fault[0], text=f"shard {shard}: {fault[1]}", shard=shard))
        progress(shard + 1, spec.num_shards)
    if not problems and (fault := _fault_of_index(folder, spec)):
        problems.append(Problem(kind=fault[0], text=fault[1]))
    return problems


def _strangers(folder: StoreFolder, spec: StoreSpec) -> list[str]:
    numbers = range(spec.num_shards)
    planned = {*(files.shard_name(spec, number) for number in numbers), *map(files.mark_name, numbers)}
    names = (f"{files.DATA}/{name}" for name in folder.names(files.DATA))
    return [name for name in names if name not in planned and not name.endswith(".tmp")]


def _fault_of(folder: StoreFolder, spec: StoreSpec, shard: int, deep: bool) -> tuple[str, str] | None:
    """What is wrong with a shard: kind and text of a problem."""
    mark = folder.mark(spec, shard)
    if mark is None:
        data = folder.mark_bytes(shard)
        if data is None:
            return "missing", f"its mark {shard:05d}.json is missing"
        with suppress(ValueError, RecursionError):
            value = json.loads(data)
            if isinstance(value, dict) and value.get("store") != spec.digest:
                return "foreign", "it was written for another store"
        return "torn", "its mark is torn"
    try:
        path = folder.shard_file(spec, shard, fresh=True)
    except LostShardError as error:
        return error.kind, str(error)
    # what is fetched has just been checked against its mark, and may be dropped at any time
    if isinstance(folder.path, Path):
        if not path.is_file():
            return "missing", f"{path.name} is missing"
        sha256 = digest_of_file(path)
        if path.stat().st_size != mark["bytes"] or sha256 != mark["sha256"]:
            return "flipped", f"its SHA-256 must be {mark['sha256']}, but is {sha256}"
    try:
        file = folder.open_shard(spec, shard)
        counts = len(file.utterances.length_B), int(file.utterances.length_B.sum())
        if counts != (mark["utterances"], mark["positions"]) or counts[0] != len(spec.rows(shard)):
            return (
                "damaged",
                f"it holds {counts[0]} utterances with {counts[1]} positions, its mark or the plan says otherwise",
            )
        for block in range(len(file.cuts) - 1 if deep else 0):
            decode_block(spec, file, block)
    except HkdError as error:
        return "foreign" if "another store" in str(error) else "damaged", str(error)
    return None


def _fault_of_index(folder: StoreFolder, spec: StoreSpec) -> tuple[str, str] | None:
    """What is wrong with the index, where all shards are well."""
    index = folder.index(spec)
    if index is None:
        return "index", f"{files.INDEX} is missing or not that of this store"
    for shard, made in enumerate(shard_tables(folder, spec)):
        if not index.slice(spec.rows(shard).start, len(made)).equals(made):
            return "index", f"{files.INDEX} does not say what the shards hold"
    ids = index["id"]
    in_order = pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py()
    if not in_order or digest_of(name.as_py() for name in ids) != spec.ids_digest:
        return "damaged", "the utterances of the shards are not those that the store was planned for"
    return None


def repair(path: Path | str, problems: list[Problem], *, dry_run: bool = False) -> Repair:
    """Remove foreign files, and broken shards with their marks; write the index again where all shards are there.

    `path`: a folder, or a URL. `dry_run`: only say what would be done.
    """
    folder = store_folder(path)
    spec = folder.load_spec()
    result = Repair()

    def remove(name: str) -> None:
        if folder.size(name) is not None:
            result.done.append(f"{'would remove' if dry_run else 'removed'} {name}")
            if not dry_run:
                folder.remove(name)

    for problem in problems:
        if problem.shard is not None:
            remove(files.mark_name(problem.shard))
            remove(files.shard_name(spec, problem.shard))
            result.dump_again.append(problem.shard)
    for name in _strangers(folder, spec):
        if files.is_shard_or_mark(name):
            remove(name)
    if result.dump_again:
        remove(files.INDEX)
    else:
        result.done.append(f"{'would write' if dry_run else 'wrote'} {files.INDEX}")
        if not dry_run:
            folder.publish([(files.INDEX, index_bytes(index_table(folder, spec)))])
    return result
