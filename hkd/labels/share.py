"""Copying whole stores to and from URLs (s3://, memory://, file:// ..., and the Hugging Face Hub:
hf://datasets/ORG/NAME).

- Only names that the plan gives are copied; nothing in a remote store can name another path.
- `push` writes store.json last, so that half a copy is no store. Files that are there already are not sent again. To
  the Hub it is one commit, through huggingface_hub, with HF_TOKEN and HF_ENDPOINT from the environment.
- `pull` fetches into a folder beside the destination, checks every shard's SHA-256, fetches damaged ones a second time,
  and renames the folder when all is well.
"""

import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from hkd.errors import HkdError, UserError
from hkd.labels import format as files
from hkd.labels.folder import MAX_INDEX_BYTES, MAX_MARK_BYTES, MAX_ROW_BYTES, StoreFolder
from hkd.labels.format import StoreSpec, parse_mark
from hkd.labels.verify import Repair, repair, verify
from hkd.lines import one_line
from hkd.progress import Progress, no_progress
from hkd.remote import HUB, Remote, hub_parts, location

log = logging.getLogger(__name__)

OPTIONAL = (files.INDEX, files.REPORT, files.CARD)


def _pairs(spec: StoreSpec) -> list[tuple[str, str]]:
    """The names of every shard and its mark."""
    return [(files.shard_name(spec, shard), files.mark_name(shard)) for shard in range(spec.num_shards)]


def _stale(there: Iterable[str], names: Collection[str]) -> list[str]:
    """Of the files that are there, those of another store: neither among this one's nor somebody's card or notes."""
    return [n for n in there if n not in names and (n in (files.INDEX, files.REPORT) or files.is_shard_or_mark(n))]


def push(store: Path | str, url: str, *, overwrite: bool = False, progress: Progress = no_progress) -> int:
    """Copy a complete, verified store to a URL; returns the bytes sent.

    Raises UserError where another store lies there, HkdError where the store has problems or the remote fails.
    """
    root = location(str(store))
    if isinstance(root, str):
        raise UserError(f"STORE must lie on this machine to be pushed, but lies at {root}. `hkd labels pull` it first.")
    spec, problems = StoreFolder(root).load_spec(), verify(root, deep=False)
    if problems:
        raise HkdError(
            f"label store {root} must be whole to be pushed, but: {problems[0].text}. Run `hkd labels verify`."
        )
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

    Raises UserError where `out` is there already or the URL holds no store, HkdError where the remote fails or its
    store has problems.
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
                "%s: %d of %d shards came damaged (%s) and are fetched again.", url, len(broken), spec.num_shards, named
            )
            repair(part, problems)
            _fetch_all(remote, part, progress)
            problems = verify(part)
        repaired = repair(part, problems) if problems else Repair()
        if repaired.dump_again:
            good = spec.num_shards - len(repaired.dump_again)
            raise HkdError(
                f"{url} holds a store with problems: {problems[0].text}. The same command keeps the {good} shards that "
                f"came well "
                f"and fetches the others."
            )
        if any(problem.kind == "damaged" for problem in problems):
            shutil.rmtree(part)
            raise HkdError(f"{url} holds a store with problems: {problems[0].text}. Nothing was written.")
        part.rename(target)
    except OSError as error:
        raise HkdError(
            f"{target} cannot be written ({error.strerror or error}). Run the same command again: it goes on where it "
            f"was."
        ) from None
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


# The Hugging Face Hub -------------------------------------------------------------------------------------------------


@contextmanager
def _reach(url: str, verb: str) -> Iterator[None]:
    """Whatever huggingface_hub and its HTTP client raise → one sentence. Its progress bars are off meanwhile: hkd's own
    are drawn."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    drew = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except Exception as error:
        raise HkdError(
            f"{url} cannot be {verb} ({one_line(error)}). Is HF_TOKEN set? Run the same command again."
        ) from None
    finally:
        if drew:
            enable_progress_bars()


def _push_to_hub(root: Path, url: str, names: Sequence[str]) -> int:
    """Put these files of a store there in one commit, which removes another store's; returns the bytes of those that
    differ."""
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
    """Fetch those of these files that exist into a folder. Files that are there already and the same are not fetched
    again."""
    from huggingface_hub import snapshot_download

    repo, revision, folder = hub_parts(url)
    prefix = f"{folder}/" if folder else ""
    whole = target if not folder else target.with_name(f"{target.name}.hub")
    with _reach(url, "read"):
        snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[prefix + name for name in names],
            local_dir=whole,
        )
    if folder:
        for name in names:
            if (whole / prefix / name).is_file():
                (whole / prefix / name).replace(target / name)
        shutil.rmtree(whole)
    else:
        shutil.rmtree(target / ".cache", ignore_errors=True)  # huggingface_hub's own notes
