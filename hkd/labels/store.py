"""Writing and reading label stores: `LabelWriter`, `LabelReader`, `open_stores`."""

from pathlib import Path

from hkd.errors import UserError
from hkd.files import digest_of
from hkd.labels import hub
from hkd.labels.cache import local_folder
from hkd.labels.folder import DATA, SPEC
from hkd.labels.reader import LabelReader
from hkd.labels.writer import LabelWriter
from hkd.remote import Remote, location

__all__ = ["LabelReader", "LabelWriter", "digest_of_store", "location", "open_stores", "store_folders"]


def store_folders(folder: Path | str) -> dict[str, Path]:
    """The stores in a folder or at a URL, by their folder's name: the folder itself, where it is a store, else those right below it.

    For a URL these are folders that stand for the stores (hkd.labels.cache). Raises UserError where there is none.
    """
    place = location(folder) if isinstance(folder, str) else folder
    if isinstance(place, str):
        found = _remote_stores(Remote(place))
    elif (place / SPEC).is_file():
        found = {place.name: place}
    else:
        found = {path.name: path for path in sorted(place.iterdir()) if (path / SPEC).is_file()} if place.is_dir() else {}
    if not found:
        raise UserError(f"{place} must be a label store or hold some, but does not. Run `hkd teacher-dump` first.")
    return found


def store_name(url: str) -> str:
    """The last folder of a URL; for a whole data set of the Hub its name, without the revision."""
    repo, _, folder = hub.parts(url) if hub.is_hub(url) else ("", None, url)
    return (folder or repo).rpartition("/")[2]


def _remote_stores(remote: Remote) -> dict[str, Path]:
    if remote.size(SPEC) is not None:
        return {store_name(remote.url): local_folder(remote.url)}
    names = [name for name in remote.names() if remote.size(f"{name}/{SPEC}") is not None]
    return {name: local_folder(f"{remote.url}/{name}") for name in names}


def open_stores(folder: Path | str, *, cache_bytes: int | None = None) -> dict[str, LabelReader]:
    """Open the stores in a folder or at a URL, by name. Raises UserError where there is none, HkdError for one that is not complete."""
    options = {} if cache_bytes is None else {"cache_bytes": cache_bytes}
    return {name: LabelReader.open(path, **options) for name, path in store_folders(folder).items()}


def digest_of_store(reader: LabelReader) -> str:
    """Of the spec and of every shard's mark (which holds its SHA-256)."""
    root = reader.path
    return digest_of(
        part for path in (root / SPEC, *sorted((root / DATA).glob("*.json"))) for part in (path.name, path.read_bytes())
    )
