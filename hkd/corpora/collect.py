"""What every reader ends in: utterances with the places they were read at → a manifest whose audio is there and long enough.

- `Found`: (place, utterance), the place being what an error names: `FILE:LINE`.
- Every audio file's header is read once, by threads: what is missing, empty, no audio or too short is counted and listed, not met in training.
- Overlaps within a recording and utterances without words are allowed, and said.
"""

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from hkd.audio import DURATION_TOLERANCE_S, AudioInfo, probe
from hkd.errors import UserError
from hkd.manifest import KNOWN_FIELDS, Manifest, Utterance
from hkd.progress import Progress, no_progress

logger = logging.getLogger(__name__)

Found = tuple[str, Utterance]
_SPLITS = {
    "train": "train", "training": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "devel": "dev", "test": "test",
    "eval": "test",
}  # fmt: skip
_SHOWN = 3
_LONGEST = 400
_THREADS = 8
_PARENTS = 3


def refuse(problems: Iterable[str], where: Path | str, what: str) -> None:
    """Raise UserError with a count and the first few problems, if there are any."""
    listed = list(problems)
    if listed:
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        raise UserError(f"{where}: {len(listed)} {what}: {'; '.join(map(_short, listed[:_SHOWN]))}{more}.")


def _short(line: str) -> str:
    line = line.rstrip(".")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"


def find_audio(name: str, folder: Path) -> str:
    """A path as data files give it → an absolute one: relative to the file's folder, to one of the three above, or to the working directory.

    Kaldi's and lhotse's paths are relative to where their recipe ran. Nothing found: relative to the folder, for the error to name.
    """
    if "://" in name:
        return name
    bases = (folder.absolute(), *folder.absolute().parents[:_PARENTS], Path.cwd())
    for base in bases:
        if _exists(base / name):
            return os.path.normpath(base / name)
    return os.path.normpath(bases[0] / name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a loop of links, a name that is too long or has a NUL byte
        return False


def plain_fields(fields: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """What a manifest can keep of another tool's fields beside its own: text, finite numbers, yes or no."""
    return {
        key: value
        for key, value in fields.items()
        if key not in KNOWN_FIELDS
        and isinstance(value, str | int | float)
        and not (isinstance(value, float) and not math.isfinite(value))
    }


def split_named(name: str) -> str | None:
    """The split that a file's or a part's name tells of, by one of its words; None where it tells of none or of several."""
    told = {_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS}
    return told.pop() if len(told) == 1 else None


def collect(found: Iterable[Found], where: Path | str, *, progress: Progress = no_progress) -> Manifest:
    """The manifest of what was found in `where`; durations that are not given are filled in from the audio.

    Raises UserError for no utterances, for a duplicate id (with both places), and one that counts and lists unusable audio.
    """
    given = list(found)
    if not given:
        raise UserError(f"{where} must list utterances, but lists none.")
    place_of: dict[str, str] = {}
    for place, u in given:
        if u.id in place_of:
            raise UserError(
                f"{place}: id must be unique, but '{u.id}' stands at {place_of[u.id]} too. Give each utterance its own id."
            )
        place_of[u.id] = place
    headers = _headers([u.audio_filepath for _, u in given if u.audio_filepath and "://" not in u.audio_filepath], progress)
    done, problems = [], []
    for place, u in given:
        measured = _measured(u, headers.get(u.audio_filepath or ""))
        if isinstance(measured, str):
            problems.append(measured if str(where) == place else f"{place}: {measured}")
        else:
            done.append(measured)
    refuse(problems, where, "of the utterances have audio that cannot be used")
    _mention(done, where)
    return Manifest(done)


def _headers(paths: Sequence[str], progress: Progress) -> dict[str, AudioInfo | str]:
    """Of each file what its header says, or what is wrong with it."""
    unique = list(dict.fromkeys(paths))

    def header(path: str) -> AudioInfo | str:
        try:
            return probe(path)
        except UserError as error:
            return str(error)
        except ValueError as error:
            return f"audio file {path!r} cannot be opened ({error})."

    headers: dict[str, AudioInfo | str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, result in zip(unique, pool.map(header, unique), strict=True):
            headers[path] = result
            progress(len(headers), len(unique))
    return headers


def _measured(u: Utterance, header: AudioInfo | str | None) -> Utterance | str:
    """The utterance with its duration, or what is wrong with it."""
    if isinstance(header, str):
        return header
    if u.duration == 0.0:
        return f"utterance '{u.id}' must be longer than 0 s, but is not"
    if header is None:
        return u
    left = header.duration_s - u.offset
    if left <= 0 or (u.duration is not None and u.duration > left + DURATION_TOLERANCE_S):
        stop = u.offset + (u.duration or 0.0)
        return f"utterance '{u.id}' must lie within its audio, but ends at {stop:.3f} s and {u.audio_filepath} at {header.duration_s:.3f} s"
    return u if u.duration is not None else replace(u, duration=left)


def _mention(utterances: Sequence[Utterance], where: Path | str) -> None:
    silent = [u.id for u in utterances if not u.text.strip()]
    if silent:
        logger.warning("%s: %d utterances have no words, the first is '%s'", where, len(silent), silent[0])
    overlapping, stop, before = [], 0.0, ""
    for u in sorted(utterances, key=lambda u: (u.audio_filepath or "", u.offset)):
        if u.audio_filepath is None or u.duration is None:
            continue
        if u.audio_filepath == before and u.offset < stop - DURATION_TOLERANCE_S:
            overlapping.append(u.id)
        stop = max(stop, u.offset + u.duration) if u.audio_filepath == before else u.offset + u.duration
        before = u.audio_filepath
    if overlapping:
        logger.warning(
            "%s: %d utterances overlap others of their recording, the first is '%s'", where, len(overlapping), overlapping[0]
        )
