"""lhotse's manifests: a CutSet, a RecordingSet with its SupervisionSet, a folder of either, or a Shar folder; and lhotse's recipes.

- An utterance is a supervision; its id is the supervision's. Names of files and parts that tell of train, dev or test give the split.
- The channel is a MonoCut's, as lhotse reads it; else the supervision's. A supervision of all channels is read as their mean.
- Sound in Shar's tar files is written out as it is. What else hkd does not do to sound is refused, not skipped: speed and other transforms,
  mixed or padded cuts, commands. Cuts without a supervision are left out and counted.
"""

import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkd import lines
from hkd.corpora.collect import Options, Row, collect, find_audio, plain_fields, split_named, walk, write_sound
from hkd.errors import MissingPackageError, UserError
from hkd.manifest import Manifest, Utterance, parse_json

ENDINGS = (".jsonl.gz", ".jsonl")
_REMEDY = "Save the cuts' audio first (CutSet.save_audios)."
_TOLERANCE_S = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class _Where:
    """Where an item stands (`place` for errors), what its paths are relative to, and its split."""

    place: str
    folder: Path
    split: str | None
    options: Options


def read_lhotse(path: Path, options: Options | None = None) -> Manifest:
    """Manifests of one file or folder. Raises UserError with file and line, MissingPackageError without lhotse."""
    _need_lhotse()
    options = options or Options()
    report = options.report
    if (
        path.is_dir()
        and next(path.glob("cuts.*.jsonl*"), None) is not None
        and next(path.glob("recording.*.tar"), None) is not None
    ):
        return collect(_shar(path, options), path, report=report, progress=options.progress)
    files = [p for p in walk(path, report, depth=1) if p.name.endswith(ENDINGS)] if path.is_dir() else [path]
    files = [file for file in files if "cuts" in file.name] or files
    if not files:
        raise UserError(f"{path} must hold lhotse's manifests (.jsonl.gz), but holds none.")
    recordings: dict[str, Any] = {}
    supervisions: list[tuple[_Where, Any]] = []
    found: list[Row] = []
    for file in files:
        for place, item in _items(file):
            where = _Where(place=place, folder=file.parent, split=split_named(file.name), options=options)
            if hasattr(item, "supervisions"):
                found += _of_cut(item, where)
            elif hasattr(item, "sources"):
                recordings[item.id] = item
            elif hasattr(item, "recording_id"):
                supervisions.append((where, item))
            else:
                raise UserError(f"{place}: must be a recording, a supervision or a cut, but is a {type(item).__name__} instead.")
    if path.is_file() and supervisions:
        recordings = {item.id: item for _, item in _items(_recordings_of(path))}
    if recordings and not supervisions:
        raise UserError(f"{path} must hold supervisions too, but holds recordings alone: there is no text.")
    spoken = {supervision.recording_id for _, supervision in supervisions}
    report.leave_out("recordings without a supervision", [name for name in recordings if name not in spoken])
    found += [_of_supervision(supervision, recordings, where) for where, supervision in supervisions]
    return collect(found, path, report=report, progress=options.progress)


def _need_lhotse() -> None:
    try:
        import lhotse  # noqa: F401
    except ImportError:
        raise MissingPackageError("lhotse", "lhotse", "Reading lhotse's manifests") from None


def _recordings_of(path: Path) -> Path:
    """The file of recordings that belongs to a file of supervisions, by lhotse's names."""
    file = path.with_name(path.name.replace("supervisions", "recordings"))
    if file == path or not file.exists():
        raise UserError(
            f"{path} holds supervisions, whose recordings must lie beside it in {file.name}, but do not. Give the folder of both."
        )
    return file


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """A manifest's items with their places. Raises UserError with file and line."""
    from lhotse.serialization import deserialize_item

    for number, line in lines.numbered_lines(path, "a lhotse manifest"):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield place, deserialize_item(parse_json(line))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        except Exception as error:  # lhotse checks with asserts and by calling constructors: any exception means a broken item
            raise UserError(
                f"{place}: must be an item of lhotse's, but is not ({type(error).__name__}: {lines.first_line(error)})."
            ) from None


def _shar(path: Path, options: Options) -> Iterator[Row]:
    from lhotse import CutSet

    number = 0
    cuts = iter(CutSet.from_shar(in_dir=str(path)))
    while True:
        number += 1
        place = f"{path}: cut {number}"
        try:
            cut = next(cuts)
        except StopIteration:
            return
        except Exception as error:
            raise UserError(f"{place}: lhotse cannot read it ({type(error).__name__}: {lines.first_line(error)}).") from None
        yield from _of_cut(cut, _Where(place=place, folder=path, split=split_named(path.name), options=options))


def _of_supervision(supervision: Any, recordings: dict[str, Any], where: _Where) -> Row:
    recording = recordings.get(supervision.recording_id)
    if recording is None:
        raise UserError(
            f"{where.place}: supervision '{supervision.id}' is cut from '{supervision.recording_id}', which is no known recording."
        )
    return where.place, _utterance(supervision, recording, supervision.start, where, supervision.channel)


def _of_cut(cut: Any, where: _Where) -> Iterator[Row]:
    if getattr(cut, "recording", None) is None:
        raise UserError(
            f"{where.place}: cut '{cut.id}' must have one recording, but is a {type(cut).__name__} without. {_REMEDY}"
        )
    report = where.options.report
    if not cut.supervisions:
        report.leave_out("cuts without a supervision", [str(cut.id)])
    for supervision in cut.supervisions:
        if supervision.start < -_TOLERANCE_S or supervision.end > cut.duration + _TOLERANCE_S:
            raise UserError(
                f"{where.place}: supervision '{supervision.id}' must lie within its cut, but is {supervision.start:g} to {supervision.end:g} s "
                f"of {cut.duration:g} s. Trim the cuts to their supervisions first."
            )
        channel = supervision.channel
        if isinstance(cut.channel, int):
            if channel not in (cut.channel, [cut.channel]):
                kind = "supervisions name another channel than their MonoCut, whose channel is read"
                report.note(kind, [f"{supervision.id}: {channel}, cut: {cut.channel}"])
            channel = cut.channel
        yield where.place, _utterance(supervision, cut.recording, cut.start + max(0.0, supervision.start), where, channel)


def _utterance(supervision: Any, recording: Any, start: float, where: _Where, channel: int | list[int]) -> Utterance:
    """A supervision that starts `start` seconds into its recording, of one or several of the recording's channels."""
    if supervision.text is None:
        raise UserError(f"{where.place}: supervision '{supervision.id}' must have a text, but has none.")
    audio, column = _audio(recording, channel, where)
    extra = {
        **plain_fields(supervision.custom or {}),
        "recording": recording.id,
        **({"language": supervision.language} if supervision.language else {}),
    }
    if where.split is not None:
        extra.setdefault("split", where.split)
    try:
        return Utterance(
            id=str(supervision.id),
            text=" ".join(str(supervision.text).split()),
            audio_filepath=audio,
            offset=float(start),
            duration=float(supervision.duration),
            channel=column,
            speaker=None if supervision.speaker is None else str(supervision.speaker),
            extra=extra,
        )
    except UserError as error:
        raise UserError(f"{where.place}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where.place}: supervision '{supervision.id}' must have times in seconds, but has not ({error})."
        ) from None


def _audio(recording: Any, channel: int | list[int], where: _Where) -> tuple[str, int | None]:
    """The file that has a channel of a recording, and which of the file's channels it is; None for the only one or the mean of all.

    Raises UserError for what hkd does not do to sound, and for a channel that the recording lacks.
    """
    name = f"{where.place}: recording '{recording.id}'"
    wanted = [channel] if isinstance(channel, int) else list(channel)
    known = [number for source in recording.sources for number in source.channels]
    if len(set(known)) != len(known):
        raise UserError(f"{name} must have each channel once, but has {known}. {_REMEDY}")
    sources = [source for source in recording.sources if set(wanted) & set(source.channels)]
    missing = sorted(set(wanted) - set(known))
    if missing:
        raise UserError(f"{name} must have channel {missing[0]}, but has {', '.join(map(str, known))}.")
    if len(sources) != 1 or (len(wanted) > 1 and set(wanted) != set(sources[0].channels)):
        raise UserError(
            f"{name} must be read in one channel or in all of one file, but channels {wanted} of {known} are asked for. {_REMEDY}"
        )
    source = sources[0]
    if recording.transforms:
        raise UserError(f"{name} must be as it was recorded, but is to be transformed. {_REMEDY}")
    if source.type not in ("file", "memory"):
        raise UserError(f"{name} must be a file, but is a {source.type} ('{str(source.source)[:60]}'). {_REMEDY}")
    if source.type == "memory":
        path = str(write_sound(source.source, where.options.audio_to, name))
    else:
        path = find_audio(str(source.source), where.folder)
    return path, source.channels.index(wanted[0]) if len(source.channels) > 1 and len(wanted) == 1 else None


def read_recipe(name: str, root: Path, options: Options | None = None) -> Manifest:
    """The corpus in `root` as lhotse's recipe of that name reads it; its parts become splits. Raises UserError."""
    _need_lhotse()
    import lhotse.recipes

    options = options or Options()
    recipes = [found.removeprefix("prepare_") for found in dir(lhotse.recipes) if found.startswith("prepare_")]
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=3, cutoff=0.5)
        raise UserError(f"{name} must be a path or a recipe of lhotse's, but is neither. Near: {', '.join(near) or 'none'}.")
    prepare = getattr(lhotse.recipes, f"prepare_{name}")
    first = next(iter(inspect.signature(prepare).parameters))
    try:
        parts = prepare(**{first: str(root)})
    except Exception as error:  # recipes check with asserts and open files as they go
        raise UserError(
            f"lhotse's recipe {name} cannot read {root} ({type(error).__name__}: {lines.first_line(error)})."
        ) from None
    if "supervisions" in parts:
        parts = {"": parts}
    found: list[Row] = []
    for part, sets in parts.items():
        recordings = {recording.id: recording for recording in sets["recordings"]}
        for number, supervision in enumerate(sets.get("supervisions", ()), 1):
            place = f"{root}: {part} supervision {number}"
            where = _Where(place=place, folder=root, split=split_named(part) or part or None, options=options)
            found.append(_of_supervision(supervision, recordings, where))
    return collect(found, root, report=options.report, progress=options.progress)
