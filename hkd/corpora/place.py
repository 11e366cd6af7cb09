"""Where a corpus' files are: in a folder that the user names, in the cache, or on a server that has its archives.

Archives up to `AUTO_GB` are fetched without being asked for; larger ones when `download` says so.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from hkd.corpora.card import Archive, Card
from hkd.corpora.fetch import download, unpack, verify
from hkd.errors import HkdError, UserError
from hkd.progress import Progress, no_progress
from hkd.remote import default_cache

logger = logging.getLogger(__name__)

AUTO_GB = 1.0
_DEPTH = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """`root`: the corpus' folder, or that of its archives; `parts`: which of the publisher's parts, empty for all."""

    cache: Path = field(default_factory=default_cache)
    root: Path | None = None
    base_url: str | None = None
    download: bool = False
    parts: tuple[str, ...] = ()

    def choose(self, card: Card, known: Collection[str]) -> list[str]:
        """The parts that are asked for, in the corpus' order; all where none is. Raises UserError for unknown ones."""
        unknown = [part for part in self.parts if part not in known]
        if unknown:
            raise UserError(
                f"part of {card.name} must be one of {', '.join(known) or '(it has none)'}, but is '{unknown[0]}' instead."
            )
        return [part for part in known if part in self.parts or not self.parts]


def archive_folder(card: Card, archive: Archive, place: Place, *, progress: Progress = no_progress) -> Path:
    """An archive's files, unpacked in the cache: from `root`, from the cache, or from the server. Raises UserError, HkdError.

    What was fetched is removed once it is unpacked; archives in `root` stay.
    """
    home = place.cache / card.name
    folder, packed = home / archive.file.split(".tar")[0], home / archive.file
    if folder.is_dir():
        return folder
    if place.root is not None and (place.root / archive.file).is_file():
        verify(place.root / archive.file, archive, remove=False)
        return unpack(place.root / archive.file, folder)
    if packed.is_file():
        verify(packed, archive)
    else:
        _fetched(card, archive, place, packed, progress)
    unpack(packed, folder)
    packed.unlink()
    return folder


def _fetched(card: Card, archive: Archive, place: Place, target: Path, progress: Progress) -> None:
    wanted = f"corpus {card.name} needs {archive.file}, which is not in {place.root or target.parent}"
    if not card.base_url and not place.base_url:
        raise UserError(
            f"{wanted}. It cannot be fetched without a form or a licence: get it from {card.source} and give --root DIR."
        )
    if not place.download and (card.size_gb is None or card.size_gb > AUTO_GB):
        size = f" (about {card.size_gb:g} GB)" if card.size_gb else ""
        raise UserError(f"{wanted}. Give --root DIR where the corpus lies, or --download{size}.")
    base = (place.base_url or card.base_url).rstrip("/")
    download(f"{base}/{archive.file}", target, archive, progress=progress)


def corpus_folder(card: Card, place: Place, marker: str, *, progress: Progress = no_progress) -> Path:
    """The folder in which `marker` (a path, wildcards allowed) lies: below `root`, or in the only archive. Raises UserError, HkdError."""
    if place.root is not None:
        found = find_below(place.root, marker)
        if found is not None:
            return found
        if not any((place.root / archive.file).is_file() for archive in card.archives):
            raise UserError(
                f"{place.root} must be the folder of {card.name}, but there is no {marker} in it nor in the folders below it."
            )
    if not card.archives:
        raise UserError(
            f"corpus {card.name} cannot be fetched without a form or a licence: get it from {card.source} and give --root DIR."
        )
    folder = archive_folder(card, card.archives[0], place, progress=progress)
    found = find_below(folder, marker)
    if found is None:
        raise HkdError(f"{folder} must be the folder of {card.name}, but there is no {marker} in it. Delete it and try again.")
    return found


def find_below(folder: Path, marker: str) -> Path | None:
    """The first folder, by depth and name, at most three levels down, in which `marker` lies. Links are not followed."""
    if not folder.is_dir():
        raise UserError(f"--root must be a folder, but {folder} is none.")
    level = [folder]
    for _ in range(_DEPTH):
        for candidate in level:
            if next(candidate.glob(marker), None) is not None:
                return candidate
        level = [path for parent in level for path in sorted(parent.iterdir()) if path.is_dir() and not path.is_symlink()]
    return None
