"""NeMo's manifests: JSONL with audio_filepath, text, and where they are there duration, offset, speaker.

- A folder of such files is read whole; a file whose name has a word like train, dev, valid or test gives its utterances that split.
- NeMo has no ids: an `id` is taken where there is one; else it is the audio's path without its ending below the folder that all
  files share, and where there is an offset its milliseconds.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hkd import lines
from hkd.corpora.collect import collect, find_audio, split_named
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance, parse_json
from hkd.progress import Progress, no_progress

_TAKEN = ("id", "audio_filepath", "offset", "duration", "text", "speaker", "split")
Row = tuple[str, dict[str, Any]]


def nemo_files(folder: Path) -> list[Path]:
    """The manifests right in a folder."""
    return sorted(path for ending in ("*.json", "*.jsonl") for path in folder.glob(ending) if path.is_file())


def read_nemo(path: Path, *, progress: Progress = no_progress) -> Manifest:
    """A manifest, or all of a folder. Raises UserError with file and line."""
    files = nemo_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} must hold NeMo manifests (.json or .jsonl), but holds none.")
    rows = [row for file in files for row in _rows(file)]
    audio = [row["audio_filepath"] for _, row in rows]
    shared = os.path.commonpath([str(Path(name).parent) for name in audio]) if audio else ""
    return collect(((place, _utterance(place, row, shared)) for place, row in rows), path, progress=progress)


def _rows(path: Path) -> Iterator[Row]:
    told = split_named(path.stem)
    for number, line in lines.numbered_lines(path, "a NeMo manifest"):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = parse_json(line)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        if "audio_filepath" not in row and "shard_id" in row:
            raise UserError(
                f"{place}: tarred NeMo data cannot be read. Give the manifest of the sound files that it was made from."
            )
        for name, number_wanted in (("audio_filepath", False), ("text", False), ("offset", True), ("duration", True)):
            value = row.get(name)
            if value is None and not number_wanted:
                raise UserError(f"{place}: field '{name}' must be there, but is missing.")
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float if number_wanted else str)):
                what = "a number of seconds" if number_wanted else "a string"
                raise UserError(f"{place}: field '{name}' must be {what}, but is {str(value)[:60]!r} instead.")
        row["audio_filepath"] = find_audio(row["audio_filepath"], path.parent)
        yield place, row if told is None else {**row, "split": row.get("split") or told}


def _utterance(place: str, row: dict[str, Any], shared: str) -> Utterance:
    offset = float(row.get("offset") or 0.0)
    name = str(row["id"]) if row.get("id") is not None else _name(row["audio_filepath"], offset, shared)
    extra = {key: value for key, value in row.items() if key not in _TAKEN}
    if row.get("split") is not None:
        extra["split"] = row["split"]
    try:
        return Utterance(
            id=name,
            text=" ".join(row["text"].split()),
            audio_filepath=row["audio_filepath"],
            offset=offset,
            duration=None if row.get("duration") is None else float(row["duration"]),
            speaker=None if row.get("speaker") is None else str(row["speaker"]),
            extra=MappingProxyType(extra),
        )
    except (UserError, OverflowError) as error:
        raise UserError(f"{place}: {error}") from None


def _name(path: str, offset: float, shared: str) -> str:
    below = Path(os.path.relpath(path, shared) if "://" not in path else path).with_suffix("").as_posix()
    return f"{below}-{round(offset * 1000):07d}" if offset else below
