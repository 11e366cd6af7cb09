"""Checking whole stores, and copying them to and from URLs (s3://, memory://, file:// ..., and the Hugging Face Hub:
hf://datasets/ORG/NAME).

- Only names that the plan gives are copied; nothing in a remote store can name another path.
- `push` writes store.json last, so that half a copy is no store. Files that are there already are not sent again. To
  the Hub it is one commit, through huggingface_hub, with HF_TOKEN and HF_ENDPOINT from the environment.
- `pull` fetches into a folder beside the destination, and renames it when all is well; damaged shards come twice.
"""

import json
import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pyarrow.compute as pc

from hkd.errors import HkdError, Progress, UserError, no_progress, one_line, some
from hkd.files import digest_of, digest_of_file
from hkd.labels import format as files
from hkd.labels.codec import decode_block
from hkd.labels.folder import MAX_INDEX_BYTES, MAX_MARK_BYTES, MAX_ROW_BYTES, LostShardError, StoreFolder, store_folder
from hkd.labels.format import StoreSpec, index_bytes, parse_mark
from hkd.labels.store import index_table, shard_tables
from hkd.remote import HUB, Remote, hub_parts, location, same_place

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong: kind = missing | torn | flipped | foreign | damaged | index; `shard` where it concerns one."""

    kind: str
    text: str
    shard: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What `repair` did, and the shards that must be dumped again (their marks are gone, so a resumed dump does)."""

    done: list[str] = field(default_factory=list)
    dump_again: list[int] = field(default_factory=list)


def verify(path: Path | str, *, deep: bool = True, progress: Progress = no_progress) -> list[Problem]:
    """All problems of a store; none where it is as it was written. `deep` also decodes every block. Raises UserError or
    HkdError where store.json or the inventory cannot be read."""
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
    planned = {*chain.from_iterable(_pairs(spec))}
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
            found = f"it holds {counts[0]} utterances with {counts[1]} positions"
            return "damaged", f"{found}, its mark or the plan says otherwise"
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
    `path`: a folder, or a URL. `dry_run`: only say what would be done."""
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


OPTIONAL = (files.INDEX, files.REPORT, files.CARD)


def _pairs(spec: StoreSpec) -> list[tuple[str, str]]:
    """The names of every shard and its mark."""
    return [(files.shard_name(spec, shard), files.mark_name(shard)) for shard in range(spec.num_shards)]


def _stale(there: Iterable[str], names: Collection[str]) -> list[str]:
    """Of the files that are there, those of another store: neither among this one's nor somebody's card or notes."""
    return [n for n in there if n not in names and (n in (files.INDEX, files.REPORT) or files.is_shard_or_mark(n))]


def push(store: Path | str, url: str, *, overwrite: bool = False, progress: Progress = no_progress) -> int:
    """Copy a complete, verified store to a URL; returns the bytes sent. Raises UserError where another store lies
    there, HkdError where the store has problems or the remote fails."""
    root = location(str(store))
    if isinstance(root, str):
        raise UserError(f"STORE must lie on this machine to be pushed, but lies at {root}. `hkd labels pull` it first.")
    if same_place(root, url):
        raise UserError(f"URL must be another place than the store, but is {url} instead.")
    spec, problems = StoreFolder(root).load_spec(), verify(root, deep=False)
    if problems:
        fault = problems[0].text
        raise HkdError(f"label store {root} must be whole to be pushed, but: {fault}. Run `hkd labels verify`.")
    remote = Remote(url)
    there = remote.read(files.SPEC)
    if there is not None and there != (root / files.SPEC).read_bytes() and not overwrite:
        raise UserError(f"{url} must be empty or hold this store, but holds another. Give another URL, or --overwrite.")
    pairs, others = _pairs(spec), [name for name in OPTIONAL if (root / name).is_file()]
    names = [*chain.from_iterable(pairs), *others, files.INVENTORY, files.SPEC]
    if url.startswith(HUB):
        return _push_to_hub(root, url, names)
    if there is not None and overwrite:
        remote.remove(files.SPEC)
        for name in _stale([*OPTIONAL, *(f"{files.DATA}/{name}" for name in remote.names(files.DATA))], names):
            remote.remove(name)

    def send(*names: str) -> int:
        for name in names:
            remote.send(name, root / name)
        return sum((root / name).stat().st_size for name in names)

    def differs(name: str) -> bool:
        return overwrite or remote.read(name) != (root / name).read_bytes()

    sent = 0
    for done, (shard, mark) in enumerate(pairs, 1):
        if differs(mark) or remote.size(shard) != (root / shard).stat().st_size:
            sent += send(shard, mark)
        progress(done, len(pairs))
    return sent + sum(send(name) for name in (*others, files.INVENTORY, files.SPEC) if differs(name))


def pull(url: str, out: Path | str, *, progress: Progress = no_progress) -> StoreSpec:
    """Fetch a store from a URL into a new folder, and check it. A pull that was interrupted goes on where it was.
    Raises UserError where `out` is there already or the URL holds no store, HkdError for a remote or store that is
    broken."""
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
            said = "%s: %d of %d shards came damaged (%s) and are fetched again."
            logger.warning(said, url, len(broken), spec.num_shards, some(broken, 5))
            repair(part, problems)
            _fetch_all(remote, part, progress)
            problems = verify(part)
        repaired = repair(part, problems) if problems else Repair()
        if repaired.dump_again:
            good = spec.num_shards - len(repaired.dump_again)
            remedy = f"The same command keeps the {good} shards that came well and fetches the others."
            raise HkdError(f"{url} holds a store with problems: {problems[0].text}. {remedy}")
        if any(problem.kind == "damaged" for problem in problems):
            shutil.rmtree(part)
            raise HkdError(f"{url} holds a store with problems: {problems[0].text}. Nothing was written.")
        part.rename(target)
    except OSError as error:
        why, remedy = error.strerror or error, "Run the same command again: it goes on where it was."
        raise HkdError(f"{target} cannot be written ({why}). {remedy}") from None
    return spec


def _fetch_all(remote: Remote, part: Path, progress: Progress) -> StoreSpec:
    (part / files.DATA).mkdir(parents=True, exist_ok=True)
    for name in (files.SPEC, files.INVENTORY):
        _fetch(remote, part, name, files.MAX_JSON_BYTES)
    spec = StoreFolder(part).load_spec()
    if remote.url.startswith(HUB):
        _pull_from_hub(remote.url, part, [*chain.from_iterable(_pairs(spec)), *OPTIONAL])
        return spec
    pairs = _pairs(spec)
    for done, (shard, mark) in enumerate(pairs, 1):
        _fetch(remote, part, mark, MAX_MARK_BYTES)
        found = parse_mark((part / mark).read_bytes(), spec.digest, done - 1)
        if found is None:
            rule = f"{remote}/{mark} must be the mark of a shard of this store"
            raise HkdError(f"{rule}, but is not. Run `hkd labels verify` on it.")
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


# The Hugging Face Hub -------------------------------------------------------------------------------------------------


@contextmanager
def _reach(url: str, verb: str) -> Iterator[None]:
    """What huggingface_hub and its HTTP client raise → one sentence. Its progress bars are off: hkd's own are drawn."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    drew = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except Exception as error:
        remedy = "Is HF_TOKEN set? Run the same command again."
        raise HkdError(f"{url} cannot be {verb} ({one_line(error)}). {remedy}") from None
    finally:
        if drew:
            enable_progress_bars()


def _push_to_hub(root: Path, url: str, names: Sequence[str]) -> int:
    """Put these files there in one commit, which removes another store's; returns the bytes of those that differ."""
    from huggingface_hub import HfApi, RepoFile

    repo, revision, folder = hub_parts(url)
    prefix = f"{folder}/" if folder else ""
    api = HfApi()

    def blobs() -> dict[str, str]:
        found = api.list_repo_tree(repo, repo_type="dataset", revision=revision, recursive=True)
        ours = (item for item in found if isinstance(item, RepoFile) and item.path.startswith(prefix))
        return {item.path.removeprefix(prefix): item.blob_id for item in ours}

    with _reach(url, "written"):
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        before = blobs()
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            revision=revision,
            folder_path=root,
            path_in_repo=folder or None,
            allow_patterns=list(names),
            delete_patterns=_stale(before, names) or None,
            commit_message=f"hkd labels push {root.name}",
        )
        after = blobs()
    return sum((root / name).stat().st_size for name in names if before.get(name) != after.get(name))


def _pull_from_hub(url: str, target: Path, names: Sequence[str]) -> None:
    """Fetch those of these files that exist into a folder, but for those that are there already and the same."""
    from huggingface_hub import snapshot_download

    repo, revision, folder = hub_parts(url)
    prefix = f"{folder}/" if folder else ""
    whole = target if not folder else target.with_name(f"{target.name}.hub")
    wanted = [prefix + name for name in names]
    with _reach(url, "read"):
        snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=wanted, local_dir=whole)
    if folder:
        for name in names:
            if (whole / prefix / name).is_file():
                (whole / prefix / name).replace(target / name)
        shutil.rmtree(whole)
    else:
        shutil.rmtree(target / ".cache", ignore_errors=True)  # huggingface_hub's own notes
