"""Hugging Face audio data sets: folders of save_to_disk, of parquet or of audio with metadata, a .parquet, or names on the hub (NAME or NAME:CONFIG).

- Rows are read as Arrow: sound is never decoded here, its bytes are written out as they are; files on disk stay where they are.
- Columns by name: text (or sentence, transcript, transcription ...), id, speaker_id ...; the audio column by its type. Rows without an
  id are called SPLIT-NUMBER.
- `validation` becomes `dev`. A data set whose only split is `train` has no splits: they are made as for any corpus without.
"""

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hkd import lines
from hkd.corpora.collect import Found, collect, plain_fields, split_named
from hkd.corpora.container import write_out
from hkd.errors import HkdError, UserError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

_BATCH_ROWS = 32
_COLUMNS = {
    "text": ("text", "sentence", "transcript", "transcription", "normalized_text", "raw_text", "normalized_transcription"),
    "id": ("id", "utt_id", "utterance_id", "segment_id"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}


def read_hf(source: str, *, audio_to: Path, progress: Progress = no_progress) -> Manifest:
    """All splits of a data set; sound that lies inside it is written below `audio_to`. Raises UserError, HkdError."""
    import datasets

    try:
        splits = _open(source)
        alone = len(splits) == 1 and next(iter(splits)) in ("train", "")
        found: list[Found] = []
        for name, rows in splits.items():
            split = None if alone else split_named(name) or name
            found += _rows(rows, source, name, split, audio_to, progress)
    except HkdError:
        raise
    except (ConnectionError, TimeoutError) as error:
        raise HkdError(
            f"data set {source} could not be reached ({lines.first_line(error)}). Try again, or give a folder."
        ) from None
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"data set {source} must be one that `datasets` can read, but it says: {lines.first_line(error)}."
        ) from None
    return collect(found, source, progress=progress)


def _open(source: str) -> Mapping[str, Any]:
    """Split → rows. What is not in Arrow already is streamed: no copy goes to a cache."""
    import datasets

    datasets.disable_progress_bars()
    path = Path(source)
    if path.suffix == ".parquet":
        opened = datasets.load_dataset("parquet", data_files=str(path), streaming=True)
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        opened = datasets.load_from_disk(source)
    elif path.exists():
        opened = datasets.load_dataset(source, streaming=True)
    else:
        name, _, config = source.partition(":")
        opened = datasets.load_dataset(name, config or None, streaming=True)
    return opened if isinstance(opened, Mapping) else {"": opened}


def _rows(rows: Any, source: str, name: str, split: str | None, audio_to: Path, progress: Progress) -> Iterator[Found]:
    column = _columns(rows, source)
    total = getattr(rows, "num_rows", 0)
    number = 0
    for batch in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        for row in batch.to_pylist():
            place = f"{source}: {name or 'row'} {number}"
            yield place, _utterance(row, column, place, f"{name or 'row'}-{number:07d}", split, audio_to)
            number += 1
        if total:
            progress(number, total)


def _columns(rows: Any, source: str) -> dict[str, str]:
    """What → column. Raises UserError where there is no audio or no text."""
    import datasets

    features = rows.features or {}
    names = {name.lower(): name for name in features}
    column = {what: names[known] for what, candidates in _COLUMNS.items() for known in candidates[::-1] if known in names}
    audio = [name for name, feature in features.items() if isinstance(feature, datasets.Audio) or _is_bytes_and_path(feature)]
    if audio:
        column["audio"] = audio[0]
    for what in ("audio", "text"):
        if what not in column:
            raise UserError(f"data set {source} must have a column of {what}, but has {', '.join(features) or 'none'}.")
    return column


def _is_bytes_and_path(feature: Any) -> bool:
    return isinstance(feature, Mapping) and {"bytes", "path"} <= set(feature)


def _utterance(
    row: dict[str, Any], column: dict[str, str], place: str, name: str, split: str | None, audio_to: Path
) -> Utterance:
    sound, text = row[column["audio"]], row[column["text"]]
    if "id" in column and row[column["id"]] is not None:
        name = str(row[column["id"]])
    if not isinstance(text, str):
        raise UserError(f"{place}: '{name}' must have a text, but has {text!r:.60} instead.")
    if not sound or (sound["bytes"] is None and not sound["path"]):
        raise UserError(f"{place}: '{name}' must have audio, but has none.")
    speaker = row.get(column.get("speaker", ""))
    taken = set(column.values())
    extra = plain_fields({key: value for key, value in row.items() if key not in taken})
    if split is not None:
        extra["split"] = split
    return Utterance(
        id=name,
        text=" ".join(text.split()),
        audio_filepath=str(_file(sound, name, audio_to, place)),
        speaker=None if speaker is None else str(speaker),
        extra=MappingProxyType(extra),
    )


def _file(sound: dict[str, Any], name: str, audio_to: Path, place: str) -> Path:
    data, path = sound["bytes"], sound["path"]
    if data is None and "://" not in path:
        return Path(path).absolute()
    if data is None:
        import fsspec

        with fsspec.open(path, "rb") as file:
            data = file.read()
    return write_out(data, name, audio_to, place)
