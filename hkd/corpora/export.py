"""A manifest for other tools: NeMo's JSONL, lhotse's recordings, supervisions and cuts, Kaldi's data folders; one set
of files a split.

- Paths are absolute. The same manifest gives the same bytes.
- What a format has no place for stays out: Kaldi has no extra fields; NeMo and lhotse carry them all.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hkd.audio import AudioInfo, probe
from hkd.errors import MissingPackageError, UserError
from hkd.files import write_bytes
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

_WHOLE_TOLERANCE_S = 1e-3


def export(whole: Manifest, to: str, folder: Path, *, progress: Progress = no_progress) -> list[Path]:
    """Write a manifest in another format below `folder`; the paths that were written. Raises UserError,
    MissingPackageError."""
    if to not in FORMATS:
        raise UserError(f"--to must be one of {', '.join(FORMATS)}, but is '{to}' instead.")
    silent = [u.id for u in whole if u.audio_filepath is None]
    if silent:
        raise UserError(
            f"utterances must have audio to be exported, but {len(silent)} have none, '{silent[0]}' among them."
        )
    splits: dict[str, list[Utterance]] = defaultdict(list)
    for u in whole:
        splits[u.split or ""].append(u)
    written: list[Path] = []
    for number, (split, utterances) in enumerate(sorted(splits.items()), 1):
        for name, data in FORMATS[to](split, utterances).items():
            write_bytes(folder / name, data)
            written.append(folder / name)
        progress(number, len(splits))
    return written


def _jsonl(rows: Iterable[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


def nemo(split: str, utterances: list[Utterance]) -> dict[str, bytes]:
    """SPLIT.json: NeMo's fields, and ours beside them."""
    names = "audio_filepath", "offset", "duration", "text", "id", "speaker", "channel"
    rows = []
    for u in utterances:
        row = {"channel_selector" if name == "channel" else name: getattr(u, name) for name in names}
        rows.append({**{key: value for key, value in row.items() if value is not None}, **u.extra})
    return {f"{split or 'manifest'}.json": _jsonl(rows)}


def _headers(utterances: list[Utterance]) -> dict[str, AudioInfo]:
    return {path: probe(path) for path in dict.fromkeys(str(u.audio_filepath) for u in utterances)}


def _recording_names(utterances: list[Utterance]) -> dict[str, str]:
    """Audio file → its recording's name: the utterance's id where the file has one utterance, else the field
    `recording`, else the file's stem.

    Raises UserError where two files would have one name.
    """
    of_file: dict[str, list[Utterance]] = defaultdict(list)
    for u in utterances:
        of_file[str(u.audio_filepath)].append(u)
    path_of: dict[str, str] = {}
    for path, found in of_file.items():
        name = found[0].id if len(found) == 1 else str(found[0].extra.get("recording") or Path(path).stem)
        if name in path_of:
            both = f"{path_of[name]} and {path} are both '{name}'"
            raise UserError(f"recordings must have names of their own, but {both}. Set the field recording.")
        path_of[name] = path
    return {path: name for name, path in path_of.items()}


def lhotse(split: str, utterances: list[Utterance]) -> dict[str, bytes]:
    """hkd_{recordings,supervisions,cuts}_SPLIT.jsonl.gz; a cut is an utterance: a MonoCut of its channel, or a MultiCut
    of all."""
    try:
        from lhotse import CutSet, MonoCut, MultiCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
        from lhotse.audio import AudioSource
    except ImportError:
        raise MissingPackageError("lhotse", "lhotse", "Writing lhotse's manifests") from None
    headers, names = _headers(utterances), _recording_names(utterances)
    recordings = {
        path: Recording(
            id=names[path], sources=[AudioSource(type="file", channels=list(range(info.channels)), source=path)],
            sampling_rate=info.sample_rate_hz, num_samples=info.num_samples, duration=info.duration_s,
        )
        for path, info in headers.items()
    }  # fmt: skip
    supervisions, cuts = [], []
    for u in utterances:
        recording = recordings[str(u.audio_filepath)]
        duration = u.duration if u.duration is not None else recording.duration - u.offset
        channels = recording.channel_ids if u.channel is None else [u.channel]
        channel = channels if len(channels) > 1 else channels[0]
        supervision = SupervisionSegment(
            id=u.id, recording_id=recording.id, start=u.offset, duration=duration, channel=channel, text=u.text,
            speaker=u.speaker,
            language=u.extra.get("language"),
            custom={key: value for key, value in u.extra.items() if key != "language"} or None,
        )  # fmt: skip
        supervisions.append(supervision)
        moved = [supervision.with_offset(-u.offset)]
        kind = MonoCut if len(channels) == 1 else MultiCut
        cuts.append(
            kind(id=u.id, start=u.offset, duration=duration, channel=channel, supervisions=moved, recording=recording)
        )
    tail = f"_{split}.jsonl.gz" if split else ".jsonl.gz"
    sets = {
        "recordings": RecordingSet.from_recordings(recordings.values()),
        "supervisions": SupervisionSet.from_segments(supervisions),
        "cuts": CutSet.from_cuts(cuts),
    }
    return {
        f"hkd_{name}{tail}": gzip.compress(_jsonl(items.to_dicts()), mtime=0)
        for name, items in sets.items()
        if len(items)
    }


def kaldi(split: str, utterances: list[Utterance]) -> dict[str, bytes]:
    """SPLIT/{wav.scp,text,utt2spk,spk2utt,reco2dur} and, where utterances are parts of files, segments; sorted as Kaldi
    wants them.

    Raises UserError for ids, speakers or paths with blanks, which Kaldi's tables cannot hold.
    """
    headers, names = _headers(utterances), _recording_names(utterances)
    segments, is_cut = {}, False
    for u in utterances:
        path = str(u.audio_filepath)
        for what, value in (("id", u.id), ("speaker", u.speaker or ""), ("audio_filepath", path)):
            if len(value.split()) > 1 or value.strip() != value:
                raise UserError(f"{what} must have no blanks in Kaldi's tables, but is '{value}'. Rename it first.")
        end = headers[path].duration_s
        stop = end if u.duration is None else u.offset + u.duration
        segments[u.id] = f"{names[path]} {u.offset!r} {stop!r}{'' if u.channel is None else f' {u.channel}'}"
        is_cut = is_cut or u.offset != 0 or u.channel is not None or abs(stop - end) >= _WHOLE_TOLERANCE_S
    speaker_of = {u.id: u.speaker or u.id for u in utterances}
    spoken: dict[str, list[str]] = defaultdict(list)
    for name, speaker in speaker_of.items():
        spoken[speaker].append(name)
    tables: dict[str, dict[str, str]] = {
        "wav.scp": {names[path]: path for path in headers},
        "text": {u.id: " ".join(u.text.split()) for u in utterances},
        "utt2spk": speaker_of,
        "spk2utt": {speaker: " ".join(sorted(found, key=str.encode)) for speaker, found in spoken.items()},
        "reco2dur": {names[path]: repr(info.duration_s) for path, info in headers.items()},
    }
    if is_cut:
        tables["segments"] = segments
    where = f"{split}/" if split else ""
    return {where + name: _table(rows) for name, rows in tables.items()}


def _table(rows: Mapping[str, str]) -> bytes:
    return "".join(f"{key} {rows[key]}".rstrip() + "\n" for key in sorted(rows, key=str.encode)).encode()


FORMATS: Mapping[str, Callable[[str, list[Utterance]], dict[str, bytes]]] = {
    "nemo": nemo,
    "lhotse": lhotse,
    "kaldi": kaldi,
}
