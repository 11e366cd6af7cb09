"""What every reader shares: how folders are walked, what is reported as left out, and how utterances become a manifest.

`collect` reads every audio file's header once, by threads: audio that is missing, empty, broken, too short or lacks
the channel that is asked for is counted and listed when the manifest is made, not met in training.
"""

import hashlib
import io
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import soundfile

from hkd.audio import DURATION_TOLERANCE_S, AudioInfo, probe
from hkd.errors import Progress, UserError, no_progress, some
from hkd.files import write_bytes
from hkd.manifest import KNOWN_FIELDS, Manifest, Utterance
from hkd.remote import default_cache

logger = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")
Row = tuple[str, Utterance]  # where it was read (FILE:LINE, for errors), and the utterance
_CALLED = {"train": "train training", "dev": "dev valid validation val devel", "test": "test testing eval evaluation"}
_SPLITS = {name: split for split, names in _CALLED.items() for name in names.split()}
_SHOWN = 3
_LONGEST = 400
_THREADS = 8
_PARENTS = 3
_ROUNDED_S = 0.1  # of durations with one decimal
_OVER_S = 0.5  # what a segment may go on after its recording, as in Kaldi's extract-segments
_NOBODY = ("n/a", "nan", "none", "null", "<na>", "unknown")  # GigaSpeech's, pandas', VoxPopuli's speaker of no name
_ENDINGS = {  # of the formats that libsndfile may have been built with
    "AIFF": "aif aiff aifc", "AU": "au snd", "AVR": "avr", "CAF": "caf", "FLAC": "flac", "IRCAM": "sf", "MP3": "mp3",
    "NIST": "sph nist",
    "OGG": "ogg oga opus", "RF64": "rf64", "SVX": "svx 8svx", "VOC": "voc", "W64": "w64", "WAV": "wav wave",
}  # fmt: skip
_READABLE = frozenset(f".{name}" for kind in soundfile.available_formats() for name in _ENDINGS.get(kind, "").split())
_OTHER_ENDINGS = """
3gp 3gpp aac ac3 adpcm al alaw amr ape asf avi awb dff dsf dts eac3 flv g722 g729 gsm m4a m4b m4v mka mkv mov mp1 mp2
mp4 mpc mpeg mpg oma ogv
ogx pcm qt ra raw rm shn spx tta ul ulaw vox weba webm wma wmv wv wv1 wv2"""
_OTHER_SOUND = frozenset(f".{name}" for name in _OTHER_ENDINGS.split())
_HIDDEN = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
UNREADABLE = "recordings have an ending that libsndfile cannot read (convert each: ffmpeg -i NAME.m4a NAME.flac)"


@dataclass(slots=True)
class Report:
    """What was left out and what was decided while a corpus was read: kind → names.

    `skip_bad`: go on without what cannot be used, instead of refusing the corpus. `path`: the file for all names.
    `bad_rows`: what is wrong with rows that were read (`usable`); `collect` refuses them all at once.
    """

    skip_bad: bool = False
    path: Path | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)
    num_bad: int = 0
    outcome: str = ""

    def leave_out(self, kind: str, names: Iterable[str]) -> None:
        """Count what a corpus holds and the manifest does not."""
        for name in names:
            self.left_out.setdefault(kind, []).append(name)

    def note(self, kind: str, names: Iterable[str] = ("",)) -> None:
        """Count a decision that somebody may want to know of; nothing is lost by it."""
        for name in names:
            self.notes.setdefault(kind, []).append(name)

    def bad(self, where: Path | str, kind: str, problems: Iterable[str]) -> None:
        """Raise UserError with a count and the first problems, if there are any; under `skip_bad` leave them out."""
        listed = list(problems)
        self.leave_out(kind, listed)
        self.num_bad += len(listed)
        if listed and not self.skip_bad:
            remedy = f" {self.path} lists all; --skip-bad goes on without them." if self.path else ""
            raise UserError(f"{where}: {len(listed)} {kind}: {_first(listed, '; ')}.{remedy}")

    def usable(self, rows: Iterable[tuple[str, T]], read: Callable[[T], U]) -> Iterator[tuple[str, U]]:
        """What `read` makes of each row, with its place. A row that it refuses (UserError) goes to `bad_rows`."""
        for place, row in rows:
            try:
                made = read(row)
            except UserError as error:
                self.bad_rows.append(f"{place}: {error}")
            else:
                yield place, made

    def lines(self) -> list[str]:
        """One line for each kind that was left out."""
        return [f"left out: {len(names)} {kind}: {_first(names, ', ')}" for kind, names in self.left_out.items()]

    def note_lines(self) -> list[str]:
        """One line for each kind of decision."""
        told = {kind: [name for name in names if name] for kind, names in self.notes.items()}
        return [f"{kind}: {len(names)} ({_first(names, ', ')})" if names else kind for kind, names in told.items()]

    def to_json(self) -> dict[str, Any]:
        """Kinds with counts and first names, for machines."""
        all_names = self.left_out.items()
        return {
            "left_out": [{"kind": kind, "count": len(names), "first": names[:_SHOWN]} for kind, names in all_names],
            "notes": self.note_lines(),
            "report": str(self.path) if self.path and self.left_out else None,
            "outcome": self.outcome or "written",
        }

    def write(self) -> None:
        """Write all names to `path`, a line each: kind, tab, name. With nothing left out, remove an earlier file."""
        rows = [f"{kind}\t{' '.join(name.split())}\n" for kind, names in self.left_out.items() for name in names]
        if self.path is not None and rows:
            write_bytes(self.path, "".join(["left out\tname\n", *rows]).encode(errors="replace"))
        elif self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a corpus is read, and where its files are looked for."""

    cache: Path = field(default_factory=default_cache)
    root: Path | None = None  # the folder of a known corpus, or that of its archives
    base_url: str | None = None
    download: bool = False
    parts: tuple[str, ...] = ()  # which of the publisher's; empty for all
    audio_to: Path = Path("audio")  # where sound goes that lies inside other files
    columns: Mapping[str, str] = field(default_factory=dict)  # what → the column that has it
    report: Report = field(default_factory=Report)
    progress: Progress = no_progress
    # ids whose channel counts only where the file has several: a table says it of sides that may have own files
    told: set[str] = field(default_factory=set)


def _first(names: Sequence[str], between: str) -> str:
    return some(map(_short, names), _SHOWN, between)


def _short(line: str) -> str:
    line = line.rstrip(".")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"


def sort_files(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Of some files those with sound: what libsndfile reads, and what it does not though its ending says sound."""
    readable, other = [], []
    for path in files:
        ending = path.suffix.lower()
        if ending in _READABLE or (ending in _OTHER_SOUND and _opens(path)):
            readable.append(path)
        elif ending in _OTHER_SOUND:
            other.append(path)
    return readable, other


def is_sound(name: str) -> bool:
    """Whether a cell names an audio file, by its ending."""
    return Path(name).suffix.lower() in _READABLE | _OTHER_SOUND


def _opens(path: Path) -> bool:
    try:
        soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError):  # TypeError: .raw has no header
        return False
    return True


def is_hidden(name: str) -> bool:
    """Whether systems and editors hide a file or folder of that name: .x, ._x (macOS), __MACOSX, Thumbs.db ..."""
    return name.startswith(".") or name in _HIDDEN


def walk(folder: Path, report: Report, *, depth: int | None = None) -> list[Path]:
    """The files below a folder, sorted; with `depth=1` those right in it.

    Links are followed, but a folder is read once and no link to a folder above the first is followed. Hidden files are
    left out, and said. Raises UserError for a folder that cannot be opened.
    """
    root = Path(os.path.realpath(folder))
    seen: set[Path] = set()
    files: list[Path] = []
    linked: list[Path] = []

    def enter(here: Path, level: int) -> None:
        real = Path(os.path.realpath(here))
        if real in seen or (real != root and root.is_relative_to(real)):
            name = str(here.relative_to(folder))
            report.note("linked folders that were read under another name, or lie above", [name])
            return
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            why = error.strerror
            raise UserError(f"{here} must be a folder that can be read, but cannot be opened ({why}).") from None
        for entry in entries:
            path = here / entry.name
            if is_hidden(entry.name):
                name = str(path.relative_to(folder))
                report.leave_out("hidden files or folders", [name + "/" if path.is_dir() else name])
            elif path.is_dir():
                if depth is None or level < depth:
                    linked.append(path) if entry.is_symlink() else enter(path, level + 1)
            elif path.is_file() or not path.exists():  # a link that leads nowhere is named with its sound
                files.append(path)

    enter(folder, 1)
    while linked:  # after the folders that are no links, so that these give the names
        enter(linked.pop(0), 2)
    return sorted(files)


def find_audio(name: str, folder: Path, report: Report | None = None) -> str:
    """A path in data files → an absolute one, from the file's folder, one of the three above, or the working directory.

    Kaldi's and lhotse's paths are relative to where their recipe ran. Where there is no such file, one whose name is
    written otherwise is taken, and noted: with other separators (Windows), accents (macOS) or case, if only one is like
    that. Nothing found: relative to the folder, for the error to name.
    """
    if name.startswith("file://"):
        name = url2pathname(urlsplit(name).path)
    if "://" in name:
        return name
    bases = (folder.absolute(), *folder.absolute().parents[:_PARENTS], Path.cwd())
    spelled = [base / written for written in dict.fromkeys((name, name.replace("\\", "/"))) for base in bases]
    if found := next(filter(None, map(_there, spelled[: len(bases)])), None):
        return os.path.normpath(found)
    if found := next(filter(None, map(_there_by_another_spelling, spelled)), None):
        if report is not None:
            report.note("audio files are found under names that are written otherwise (\\, accents, case)", [name])
        return os.path.normpath(found)
    return os.path.normpath(bases[0] / name)


def _there(path: Path) -> Path | None:
    return path if os.path.exists(path) else None  # noqa: PTH110 - it raises nothing for a name too long or with a NUL


def _there_by_another_spelling(path: Path) -> Path | None:
    if _there(path):
        return path
    folder = _there_by_another_spelling(path.parent) if path.name else None
    if folder is None or not folder.is_dir():
        return None
    name = _names_in(folder, folder.stat().st_mtime_ns).get(plain_name(path.name))
    return folder / name if name else None


@lru_cache(maxsize=256)
def _names_in(folder: Path, _time: int) -> dict[str, str]:
    """Each name without case, its accents composed → the name as it is; of several that become one, none."""
    names = [entry.name for entry in os.scandir(folder)]
    often = Counter(map(plain_name, names))
    return {plain_name(name): name for name in names if often[plain_name(name)] == 1}


def plain_name(name: str) -> str:
    """A name without case, its accents composed."""
    return unicodedata.normalize("NFC", name).casefold()


def plain_fields(fields: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """What a manifest can keep of another tool's fields beside its own: text, finite numbers, yes or no."""
    others = {key: value for key, value in fields.items() if key not in KNOWN_FIELDS}
    finite = {key: value for key, value in others.items() if not isinstance(value, float) or math.isfinite(value)}
    return {key: value for key, value in finite.items() if isinstance(value, str | int | float)}


def split_named(name: str) -> str | None:
    """The split that a name of a file or part tells of by one of its words; None where it tells of none or several."""
    told = {_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS}
    return told.pop() if len(told) == 1 else None


def split_called(value: str) -> str:
    """The split that a table's cell says: train, dev or test under its other names (valid, eval ...), else the cell."""
    return _SPLITS.get(value.strip().lower(), value)


def channel_of(value: object, *, first: int = 0) -> int:
    """A channel as tables write it → its number from 0: A, B, C ... or a whole number, the first of which is `first`.

    Kaldi's segments count from 0, its reco2file_and_channel and NIST's CTM and STM from 1. Raises UserError.
    """
    text = str(value).strip()
    if re.fullmatch(r"[A-Ha-h]", text):
        return ord(text.upper()) - ord("A")
    if not isinstance(value, bool) and re.fullmatch(r"\d{1,4}", text) and int(text) >= first:
        return int(text) - first
    raise UserError(
        f"channel must be A, B ... or a whole number, the first being {first}, but is '{text:.60}' instead."
    )


_SOUND_ENDINGS = {"WAV": ".wav", "WAVEX": ".wav", "RF64": ".wav", "FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3",
    "MPEG": ".mp3", "NIST": ".sph",
                  "AIFF": ".aiff", "W64": ".w64", "AU": ".au", "CAF": ".caf"}  # fmt: skip


def write_sound(data: bytes, folder: Path, what: str) -> Path:
    """Write encoded sound below `folder` as it is, once, under a name by its digest, so that other sound never gets the
    name of what lies there. Raises UserError, which begins with `what`, where the bytes are no sound."""
    try:
        ending = _SOUND_ENDINGS.get(soundfile.info(io.BytesIO(data)).format, ".audio")
    except (soundfile.LibsndfileError, TypeError):
        raise UserError(f"{what} must have sound (WAV, FLAC, MP3 or the like), but its bytes are none.") from None
    path = folder.absolute() / f"{hashlib.sha256(data).hexdigest()[:32]}{ending}"
    if not (path.exists() and path.stat().st_size == len(data) and path.read_bytes() == data):
        write_bytes(path, data)
    return path


def collect(found: Iterable[Row], where: Path | str, options: Options) -> Manifest:
    """The manifest of what was found in `where`; durations that are not given are filled in from the audio.

    Raises UserError for no utterances, a duplicate id (with both places), and one that lists unusable rows and audio.
    """
    read = list(found)
    given = [(place, replace(u, speaker=None) if _is_nobody(u.speaker) else u) for place, u in read]
    nobody = dict.fromkeys(str(u.speaker) for _, u in read if _is_nobody(u.speaker))
    options.report.note("names of speakers that say that none is known, and are left out", nobody)
    options.report.bad(where, "rows cannot be used", options.report.bad_rows)
    if not given:
        raise UserError(f"{where} must list utterances, but lists none.")
    place_of: dict[str, str] = {}
    for place, u in given:
        if u.id in place_of:
            both = f"'{u.id}' stands at {place_of[u.id]} too"
            raise UserError(f"{place}: id must be unique, but {both}. Give each utterance its own id.")
        place_of[u.id] = place
    paths = [u.audio_filepath for _, u in given if u.audio_filepath and "://" not in u.audio_filepath]
    headers, often = _headers(paths, options.progress), Counter(paths)
    done, problems, mixed, short, over = [], [], {}, [], []
    for place, u in given:
        header = headers.get(u.audio_filepath or "")
        measured = _measured(u, header, u.id in options.told)
        if isinstance(measured, str):
            problems.append(f"{place}: {measured}")
        else:
            done.append(measured)
            path = str(u.audio_filepath)
            if isinstance(header, AudioInfo) and header.channels > 1 and measured.channel is None:
                mixed[path] = Path(path).name
            length = header.duration_s if isinstance(header, AudioInfo) else 0.0
            if u.offset == 0 and u.duration is not None and u.duration < length - _ROUNDED_S and often[path] == 1:
                short.append(f"{u.id}: {u.duration:g} of {length:g} s")
            if u.duration is not None and measured.duration != u.duration:
                over.append(u.id)
    options.report.bad(where, "of the utterances have audio that cannot be used", problems)
    options.report.note("files with several channels, of which none was asked for: their mean is read", mixed.values())
    kind = "recordings are read to the duration that is given, and are longer (leave it out to read all)"
    options.report.note(kind, short)
    options.report.note(f"segments that end up to {_OVER_S} s after their recording are read to its end", over)
    if not done:
        raise UserError(f"{where} must list utterances with audio that can be used, but lists none.")
    _mention(done, where)
    return Manifest(done)


def _is_nobody(speaker: str | None) -> bool:
    return (speaker or "").strip().lower() in _NOBODY


def _headers(paths: Sequence[str], progress: Progress) -> dict[str, AudioInfo | str]:
    """Of each file what its header says, or what is wrong with it."""
    unique = list(dict.fromkeys(paths))

    def header(path: str) -> AudioInfo | str:
        try:
            return probe(path)
        except UserError as error:
            return str(error)

    headers: dict[str, AudioInfo | str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, result in zip(unique, pool.map(header, unique), strict=True):
            headers[path] = result
            progress(len(headers), len(unique))
    known = [(path, info.missing_s) for path, info in headers.items() if isinstance(info, AudioInfo)]
    cut_off = [(path, missing_s) for path, missing_s in known if missing_s > DURATION_TOLERANCE_S]
    if cut_off:
        text = "%d audio files are shorter than their headers say (cut off?), the first is %s: %.2f s are missing"
        logger.warning(text, len(cut_off), *cut_off[0])
    return headers


def _measured(u: Utterance, header: AudioInfo | str | None, is_told: bool) -> Utterance | str:
    """The utterance with its duration, or what is wrong with it."""
    if isinstance(header, str):
        return header
    if u.duration == 0.0:
        return f"utterance '{u.id}' must be longer than 0 s, but is not"
    if header is None:
        return u
    if header.channels == 1 and u.channel is not None and (u.channel == 0 or is_told):
        u = replace(u, channel=None)
    if u.channel is not None and u.channel >= header.channels:
        return (
            f"audio file {u.audio_filepath} must have channel {u.channel}, but has {header.channels} channels, the "
            f"first of which is 0 (utterance '{u.id}')"
        )
    left = header.duration_s - u.offset
    over = 0.0 if u.duration is None else u.duration - left
    if "recording" in u.extra and DURATION_TOLERANCE_S < over <= _OVER_S < left:
        u = replace(u, duration=left)
    if left <= 0 or (u.duration is not None and u.duration > left + DURATION_TOLERANCE_S):
        ends = f"ends at {u.offset + (u.duration or 0.0):.3f} s and {u.audio_filepath} at {header.duration_s:.3f} s"
        return f"utterance '{u.id}' must lie within its audio, but {ends}"
    return u if u.duration is not None else replace(u, duration=left)


def _mention(utterances: Sequence[Utterance], where: Path | str) -> None:
    silent = [u.id for u in utterances if not u.text.strip()]
    if silent:
        logger.warning("%s: %d utterances have no words, the first is '%s'", where, len(silent), silent[0])
    placed = (
        (u.audio_filepath, -1 if u.channel is None else u.channel, u.offset, u.duration, u.id)
        for u in utterances
        if u.audio_filepath and u.duration is not None
    )
    overlapping, before, stop = [], ("", -1), 0.0
    for path, channel, offset, duration, name in sorted(placed, key=lambda row: row[:3]):
        if (path, channel) != before:
            before, stop = (path, channel), 0.0
        if offset < stop - DURATION_TOLERANCE_S:
            overlapping.append(name)
        stop = max(stop, offset + duration)
    if overlapping:
        text = "%s: %d utterances overlap others of their recording, the first is '%s'"
        logger.warning(text, where, len(overlapping), overlapping[0])
