"""The Hugging Face Hub: a store is a data set, hf://datasets/ORG/NAME, or a folder in one; with a revision, NAME@REVISION (also @refs/pr/1).

Through huggingface_hub, with HF_TOKEN and HF_ENDPOINT from the environment. A push is one commit, so that half a store never lies there.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hkd.errors import HkdError, UserError
from hkd.lines import first_line

SCHEME = "hf://"


def is_hub(url: str) -> bool:
    """Whether a URL lies on the Hub."""
    return url.startswith(SCHEME)


def parts(url: str) -> tuple[str, str | None, str]:
    """hf://datasets/ORG/NAME[@REVISION][/FOLDER] → ("ORG/NAME", revision, folder). Raises UserError."""
    from huggingface_hub import parse_hf_uri

    try:
        found = parse_hf_uri(url)
    except ValueError as error:
        raise UserError(f"URL must be like hf://datasets/ORG/NAME, but is '{url}' instead ({first_line(error)}).") from None
    if found.type != "dataset":
        raise UserError(f"URL must be like hf://datasets/ORG/NAME, but is '{url}' instead.")
    return found.id, found.revision, found.path_in_repo.strip("/")


@contextmanager
def _reach(url: str, verb: str) -> Iterator[None]:
    """Whatever huggingface_hub and its HTTP client raise → one sentence. Its progress bars are off meanwhile: a library draws none."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    drew = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except HkdError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise HkdError(f"{url} cannot be {verb} ({reason}). Is HF_TOKEN set? Run the same command again.") from None
    finally:
        if drew:
            enable_progress_bars()


def push(root: Path, url: str, names: Sequence[str], is_stale: Callable[[str], bool]) -> int:
    """Put these files of a store there in one commit, which removes others that are `is_stale`; returns the bytes of those that differ."""
    from huggingface_hub import HfApi, RepoFile

    repo, revision, folder = parts(url)
    prefix = f"{folder}/" if folder else ""
    with _reach(url, "written"):
        api = HfApi()
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        found = api.list_repo_tree(repo, repo_type="dataset", revision=revision, recursive=True)
        before = {item.path: item.blob_id for item in found if isinstance(item, RepoFile)}
        there = [path.removeprefix(prefix) for path in before if path.startswith(prefix)]
        stale = [name for name in there if name not in names and is_stale(name)]
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            revision=revision,
            folder_path=root,
            path_in_repo=folder or None,
            allow_patterns=list(names),
            delete_patterns=stale or None,
            commit_message=f"hkd labels push {root.name}",
        )
        found = api.list_repo_tree(repo, repo_type="dataset", revision=revision, recursive=True)
        after = {item.path: item.blob_id for item in found if isinstance(item, RepoFile)}
    return sum((root / name).stat().st_size for name in names if before.get(prefix + name) != after.get(prefix + name))


def pull(url: str, target: Path, names: Sequence[str]) -> None:
    """Fetch those of these files that are there into a folder; what is there already and the same is left."""
    from huggingface_hub import snapshot_download

    repo, revision, folder = parts(url)
    prefix = f"{folder}/" if folder else ""
    whole = target if not folder else target.with_name(f"{target.name}.hub")
    with _reach(url, "read"):
        snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=[prefix + name for name in names], local_dir=whole
        )
    if folder:
        for name in names:
            if (whole / prefix / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (whole / prefix / name).replace(target / name)
        shutil.rmtree(whole)
    else:
        shutil.rmtree(target / ".cache", ignore_errors=True)  # huggingface_hub's own notes
