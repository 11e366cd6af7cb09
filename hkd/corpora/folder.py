"""A corpus of one's own: a folder of audio files with a .txt beside each, or one TSV, or a manifest made elsewhere.

- Folder: ids are the paths below the folder without their ending; the speaker is the sub-folder where there are several of them.
- TSV: a header names the columns: audio (or path, file, audio_filepath), text (or sentence, transcript), and where there are such: id,
  speaker (or client_id), split, offset, duration. Paths resolve against the TSV.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hkd import manifest
from hkd.audio import probe
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

AUDIO_ENDINGS = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})
_COLUMNS = {
    "audio": ("audio", "path", "file", "audio_filepath", "filename", "wav"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "id": ("id", "utt_id", "utterance"),
    "speaker": ("speaker", "client_id", "speaker_id"),
    "split": ("split",),
    "offset": ("offset",),
    "duration": ("duration",),
}
_SHOWN = 3


def refuse(problems: Iterable[str], where: Path, what: str) -> None:
    """Raise UserError with a count and the first few problems, if there are any."""
    listed = list(problems)
    if listed:
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        raise UserError(f"{where}: {len(listed)} {what}: {'; '.join(line.rstrip('.') for line in listed[:_SHOWN])}{more}.")


def with_durations(utterances: Iterable[Utterance], where: Path, *, progress: Progress = no_progress) -> Manifest:
    """Fill in the durations that are not given, from the audio's headers. Raises UserError that lists what cannot be read."""
    given = list(utterances)
    done, problems = [], []
    for number, u in enumerate(given, 1):
        duration = u.duration
        try:
            if duration is None and u.audio_filepath is not None:
                duration = probe(u.audio_filepath).duration_s - u.offset
            done.append(
                Utterance(
                    id=u.id,
                    text=u.text,
                    audio_filepath=u.audio_filepath,
                    offset=u.offset,
                    duration=duration,
                    speaker=u.speaker,
                    extra=u.extra,
                )
            )
        except UserError as error:
            problems.append(str(error))
        progress(number, len(given), broken=len(problems))
    refuse(problems, where, "of the audio files cannot be used")
    return Manifest(done)


def read_text(path: Path) -> str:
    """A transcript's text, lines joined. Raises UserError where it is not UTF-8."""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise UserError(f"transcript {path} must be UTF-8, but is not. Re-encode it.") from None
    except OSError as error:
        raise UserError(f"transcript {path}: {error.strerror}.") from None


def read_folder(folder: Path, *, progress: Progress = no_progress) -> Manifest:
    """Audio files with a .txt of the same name beside each. Raises UserError that lists audio without text, or where there is none."""
    audio = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_ENDINGS and path.is_file())
    if not audio:
        raise UserError(f"{folder} must hold audio files with a .txt beside each, but holds no audio.")
    refuse(
        (str(path.relative_to(folder)) for path in audio if not path.with_suffix(".txt").exists()),
        folder,
        "audio files have no .txt beside them",
    )
    several = len({path.parent for path in audio}) > 1
    utterances = []
    for path in audio:
        below = path.relative_to(folder)
        speaker = below.parts[0] if several and len(below.parts) > 1 else None
        name = below.with_suffix("").as_posix()
        utterances.append(
            Utterance(id=name, text=read_text(path.with_suffix(".txt")), audio_filepath=str(path.absolute()), speaker=speaker)
        )
    return with_durations(utterances, folder, progress=progress)


def read_tsv(path: Path, *, progress: Progress = no_progress) -> Manifest:
    """A table with a header. Raises UserError with file and line."""
    utterances = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            column = _columns(next(rows, []), path)
            for number, row in enumerate(rows, 2):
                if any(cell.strip() for cell in row):
                    utterances.append(_tsv_row(row, column, path, number))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} must be UTF-8, but is not. Re-encode it.") from None
    except csv.Error as error:
        raise UserError(f"{path} must be a table with tabs, but cannot be read as one ({error}).") from None
    if not utterances:
        raise UserError(f"{path} must list utterances, but is empty below its header.")
    return with_durations(utterances, path, progress=progress)


def _columns(header: list[str], path: Path) -> dict[str, int]:
    names = [cell.strip().lower() for cell in header]
    column = {key: names.index(name) for key, known in _COLUMNS.items() for name in known[::-1] if name in names}
    for key in ("audio", "text"):
        if key not in column:
            raise UserError(f"{path}:1: the header must name a column '{key}', but has {', '.join(names) or 'none'}.")
    return column


def _tsv_row(row: list[str], column: dict[str, int], path: Path, number: int) -> Utterance:
    if len(row) <= max(column.values()):
        raise UserError(f"{path}:{number}: a row must have {max(column.values()) + 1} columns or more, but has {len(row)}.")
    cell = {key: row[place].strip() for key, place in column.items()}
    times: dict[str, Any] = {}
    try:
        times = {key: float(cell[key]) for key in ("offset", "duration") if cell.get(key)}
        audio = Path(cell["audio"])
        return Utterance(
            id=cell.get("id") or audio.with_suffix("").as_posix(),
            text=cell["text"],
            audio_filepath=str((path.parent / audio).absolute()),
            speaker=cell.get("speaker") or None,
            extra=MappingProxyType({"split": cell["split"]} if cell.get("split") else {}),
            **times,
        )
    except (ValueError, UserError) as error:
        raise UserError(f"{path}:{number}: {error}") from None


def read_any(path: Path, *, progress: Progress = no_progress) -> Manifest:
    """A folder, a TSV or a manifest. Raises UserError for anything else."""
    if path.is_dir():
        return read_folder(path, progress=progress)
    if path.suffix == ".tsv":
        return read_tsv(path, progress=progress)
    if path.suffix == ".jsonl":
        return with_durations(manifest.read(path), path, progress=progress)
    raise UserError(f"{path} must be a folder, a .tsv or a .jsonl, but is none of them.")
