"""Is an existing artefact what was asked for? Digests of files and folders, and the differences between two
descriptions."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from hkd.errors import UserError
from hkd.files import digest_of, digest_of_file, write_bytes


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings → {"a.b": leaf}; tuples become lists, as JSON has them."""
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    leaves: dict[str, Any] = {}
    for name, part in value.items():
        leaves |= flatten(part, f"{prefix}.{name}" if prefix else str(name))
    return leaves


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, value there, value asked for) of the leaves that differ, None where a side lacks one. Values are compared
    as JSON."""
    was, now = (flatten(json.loads(json.dumps(side))) for side in (there, asked))
    return [(name, was.get(name), now.get(name)) for name in {**was, **now} if was.get(name) != now.get(name)]


def brief(value: Any) -> str:
    """A value of a description as a message shows it."""
    text = (
        "not given"
        if value is None
        else value
        if value and isinstance(value, str)
        else json.dumps(value, ensure_ascii=False)
    )
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_same(rule: str, there: Mapping[str, Any], asked: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError "RULE, but its NAME is OLD instead of NEW. REMEDY" where the two descriptions differ."""
    found = differences(there, asked)
    if found:
        shown = "; ".join(f"its {name} is {brief(was)} instead of {brief(now)}" for name, was, now in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(f"{rule}, but {shown}{more}. {remedy}")


class Contents:
    """SHA-256 of files, kept in a JSON file. A file is read again only when its size or one of its times changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}  # absolute path → size, mtime in ns, ctime in ns, SHA-256
        self._is_changed = False
        with suppress(OSError, ValueError):
            self._known = json.loads(path.read_text(encoding="utf-8"))

    def digest(self, path: Path, *, without: Path | None = None) -> str | None:
        """Digest of a file, or of a folder's names and files (links are followed, hidden and temporary files left out);
        None if absent."""
        if path.is_dir():
            files = sorted(_files(path, without and without.absolute()))
            names = [str(file.relative_to(path)) for file in files]
            return digest_of(part for pair in zip(names, self.of_files(files), strict=True) for part in pair)
        return self.of_files([path])[0] if path.exists() else None

    def of_files(self, files: Iterable[Path]) -> list[str]:
        """The SHA-256 of each file; "" for those that are absent."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._of_file, files))

    def save(self) -> None:
        """Write the JSON file where something changed."""
        if self._is_changed:
            write_bytes(
                self._path, json.dumps(self._known, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
            )
            self._is_changed = False

    def _of_file(self, path: Path) -> str:
        try:
            stat = path.stat()
        except FileNotFoundError:
            return ""
        marks, name = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns], str(path.absolute())
        known = self._known.get(name)
        if known is None or known[:3] != marks:
            known = self._known[name] = [*marks, digest_of_file(path)]
            self._is_changed = True
        return str(known[3])


def _files(folder: Path, without: Path | None) -> Iterator[Path]:
    visited: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        here = Path(name)
        stat = here.stat()
        if (stat.st_dev, stat.st_ino) in visited or here.absolute() == without:  # a link to a folder above
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders[:] = [child for child in folders if not child.startswith(".")]
        for file in files:
            if not file.startswith(".") and not file.endswith((".tmp", ".lock")) and (here / file).is_file():
                yield here / file
