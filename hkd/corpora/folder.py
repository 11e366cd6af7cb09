"""A corpus of one's own: a folder of audio files with a .txt beside each, or with one TSV, or the TSV itself.

- Folder: ids are the paths below the folder without their ending; the speaker is the sub-folder where there are several of them.
- TSV: a header names the columns: audio (or path, file, audio_filepath), text (or sentence, transcript), and where there are such: id,
  speaker (or client_id), split, offset, duration. Paths resolve against the TSV.
"""

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hkd import lines
from hkd.corpora.collect import Found, collect, refuse
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

AUDIO_ENDINGS = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".sph"})
_COLUMNS = {
    "audio": ("audio", "path", "file", "audio_filepath", "filename", "file_name", "wav"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "id": ("id", "utt_id", "utterance"),
    "speaker": ("speaker", "client_id", "speaker_id"),
    "split": ("split",),
    "offset": ("offset",),
    "duration": ("duration",),
}


def read_text(path: Path) -> str:
    """A transcript's text, lines joined. Raises UserError where it is not UTF-8."""
    return " ".join(" ".join(line for _, line in lines.numbered_lines(path, "a transcript")).split())


def read_folder(folder: Path, *, progress: Progress = no_progress) -> Manifest:
    """Audio files with a .txt of the same name beside each, or one .tsv for all. Raises UserError that lists audio without text."""
    audio = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_ENDINGS and path.is_file())
    if not audio:
        raise UserError(f"{folder} must hold audio files with a .txt beside each, but holds no audio.")
    silent = [path for path in audio if not path.with_suffix(".txt").exists()]
    tables = sorted(folder.glob("*.tsv"))
    if len(silent) == len(audio) and len(tables) == 1:
        return read_tsv(tables[0], progress=progress)
    refuse((str(path.relative_to(folder)) for path in silent), folder, "audio files have no .txt beside them")
    several = len({path.parent for path in audio}) > 1
    found = []
    for path in audio:
        below = path.relative_to(folder)
        speaker = below.parts[0] if several and len(below.parts) > 1 else None
        text = read_text(path.with_suffix(".txt"))
        found.append(
            (
                str(path),
                Utterance(id=below.with_suffix("").as_posix(), text=text, audio_filepath=str(path.absolute()), speaker=speaker),
            )
        )
    return collect(found, folder, progress=progress)


def read_tsv(path: Path, *, progress: Progress = no_progress) -> Manifest:
    """A table with a header. Raises UserError with file and line."""
    return collect(tsv_rows(path), path, progress=progress)


def tsv_rows(path: Path, *, audio: Path | None = None, split: str | None = None) -> Iterator[Found]:
    """The rows of a table; `audio`: the folder that its paths are relative to, `split`: the one that all its rows are of."""
    rows = lines.numbered_lines(path, "a table")
    column = _columns(next(rows, (1, ""))[1].split("\t"), path)
    for number, line in rows:
        if line.strip():
            yield f"{path}:{number}", _tsv_row(line.split("\t"), column, path, number, audio or path.parent, split)


def _columns(header: list[str], path: Path) -> dict[str, int]:
    names = [cell.strip().lower() for cell in header]
    column = {key: names.index(name) for key, known in _COLUMNS.items() for name in known[::-1] if name in names}
    for key in ("audio", "text"):
        if key not in column:
            raise UserError(
                f"{path}:1: the header must name a column '{key}', but has {', '.join(filter(None, names)) or 'none'}."
            )
    return column


def _tsv_row(row: list[str], column: dict[str, int], path: Path, number: int, audio: Path, split: str | None) -> Utterance:
    if len(row) <= max(column.values()):
        raise UserError(f"{path}:{number}: a row must have {max(column.values()) + 1} columns or more, but has {len(row)}.")
    cell = {key: row[place].strip() for key, place in column.items()}
    if not cell["audio"]:
        raise UserError(f"{path}:{number}: a row must name its audio file, but does not.")
    times: dict[str, Any] = {}
    for key in ("offset", "duration"):
        try:
            times |= {key: float(cell[key])} if cell.get(key) else {}
        except ValueError:
            raise UserError(f"{path}:{number}: {key} must be a number of seconds, but is '{cell[key][:60]}' instead.") from None
    name, split = Path(cell["audio"]), split or cell.get("split")
    try:
        return Utterance(
            id=cell.get("id") or name.with_suffix("").as_posix(),
            text=cell["text"],
            audio_filepath=str((audio / name).absolute()),
            speaker=cell.get("speaker") or None,
            extra=MappingProxyType({"split": split} if split else {}),
            **times,
        )
    except UserError as error:
        raise UserError(f"{path}:{number}: {error}") from None
