"""The registry of corpora that are known by name, their cards, and how a corpus' archives are fetched and unpacked.

- A corpus is a card (source, licence, checksums, what the manifest must hold) and a reader, put there by `register`.
- hkd's own cards are TOML files (`data_manifests/` in the repository). A checksum stands only with its source.
- Archives come from a folder that the user names, the cache or a server; up to `AUTO_GB` are fetched without asking.
- A download continues where a broken one stopped, is checked against its card, and gets its name only then.
- Unpacking writes below its folder or not at all: no absolute paths, no `..`, no links, no devices, a bound on size.
"""

import hashlib
import logging
import lzma
import tarfile
import tempfile
import tomllib
import urllib.error
import urllib.request
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hkd.corpora.collect import Options, Row, collect, is_hidden
from hkd.errors import HkdError, Progress, UserError, check_choice, first_line, no_progress
from hkd.files import shipped
from hkd.manifest import Manifest, Utterance, assign_splits

logger = logging.getLogger(__name__)

CARDS = shipped("data_manifests")
HOURS_TOLERANCE = 0.005  # of the expected hours: formats of the same sound differ by a few samples
AUTO_GB = 1.0
BLOCK_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 200 << 30
MAX_RATIO = 20  # recorded sound hardly shrinks; what unpacks to more than this is a bomb
FREE_BYTES = 64 << 20  # which any archive may unpack to
MAX_MEMBERS = 5_000_000
TIMEOUT_S = 60
_DEPTH = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """One file of a corpus. At most one of `sha256` and `md5` is set, and only together with its source."""

    file: str
    checksum_source: str = ""
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What a part or split must hold; None is not checked."""

    utterances: int | None = None
    hours: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A corpus' card."""

    name: str
    kind: str  # speech | text
    title: str
    language: str
    source: str
    licence: str
    archives: tuple[Archive, ...] = ()
    packages: tuple[str, ...] = ()  # Debian packages
    base_url: str = ""  # empty: cannot be downloaded without a form or a licence
    size_gb: float | None = None  # of the archives together, about
    split_by: str = ""
    figures_source: str = ""  # where the expected utterances and hours are published
    sentences: int | None = None  # text corpora
    whole: Expected | None = None  # what all splits together must hold
    some_parts: bool = False  # whether a manifest may hold some of the parts alone
    splits: Mapping[str, Expected] = field(default_factory=dict)
    parts: Mapping[str, Expected] = field(default_factory=dict)  # the publisher's parts: the extra field `part`


def parse_card(table: Mapping[str, Any]) -> Card:
    """A card from its TOML table. Raises TypeError for unknown or missing keys."""
    values = dict(table)
    values["archives"] = tuple(Archive(**archive) for archive in table.get("archives", ()))
    values["packages"] = tuple(table.get("packages", ()))
    if "whole" in table:
        values["whole"] = Expected(**table["whole"])
    for name in ("splits", "parts"):
        values[name] = {key: Expected(**expected) for key, expected in table.get(name, {}).items()}
    return Card(**values)


def chosen_parts(card: Card, options: Options, known: Collection[str]) -> list[str]:
    """The parts that are asked for, in the corpus' order; all where none is. Raises UserError for unknown ones."""
    for part in options.parts:
        check_choice(f"part of {card.name}", part, known or ["(it has none)"])
    return [part for part in known if part in options.parts or not options.parts]


# the publisher's name of a part ("" where there is one), its folder, its utterances
Part = tuple[str, Path, Iterable[Row]]
Reader = Callable[[Card, Options], Iterable[Any]]  # gives the Parts of speech, or the sentences of text alone
Splits = Mapping[str, str | Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """An entry of the registry. `splits`: of a part its split, or the shares of several, dealt out by speaker."""

    given: Card | str
    read: Reader
    splits: Splits
    is_text: bool

    @property
    def card(self) -> Card:
        """The corpus' card."""
        if isinstance(self.given, Card):
            return self.given
        return parse_card(tomllib.loads((CARDS / f"{self.given}.toml").read_text(encoding="utf-8")))

    def manifest(self, options: Options) -> Manifest:
        """All parts' utterances, with the splits of those that have any. Raises UserError, HkdError."""
        found: list[Utterance] = []
        for part, folder, rows in self.read(self.card, options):
            whole, rule = collect(rows, folder, options), self.splits.get(part)
            if isinstance(rule, str):
                found += (replace(u, extra={**u.extra, "split": rule}) for u in whole)
            else:
                found += whole if rule is None else assign_splits(whole, rule, by=lambda u: u.speaker or "")
        return Manifest(found)


CORPORA: dict[str, Corpus] = {}


def register(card: Card | str, *, splits: Splits | None = None, is_text: bool = False) -> Callable[[Reader], Reader]:
    """Make a corpus known by its card's name, or by that of one of hkd's own cards: a decorator of its reader.

    The reader of speech gives (part, folder, rows), that of text alone (`is_text`) gives sentences. `splits`: see
    `Corpus`; rows of other parts keep the extra field `split`, and where no row has one `prepare` makes the splits.
    """

    def keep(read: Reader) -> Reader:
        name = card if isinstance(card, str) else card.name
        CORPORA[name] = Corpus(given=card, read=read, splits=splits or {}, is_text=is_text)
        return read

    return keep


def known_corpora() -> list[Card]:
    """The cards of all corpora that can be prepared by name, in order."""
    return [CORPORA[name].card for name in sorted(CORPORA)]


def differences(card: Card, utterances: Iterable[Utterance]) -> list[str]:
    """What the utterances have otherwise than the card says, a sentence each."""
    counts: Counter[tuple[str, str]] = Counter()
    hours: dict[tuple[str, str], float] = defaultdict(float)
    for utterance in utterances:
        for key in (("split", str(utterance.split)), ("part", str(utterance.extra.get("part"))), ("corpus", card.name)):
            counts[key] += 1
            hours[key] += (utterance.duration or 0.0) / 3600
    expectations = {("split", name): expected for name, expected in card.splits.items()}
    expectations |= {("part", name): expected for name, expected in card.parts.items()}
    if card.whole is not None:
        expectations["corpus", card.name] = card.whole
    found = []
    for key, expected in expectations.items():
        if key[0] == "part" and card.some_parts and key not in counts:
            continue
        what = " ".join(key)
        if expected.utterances is not None and counts[key] != expected.utterances:
            found.append(f"{what} has {counts[key]} utterances instead of {expected.utterances}")
        if expected.hours is not None and abs(hours[key] - expected.hours) > HOURS_TOLERANCE * expected.hours:
            found.append(f"{what} has {hours[key]:.3f} hours instead of {expected.hours:.3f}")
    return found


def check(card: Card, utterances: Iterable[Utterance]) -> None:
    """Raise HkdError where the finished manifest is not what the card says."""
    if found := differences(card, utterances):
        raise HkdError(
            f"corpus {card.name} must be as its card says, but {'; '.join(found)}. Fetch it again, or say --from to "
            "take it as it is."
        )


def verify(path: Path, archive: Archive, *, remove: bool = True) -> None:
    """Raise HkdError (and remove the file, unless told not to) where a file is not what its card says."""
    algorithm, wanted = ("md5", archive.md5) if archive.md5 else ("sha256", archive.sha256)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if wanted is None:
        logger.warning("%s is not checked: nobody publishes its checksum. Its SHA-256 is %s", archive.file, found)
    elif found != wanted:
        if remove:
            path.unlink()
        remedy = "It was removed: try again." if remove else "Fetch it again."
        raise HkdError(f"{path} must have the {algorithm} {wanted}, but has {found} instead. {remedy}")


def download(url: str, path: Path, archive: Archive, *, progress: Progress = no_progress) -> Path:
    """Fetch `url` to `path`, going on where a broken download stopped. Raises HkdError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part, progress)
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors
        code = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        raise HkdError(
            f"{url} could not be fetched ({code}{getattr(error, 'reason', error)}). Try again, it goes on where it "
            "was; or fetch it yourself and give --root DIR."
        ) from None
    verify(part, archive)
    part.replace(path)
    return path


def _fetch(url: str, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to fetch: the checksum will tell
            return
        raise
    with answer:
        have = have if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else 0
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                have += len(block)
                progress(have, total or have)
    if total and have < total:
        raise OSError(f"the connection broke after {have} of {total} bytes")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar archive to `folder`, which appears whole or not at all. Raises HkdError.

    Files and folders below `folder` alone: links, devices, pipes and names that lead out are refused, and so are bombs.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as temporary:
        work = Path(temporary) / "files"
        work.mkdir()
        try:
            limit = min(MAX_UNPACKED_BYTES, FREE_BYTES + MAX_RATIO * archive.stat().st_size)
            with tarfile.open(archive) as tar:
                size = 0
                for number, member in enumerate(tar, 1):
                    size += member.size
                    if size > limit or number > MAX_MEMBERS:
                        most = f"{limit} bytes or {MAX_MEMBERS} files"
                        raise HkdError(f"{archive} must not unpack to more than {most}, but does. Is it the right one?")
                    if member.issym() or member.islnk():
                        raise tarfile.ReadError(f"'{member.name}' is a link")
                    tar.extract(member, work, filter="data")
                _read_to_the_end(tar)
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            is_of_disk = isinstance(error, OSError) and error.errno is not None  # full, read-only ...
            remedy = f"Make room in {folder.parent}" if is_of_disk else "Delete it"
            raise HkdError(f"{archive} cannot be unpacked ({first_line(error)}). {remedy} and try again.") from None
        work.replace(folder)
    return folder


def _read_to_the_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError where members are left: tarfile takes a damaged header for the end, and checks nothing more."""
    while block := tar.fileobj.read(BLOCK_BYTES) if tar.fileobj else b"":
        if block.strip(b"\0"):
            raise tarfile.ReadError("a header in its middle is damaged")


def archive_folder(card: Card, archive: Archive, options: Options) -> Path:
    """An archive's files, unpacked in the cache: from `root`, the cache, or the server. Raises UserError, HkdError.

    What was fetched is removed once it is unpacked; archives in `root` stay.
    """
    home = options.cache / card.name
    folder, packed = home / archive.file.split(".tar")[0], home / archive.file
    if folder.is_dir():
        return folder
    if options.root is not None and (own := options.root / archive.file).is_file():
        verify(own, archive, remove=False)
        return unpack(own, folder)
    if packed.is_file():
        verify(packed, archive)
    else:
        _fetched(card, archive, options, packed)
    unpack(packed, folder)
    packed.unlink()
    return folder


def _fetched(card: Card, archive: Archive, options: Options, target: Path) -> None:
    wanted = f"corpus {card.name} needs {archive.file}, which is not in {options.root or target.parent}"
    if not card.base_url and not options.base_url:
        raise UserError(f"{wanted}. It {_by_hand(card)}")
    if not options.download and (card.size_gb is None or card.size_gb > AUTO_GB):
        size = f" (about {card.size_gb:g} GB)" if card.size_gb else ""
        raise UserError(f"{wanted}. Give --root DIR where the corpus lies, or --download{size}.")
    base = (options.base_url or card.base_url).rstrip("/")
    download(f"{base}/{archive.file}", target, archive, progress=options.progress)


def _by_hand(card: Card) -> str:
    return f"cannot be fetched without a form or a licence: get it from {card.source} and give --root DIR."


def corpus_folder(card: Card, options: Options, marker: str) -> Path:
    """The folder, below `root` or in the only archive, in which `marker` (a path, wildcards allowed) lies."""
    if options.root is not None:
        if (found := find_below(options.root, marker)) is not None:
            return found
        if not any((options.root / archive.file).is_file() for archive in card.archives):
            where = "in it nor in the folders below it"
            raise UserError(f"{options.root} must be the folder of {card.name}, but there is no {marker} {where}.")
    if not card.archives:
        raise UserError(f"corpus {card.name} {_by_hand(card)}")
    folder = archive_folder(card, card.archives[0], options)
    if (found := find_below(folder, marker)) is None:
        wanted = f"the folder of {card.name}, but there is no {marker} in it"
        raise HkdError(f"{folder} must be {wanted}. Delete it and try again.")
    return found


def find_below(folder: Path, marker: str) -> Path | None:
    """The first folder, by depth and name, within three levels, in which `marker` lies. Links are not followed."""
    if not folder.is_dir():
        raise UserError(f"--root must be a folder, but {folder} is none.")
    level = [folder]
    for _ in range(_DEPTH):
        for candidate in level:
            if next(candidate.glob(marker), None) is not None:
                return candidate
        below = [path for parent in level for path in sorted(parent.iterdir()) if not is_hidden(path.name)]
        level = [path for path in below if path.is_dir() and not path.is_symlink()]
    return None
