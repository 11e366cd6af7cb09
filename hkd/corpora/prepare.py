"""How a corpus becomes a project's manifest, and a manifest other tools' files.

- A corpus is a name that is known here, the name of a recipe of lhotse's (`kind="lhotse"` and a root), a data set on
  the Hugging Face hub (`kind="hf"`), or a path whose kind is given or guessed.
- Splits are those that the corpus has; else they are made (`split`), so that the same voices or words never stand in
  two splits where that can be had. The rule depends on nothing but names and texts.
- Preparing again takes what has changed and says so; other utterances or texts are refused.
- `export` writes one set of files a split. Paths are absolute. The same manifest gives the same bytes. What a format
  has no place for stays out: Kaldi has no extra fields; NeMo and lhotse carry them all.
"""

import difflib
import gzip
import json
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hkd import manifest
from hkd.audio import AudioInfo, probe
from hkd.corpora.cards import CORPORA, check
from hkd.corpora.collect import Options, Report, collect
from hkd.corpora.importers import NEMO_PATTERN, guess_kind, read_path
from hkd.corpora.lhotse import recipe_rows
from hkd.errors import HkdError, MissingPackageError, Progress, UserError, check_choice, no_progress
from hkd.files import atomic_write, write_bytes
from hkd.manifest import Manifest, Utterance, assign_splits

logger = logging.getLogger(__name__)

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
MIN_GROUPS = 10  # speakers or texts, for splits that deserve the name
LEFT_OUT = "left-out.tsv"


def _same_words(utterance: Utterance) -> str:
    text = re.sub("[’‘ʻʼ`]", "'", unicodedata.normalize("NFC", utterance.text.casefold()))
    letters = "".join(c if c.isalnum() or c == "'" or unicodedata.category(c)[0] == "M" else " " for c in text)
    return " ".join(letters.split())


def _speaker(utterance: Utterance) -> str:
    if not utterance.speaker:
        raise UserError(f"utterance '{utterance.id}' must have a speaker, but has none. Split by text or recording.")
    return utterance.speaker


GROUPS: Mapping[str, Callable[[Utterance], str]] = {
    "speaker": _speaker,
    "recording": lambda utterance: utterance.recording,
    "text": _same_words,
}


def split(whole: Manifest, report: Report | None = None) -> tuple[Manifest, str]:
    """A manifest with splits, and by which rule: as given; else by the first of these that has enough groups.

    Ten speakers, ten texts, three speakers, three texts, three recordings, three utterances; with fewer all are
    `train`. The splits get 80, 10 and 10 % of the groups. What is worse than ten of either is noted in the report.
    """
    report = report or Report()
    if any(u.split for u in whole):
        if missing := sum(u.split is None for u in whole):
            which = f"{missing} of {len(whole)}"
            raise UserError(f"either all utterances or none must have a split, but {which} have none.")
        return whole, "as given"
    speakers, texts = {u.speaker or "" for u in whole}, {_same_words(u) for u in whole}
    if "" in speakers:
        unknown = [u.id for u in whole if not u.speaker]
        some = " of some" if len(unknown) < len(whole) else ""
        report.note(
            f"no speaker is known{some}, so the same voice may be in train and test (give one folder a speaker, a "
            "column `speaker`, or a pattern of the ids: --speaker '^[^_]+')",
            unknown,
        )
        speakers = set()
    for name, by, groups, at_least in (
        ("speaker", _speaker, speakers, MIN_GROUPS),
        ("text", _same_words, texts, MIN_GROUPS),
        ("speaker", _speaker, speakers, len(SHARES)),
        ("text", _same_words, texts, len(SHARES)),
        ("recording", GROUPS["recording"], {u.recording for u in whole}, len(SHARES)),
        ("utterance", lambda u: u.id, {u.id for u in whole}, len(SHARES)),
    ):
        if len(groups) >= at_least:
            if at_least < MIN_GROUPS:
                few = f"there are {len(speakers) or 'no known'} speakers and {len(texts)} different texts"
                same = ", so the same texts are in train and test" if name != "text" and len(texts) < MIN_GROUPS else ""
                report.note(f"splits are made by {name}: {few}{same} (a column or field `split` gives your own)")
            return assign_splits(whole, SHARES, by=by), f"by {name}"
    report.note(f"all is train: splits need at least {len(SHARES)} utterances, but there are {len(whole)}")
    return assign_splits(whole, {"train": 1.0}, by=lambda u: u.id), "all train"


def kind_of(name_or_path: str, kind: str | None = None) -> str | None:
    """The kind of data that a name or path is read as; None for a corpus known by name. Raises UserError for others."""
    path = Path(name_or_path).expanduser()
    is_text = name_or_path in text_corpora()
    if kind is not None or (name_or_path in CORPORA and not is_text):
        return kind
    if path.exists():
        return guess_kind(path)
    if is_text:
        raise UserError(f"corpus '{name_or_path}' is text without sound. It serves language models, not a manifest.")
    if NEMO_PATTERN.search(name_or_path):
        return "nemo"
    known = sorted(name for name, corpus in CORPORA.items() if not corpus.is_text)
    near = difflib.get_close_matches(name_or_path, known, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known corpora: {', '.join(known)}."
    raise UserError(f"a corpus must be a known name or a path, but '{name_or_path}' is neither. {hint}")


def read_corpus(name_or_path: str, *, kind: str | None = None, options: Options | None = None) -> Manifest:
    """A named corpus, or data of some kind (see the module). Raises UserError, HkdError."""
    options = options or Options()
    kind = kind_of(name_or_path, kind)
    if options.parts and not (kind is None and CORPORA[name_or_path].card.some_parts):
        rule = "go with a corpus that has parts to choose from"
        raise UserError(f"--part must {rule}, but {name_or_path} has none. Leave it out.")
    if options.columns and kind not in ("folder", "hf", "nemo"):
        what = f"{name_or_path} is read as {kind or 'itself'}"
        raise UserError(f"--column must go with a table (folder, hf, nemo), but {what}. Leave it out.")
    if kind is None:
        return CORPORA[name_or_path].manifest(options)
    path = Path(name_or_path).expanduser()
    if kind == "lhotse" and options.root is not None and not path.exists():
        return collect(recipe_rows(name_or_path, options.root, options), options.root, options)
    if options.root is not None:
        raise UserError(f"--root must go with the name of a corpus, but {name_or_path} is read as it is. Leave it out.")
    return read_path(str(path) if path.exists() else name_or_path, kind, options)


def prepare(
    name_or_path: str,
    folder: Path,
    options: Options | None = None,
    *,
    kind: str | None = None,
    speaker: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Make `folder`/manifest.jsonl from a corpus, with splits, checked against its card. Once more changes nothing.

    `kind`: see `read_corpus`. `speaker`: a pattern whose first match in an id (or its first group) is the speaker. The
    report counts what is left out; `left-out.tsv` beside the manifest lists it all. Raises UserError where a manifest
    of other utterances is there already, unless `overwrite`.
    """
    options = replace(options or Options(), audio_to=folder / "audio")
    report = options.report
    report.path = folder / LEFT_OUT
    try:
        read = read_corpus(name_or_path, kind=kind, options=options)
        if speaker:
            read = _with_speakers(read, speaker)
        whole, rule = split(read, report)
        if kind is None and name_or_path in CORPORA and not report.num_bad:
            check(CORPORA[name_or_path].card, whole)
    except HkdError:
        if report.num_bad:
            report.write()
        raise
    report.write()
    logger.info("%d utterances, split %s", len(whole), rule)
    for line in report.lines():
        logger.warning("%s (all in %s)", line, report.path)
    path = folder / "manifest.jsonl"
    if path.exists() and not overwrite:
        whole = _updated(path, whole, rule, report)
    if report.outcome != "up to date":
        manifest.write(path, whole)
    return whole


def _with_speakers(whole: Manifest, pattern: str) -> Manifest:
    """The utterances with the speaker that a pattern finds in their ids. Raises UserError where it finds none."""
    try:
        found = {u.id: re.search(pattern, u.id) for u in whole}
    except re.error as error:
        raise UserError(f"--speaker must be a regular expression, but '{pattern}' is none ({error}).") from None
    name_of = {name: (match[1] if match.re.groups else match[0]) for name, match in found.items() if match}
    if without := [u.id for u in whole if not name_of.get(u.id)]:
        where = f"{len(without)} of {len(whole)}, '{without[0]}' first"
        raise UserError(f"--speaker must match every id, but '{pattern}' finds nothing in {where}.")
    return Manifest(replace(u, speaker=name_of[u.id]) for u in whole)


def _without_split(u: Utterance) -> dict[str, object]:
    return {name: value for name, value in u.extra.items() if name != "split"}


def _facts(u: Utterance) -> dict[str, object]:
    """What may change while an utterance stays the same: all but id, text and split."""
    names = ("audio_filepath", "offset", "duration", "channel", "speaker")
    return {**{name: getattr(u, name) for name in names}, **_without_split(u)}


def _updated(path: Path, whole: Manifest, rule: str, report: Report) -> Manifest:
    """The manifest that follows the one at `path`: with the new facts, and the splits that stand there.

    The report says what has changed. Raises UserError where ids or texts are others.
    """
    before = manifest.read(path)
    if before.digest != whole.digest:
        there, wanted = {u.id: u.text for u in before}, {u.id: u.text for u in whole}
        new = [name for name, text in wanted.items() if there.get(name) != text]
        gone = [name for name in there if name not in wanted]
        raise UserError(
            f"{path} must not be replaced, but has other utterances ({len(new)} new or with another text, {len(gone)} "
            f"gone, '{(new + gone)[0]}' first). Use another folder, or --overwrite."
        )
    changed: dict[str, list[str]] = defaultdict(list)
    kept = 0
    after = []
    for u in whole:
        old = before.by_id(u.id)
        was, now = _facts(old), _facts(u)
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                changed[name].append(f"'{u.id}': {was.get(name)} → {now.get(name)}")
        if old.split != u.split:
            kept += 1
            u = replace(u, extra=_without_split(u) | ({"split": old.split} if old.split else {}))
        after.append(u)
    for name, examples in changed.items():
        report.note(f"{name} of {len(examples)} utterances was another and is replaced, for example {examples[0]}")
    of_sound = {"offset", "duration", "channel", "audio_filepath"}
    if changed.keys() & of_sound and (path.parent / "alignment.arrow").exists():
        report.note("the alignment was made of the sound as it was: run hkd align --overwrite if the sound has changed")
    if kept:
        by = "the corpus has" if rule == "as given" else f"splits {rule} give"
        report.note(f"{kept} utterances keep the split that {path} has, where {by} another (--overwrite takes that)")
    report.outcome = "updated" if changed else "up to date"
    return Manifest(after)


def text_corpora() -> list[str]:
    """The names of the corpora that are text without sound."""
    return sorted(name for name, corpus in CORPORA.items() if corpus.is_text)


def prepare_text(name: str, out: Path, *, progress: Progress = no_progress) -> int:
    """Write a text-only corpus to `out`, a sentence a line; their number. Raises UserError for unknown names."""
    check_choice("text corpus", name, text_corpora())
    corpus, number = CORPORA[name], 0
    with atomic_write(out) as file:
        for sentence in corpus.read(corpus.card, Options(progress=progress)):
            file.write(f"{sentence}\n".encode())
            number += 1
    return number


_WHOLE_TOLERANCE_S = 1e-3


def export(whole: Manifest, to: str, folder: Path, *, progress: Progress = no_progress) -> list[Path]:
    """Write a manifest in another format below `folder`; the paths written. Raises UserError, MissingPackageError."""
    check_choice("--to", to, FORMATS)
    if silent := [u.id for u in whole if u.audio_filepath is None]:
        which = f"{len(silent)} have none, '{silent[0]}' among them"
        raise UserError(f"utterances must have audio to be exported, but {which}.")
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
    """hkd_{recordings,supervisions,cuts}_SPLIT.jsonl.gz; a cut is an utterance: MonoCut, or MultiCut of all."""
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
        span = {"start": u.offset, "duration": duration, "channel": channel, "recording": recording}
        kind = MonoCut if len(channels) == 1 else MultiCut
        cuts.append(kind(id=u.id, supervisions=[supervision.with_offset(-u.offset)], **span))
    tail = f"_{split}.jsonl.gz" if split else ".jsonl.gz"
    sets = {
        "recordings": RecordingSet.from_recordings(recordings.values()),
        "supervisions": SupervisionSet.from_segments(supervisions),
        "cuts": CutSet.from_cuts(cuts),
    }
    filled = {name: items.to_dicts() for name, items in sets.items() if len(items)}
    return {f"hkd_{name}{tail}": gzip.compress(_jsonl(rows), mtime=0) for name, rows in filled.items()}


def kaldi(split: str, utterances: list[Utterance]) -> dict[str, bytes]:
    """SPLIT/{wav.scp,text,utt2spk,spk2utt,reco2dur} and, for utterances that are parts of files, segments; sorted.

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


Writer = Callable[[str, list[Utterance]], dict[str, bytes]]  # of a split: file name → bytes
FORMATS: Mapping[str, Writer] = {"nemo": nemo, "lhotse": lhotse, "kaldi": kaldi}
