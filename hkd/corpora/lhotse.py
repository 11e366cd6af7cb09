"""lhotse's manifests: a CutSet, a RecordingSet with its SupervisionSet, a folder of either, or of Shar; its recipes.

- An utterance is a supervision, by its id. Names of files and parts that tell of train, dev or test give the split.
- The channel is a MonoCut's, as lhotse reads it; else the supervision's. All channels together are read as their mean.
- Sound in Shar's tar files is written out as it is. What else hkd does not do to sound is refused, not skipped: speed
  and other transforms, mixed or padded cuts, commands. Cuts and supervisions without a text are left out and counted.
"""

import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hkd.corpora.collect import Options, Report, Row, find_audio, plain_fields, split_named, walk, write_sound
from hkd.errors import MissingPackageError, UserError, first_line
from hkd.files import filled_lines
from hkd.manifest import Utterance, parse_json

ENDINGS = (".jsonl.gz", ".jsonl")
_REMEDY = "Save the cuts' audio first (CutSet.save_audios)."
_TOLERANCE_S = 1e-3
Items = Iterator[tuple[str, Any]]  # lhotse's items with their places


@dataclass(frozen=True, slots=True)
class _File:
    """What an item's paths are relative to, its split, and how data is read."""

    folder: Path
    split: str | None
    options: Options


def read_lhotse(path: Path, options: Options) -> Iterator[Row]:
    """Manifests of one file or folder. Raises UserError with file and line, MissingPackageError without lhotse."""
    _need_lhotse()
    report = options.report
    shar = ("cuts.*.jsonl*", "recording.*.tar")
    if path.is_dir() and all(next(path.glob(pattern), None) is not None for pattern in shar):
        sources = [(_shar(path), _File(path, split_named(path.name), options))]
    else:
        files = [p for p in walk(path, report, depth=1) if p.name.endswith(ENDINGS)] if path.is_dir() else [path]
        files = [file for file in files if "cuts" in file.name] or files
        if not files:
            raise UserError(f"{path} must hold lhotse's manifests (.jsonl.gz), but holds none.")
        sources = [(_items(file, report), _File(file.parent, split_named(file.name), options)) for file in files]
    recordings: dict[str, Any] = {}
    supervisions: list[tuple[str, Any, _File]] = []
    for items, file in sources:
        for place, item in items:
            if hasattr(item, "supervisions"):
                rows = [(place, supervision) for supervision in _of_cut(item, report)]
                yield from report.usable(rows, partial(_in_cut, item, file))
            elif hasattr(item, "sources"):
                recordings[item.id] = item
            elif hasattr(item, "recording_id"):
                supervisions.append((place, item, file))
            else:
                kind = type(item).__name__
                raise UserError(f"{place}: must be a recording, a supervision or a cut, but is a {kind} instead.")
    if path.is_file() and supervisions:
        recordings = {item.id: item for _, item in _items(_recordings_of(path), report)}
    if recordings and not supervisions:
        raise UserError(f"{path} must hold supervisions too, but holds recordings alone: there is no text.")
    spoken = {supervision.recording_id for _, supervision, _ in supervisions}
    report.leave_out("recordings without a supervision", [name for name in recordings if name not in spoken])
    found = ((place, (item, file)) for place, item, file in supervisions if _has_text(item, report))
    yield from report.usable(found, partial(_of_recording, recordings))


def _need_lhotse() -> None:
    try:
        import lhotse  # noqa: F401
    except ImportError:
        raise MissingPackageError("lhotse", "lhotse", "Reading lhotse's manifests") from None


def _recordings_of(path: Path) -> Path:
    """The file of recordings that belongs to a file of supervisions, by lhotse's names."""
    file = path.with_name(path.name.replace("supervisions", "recordings"))
    if file == path or not file.exists():
        wanted = f"whose recordings must lie beside it in {file.name}"
        raise UserError(f"{path} holds supervisions, {wanted}, but do not. Give the folder of both.")
    return file


def _said(error: Exception) -> str:
    """What lhotse raised. It checks with asserts and by calling constructors, so any exception means broken data."""
    return f"{type(error).__name__}: {first_line(error)}"


def _items(path: Path, report: Report) -> Items:
    """A manifest's items."""
    from lhotse.serialization import deserialize_item

    def read(line: str) -> Any:
        row = parse_json(line)
        try:
            return deserialize_item(row)
        except Exception as error:
            raise UserError(f"must be an item of lhotse's, but is not ({_said(error)}).") from None

    return report.usable(filled_lines(path, "a lhotse manifest"), read)


def _shar(path: Path) -> Items:
    from lhotse import CutSet

    cuts, number = iter(CutSet.from_shar(in_dir=str(path))), 0
    try:
        for number, cut in enumerate(cuts, 1):
            yield f"{path}: cut {number}", cut
    except Exception as error:
        raise UserError(f"{path}: cut {number + 1}: lhotse cannot read it ({_said(error)}).") from None


def _has_text(supervision: Any, report: Report) -> bool:
    if supervision.text is None:
        report.leave_out("supervisions without a text", [str(supervision.id)])
    return supervision.text is not None


def _of_recording(recordings: dict[str, Any], found: tuple[Any, _File]) -> Utterance:
    supervision, file = found
    recording = recordings.get(supervision.recording_id)
    if recording is None:
        whole = supervision.recording_id
        raise UserError(f"supervision '{supervision.id}' is cut from '{whole}', which is no known recording.")
    return _utterance(supervision, recording, supervision.start, file, supervision.channel)


def _of_cut(cut: Any, report: Report) -> list[Any]:
    """A cut's supervisions with a text."""
    if not cut.supervisions:
        report.leave_out("cuts without a supervision", [str(cut.id)])
    return [supervision for supervision in cut.supervisions if _has_text(supervision, report)]


def _in_cut(cut: Any, file: _File, supervision: Any) -> Utterance:
    if getattr(cut, "recording", None) is None:
        raise UserError(f"cut '{cut.id}' must have one recording, but is a {type(cut).__name__} without. {_REMEDY}")
    if supervision.start < -_TOLERANCE_S or supervision.end > cut.duration + _TOLERANCE_S:
        raise UserError(
            f"supervision '{supervision.id}' must lie within its cut, but is {supervision.start:g} to "
            f"{supervision.end:g} s of {cut.duration:g} s. Trim the cuts to their supervisions first."
        )
    channel = supervision.channel
    if isinstance(cut.channel, int):
        if channel not in (cut.channel, [cut.channel]):
            kind = "supervisions name another channel than their MonoCut, whose channel is read"
            file.options.report.note(kind, [f"{supervision.id}: {channel}, cut: {cut.channel}"])
        channel = cut.channel
    return _utterance(supervision, cut.recording, cut.start + max(0.0, supervision.start), file, channel)


def _utterance(supervision: Any, recording: Any, start: float, file: _File, channel: int | list[int]) -> Utterance:
    """A supervision that starts `start` seconds into its recording, of one or several of the recording's channels."""
    audio, column = _audio(recording, channel, file)
    extra = {**plain_fields(supervision.custom or {}), "recording": recording.id}
    if supervision.language:
        extra["language"] = supervision.language
    if file.split is not None:
        extra.setdefault("split", file.split)
    try:
        return Utterance(
            id=str(supervision.id), text=" ".join(str(supervision.text).split()), audio_filepath=audio,
            offset=float(start),
            duration=float(supervision.duration), channel=column, extra=extra,
            speaker=None if supervision.speaker is None else str(supervision.speaker),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UserError(f"supervision '{supervision.id}' must have times in seconds, but has not ({error}).") from None


def _audio(recording: Any, channel: int | list[int], file: _File) -> tuple[str, int | None]:
    """The file of a recording's channel, and which of its channels that is; None for the only one or the mean of all.

    Raises UserError for what hkd does not do to sound, and for a channel that the recording lacks.
    """
    name = f"recording '{recording.id}'"
    wanted = [channel] if isinstance(channel, int) else list(channel)
    known = [number for source in recording.sources for number in source.channels]
    if len(set(known)) != len(known):
        raise UserError(f"{name} must have each channel once, but has {known}. {_REMEDY}")
    sources = [source for source in recording.sources if set(wanted) & set(source.channels)]
    missing = sorted(set(wanted) - set(known))
    if missing:
        raise UserError(f"{name} must have channel {missing[0]}, but has {', '.join(map(str, known))}.")
    if len(sources) != 1 or (len(wanted) > 1 and set(wanted) != set(sources[0].channels)):
        asked = f"channels {wanted} of {known} are asked for"
        raise UserError(f"{name} must be read in one channel or in all of one file, but {asked}. {_REMEDY}")
    source = sources[0]
    if recording.transforms:
        raise UserError(f"{name} must be as it was recorded, but is to be transformed. {_REMEDY}")
    if source.type not in ("file", "memory"):
        raise UserError(f"{name} must be a file, but is a {source.type} ('{str(source.source)[:60]}'). {_REMEDY}")
    if source.type == "memory":
        path = str(write_sound(source.source, file.options.audio_to, name))
    else:
        path = find_audio(str(source.source), file.folder, file.options.report)
    return path, source.channels.index(wanted[0]) if len(source.channels) > 1 and len(wanted) == 1 else None


def recipe_rows(name: str, root: Path, options: Options) -> Iterator[Row]:
    """The corpus in `root` as lhotse's recipe of that name reads it; its parts become splits. Raises UserError."""
    _need_lhotse()
    import lhotse.recipes

    recipes = [found.removeprefix("prepare_") for found in dir(lhotse.recipes) if found.startswith("prepare_")]
    if name not in recipes:
        near = ", ".join(difflib.get_close_matches(name, recipes, n=3, cutoff=0.5)) or "none"
        raise UserError(f"{name} must be a path or a recipe of lhotse's, but is neither. Near: {near}.")
    prepare = getattr(lhotse.recipes, f"prepare_{name}")
    first = next(iter(inspect.signature(prepare).parameters))
    try:
        parts = prepare(**{first: str(root)})
    except Exception as error:
        raise UserError(f"lhotse's recipe {name} cannot read {root} ({_said(error)}).") from None
    for part, sets in ({"": parts} if "supervisions" in parts else parts).items():
        file = _File(root, split_named(part) or part or None, options)
        recordings = {recording.id: recording for recording in sets["recordings"]}
        rows = (
            (f"{root}: {part} supervision {number}", (supervision, file))
            for number, supervision in enumerate(sets.get("supervisions", ()), 1)
            if _has_text(supervision, options.report)
        )
        yield from options.report.usable(rows, partial(_of_recording, recordings))
