"""Writing and reading label stores: `LabelWriter`, `LabelReader`, `open_stores`."""

from pathlib import Path

from hkd.errors import UserError
from hkd.labels.folder import SPEC
from hkd.labels.reader import LabelReader
from hkd.labels.writer import LabelWriter

__all__ = ["LabelReader", "LabelWriter", "open_stores", "store_folders"]


def store_folders(folder: Path | str) -> dict[str, Path]:
    """The stores in a folder, by their folder's name: the folder itself, where it is a store, else those right below it.

    Raises UserError where there is none.
    """
    root = Path(folder)
    if (root / SPEC).is_file():
        return {root.name: root}
    found = {path.name: path for path in sorted(root.iterdir()) if (path / SPEC).is_file()} if root.is_dir() else {}
    if not found:
        raise UserError(f"{root} must be a label store or hold some, but does not. Run `hkd teacher-dump` first.")
    return found


def open_stores(folder: Path | str, *, cache_bytes: int | None = None) -> dict[str, LabelReader]:
    """Open the stores in a folder, by name. Raises UserError where there is none, HkdError for one that is not complete."""
    options = {} if cache_bytes is None else {"cache_bytes": cache_bytes}
    return {name: LabelReader.open(path, **options) for name, path in store_folders(folder).items()}
