"""Checking a store: what is missing, damaged, foreign or torn; and what can be repaired without a teacher."""

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from hkd.errors import HkdError
from hkd.labels import folder as files
from hkd.labels.backend import backend_of
from hkd.labels.codec import decode
from hkd.labels.schema import StoreSpec
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
    root = Path(path)
    spec = files.load_spec(root)
    problems = [
        Problem(kind="foreign", text=f"data/{name} is not in the plan of {spec.plan.num_shards} shards")
        for name in _strangers(root, spec)
    ]
    for shard in range(spec.plan.num_shards):
        problems += _check_shard(root, spec, shard, deep)
        progress(shard + 1, spec.plan.num_shards)
    if not problems:
        problems += _check_index(root, spec)
    return problems


def _strangers(root: Path, spec: StoreSpec) -> list[str]:
    """Names in data/ that the plan does not know."""
    suffix, num_shards = backend_of(spec).suffix, spec.plan.num_shards

    def planned(name: str) -> bool:
        number = files.shard_number(name)
        return number is not None and number < num_shards and name in (f"{number:05d}{suffix}", f"{number:05d}.json")

    data = root / files.DATA
    names = sorted(path.name for path in data.iterdir()) if data.is_dir() else []
    return [name for name in names if not planned(name) and not name.endswith(".tmp")]


def _check_shard(root: Path, spec: StoreSpec, shard: int, deep: bool) -> list[Problem]:
    path, mark_path = files.shard_path(root, spec, shard), files.mark_path(root, shard)

    def problem(kind: str, text: str) -> list[Problem]:
        return [Problem(kind=kind, text=f"shard {shard}: {text}", shard=shard)]

    if not path.is_file():
        return problem("missing", f"{path.name} is missing")
    mark = files.load_mark(root, spec, shard)
    if mark is None:
        if not mark_path.is_file():
            return problem("missing", f"its mark {mark_path.name} is missing")
        try:
            foreign = isinstance(value := files.load_json(mark_path), dict) and value.get("store") != spec.digest
        except HkdError:
            foreign = False
        return problem("foreign", "it was written for another store") if foreign else problem("torn", "its mark is torn")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if path.stat().st_size != mark["bytes"] or sha256 != mark["sha256"]:
        return problem("flipped", f"its SHA-256 must be {mark['sha256']}, but is {sha256}")
    try:
        file_ = backend_of(spec).open(path, spec, shard)
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


def _check_index(root: Path, spec: StoreSpec) -> list[Problem]:
    """Only asked where all shards are well."""
    index = files.load_index(root, spec)
    if index is None:
        return [Problem(kind="index", text=f"{files.INDEX} is missing or not that of this store")]
    made = files.index_table(root, spec)
    if not index.equals(made):
        return [Problem(kind="index", text=f"{files.INDEX} does not say what the shards hold")]
    ids = made["id"].to_pylist()
    if spec.with_ids(ids).ids_digest != spec.ids_digest or ids != sorted(ids):
        return [Problem(kind="damaged", text="the utterances of the shards are not those that the store was planned for")]
    return []


def repair(path: Path | str, problems: list[Problem], *, dry_run: bool = False) -> Repair:
    """Take away what is wrong: strangers and broken shards with their marks go; the index is made anew where all shards are there.

    `dry_run`: only say what would be done.
    """
    root = Path(path)
    spec = files.load_spec(root)
    result = Repair()

    def remove(file: Path) -> None:
        if file.is_file():
            result.done.append(f"{'would remove' if dry_run else 'removed'} {file.relative_to(root)}")
            if not dry_run:
                file.unlink()

    for problem in problems:
        if problem.shard is not None:
            remove(files.mark_path(root, problem.shard))
            remove(files.shard_path(root, spec, problem.shard))
            result.dump_again.append(problem.shard)
    for name in _strangers(root, spec):
        if files.shard_number(name) is not None:
            remove(root / files.DATA / name)
    if result.dump_again:
        remove(root / files.INDEX)
    else:
        result.done.append(f"{'would write' if dry_run else 'wrote'} {files.INDEX}")
        if not dry_run:
            files.write_index(root, spec)
    return result
