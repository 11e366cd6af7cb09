"""Data that people have: folders with text beside audio, tables, Kaldi folders, NeMo manifests, Hugging Face data sets.

- Every reader takes a path (`hf` also a name on the hub) and `Options`, and gives utterances with the places where it
  read them. `read_path` makes the manifest. The reader of lhotse's data is in `hkd.corpora.lhotse`.
- What a reader leaves out goes to the report: audio without text, text without audio, hidden files, unreadable sound.
- The manifest's `channel` is the channel that the data asks for. Nothing is cut out of files for it.
"""

import csv
import errno
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from hkd import manifest
from hkd.audio import probe
from hkd.corpora import lhotse
from hkd.corpora.collect import (
    UNREADABLE,
    Options,
    Report,
    Row,
    channel_of,
    collect,
    find_audio,
    is_hidden,
    is_sound,
    plain_fields,
    sort_files,
    split_called,
    split_named,
    walk,
    write_sound,
)
from hkd.errors import HkdError, UserError, check_choice, first_line
from hkd.files import filled_lines, numbered_lines, placed
from hkd.manifest import NUMBER, STRING, Manifest, Utterance, check_field, parse_json

COLUMNS: Mapping[str, tuple[str, ...]] = {  # the first that is there is taken
    "audio": ("audio", "path", "file", "audio_filepath", "filename", "file_name", "wav", "audio_path", "file_path",
        "wav_filename", "audio_file"),
    "text": ("text", "sentence", "transcript", "transcription", "normalized_text", "text_normalized",
        "normalized_transcription",
             "normalized_transcript", "raw_transcription", "raw_text", "text_original", "original_text", "wrd", "txt"),
    "id": ("id", "utt_id", "utterance_id", "segment_id", "utterance", "__key__"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk_id", "speaker_name"),
    "split": ("split",),
    "channel": ("channel",),
    "offset": ("offset", "start", "start_time", "begin", "begin_time"),
    "duration": ("duration",),
    "end": ("end", "end_time", "stop", "stop_time"),
}  # fmt: skip
TEXTS = (".lab", ".txt")  # the later wins
TABLES = (".tsv", ".csv")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_TIMES = ("offset", "duration", "end")
_LIKE_TIMES = re.compile(r"(^|_)(start|begin|onset|end|stop|offset)(_|m?s$|$)|^(from|to|[tx]min|[tx]max|t[012]|dur)$")
_UNIT = re.compile(r"[_ ]*(\((s|sec|seconds)\)|\[(s|sec|seconds)\]|_(s|sec|seconds))$")
# subtitles and Whisper's output; labels of Audacity and ELAN; TIMIT's sentences
_TIMED = re.compile(r"\d --> \d|^\d+[.,]\d{3,}\s+\d+[.,]\d{3,}(\s|$)|^\d+:\d\d:\d\d[.,]\d+\s+\d|^0 \d{4,} \D")
_GIVE = "give a table with the columns audio and text, or say what it is: --from, or a name of hkd prepare --list"
_SAME_S = 0.05  # a clip as long as its start and end say, but for rounding, was cut there already


def columns_of(
    names: Sequence[str], where: str, options: Options, *, needed: Sequence[str], audio: str | None = None
) -> dict[str, str]:
    """What → the column that has it, by known names or `options.columns`. Raises UserError where one is missing."""
    by_name = {name.strip().lower(): name for name in names}
    known = {_plain(name): name for name in names} | by_name
    column = {what: known[name] for what, candidates in COLUMNS.items() for name in candidates[::-1] if name in known}
    if audio is not None:
        column["audio"] = audio
    for what, name in options.columns.items():
        if what not in COLUMNS:
            raise UserError(f"--column must name one of {', '.join(COLUMNS)}, but names '{what}' instead.")
        if name.lower() not in by_name:
            raise UserError(f"{where} must have the column '{name}' that --column names, but has {', '.join(by_name)}.")
        column[what] = by_name[name.lower()]
    for name in column.values():
        if [other.strip().lower() for other in names].count(name.strip().lower()) > 1:
            raise UserError(f"{where} must name each column once, but has '{name}' twice. Rename one.")
    for what in needed:
        if what not in column:
            have = ", ".join(filter(None, by_name)) or "none"
            raise UserError(f"{where} must name a column '{what}', but has {have}. Say which: --column {what}=NAME.")
    others = [name for name in names if name.strip().lower() in COLUMNS["text"] and name != column["text"]]
    if others and "text" not in options.columns:
        options.report.note(f"text is taken from the column {column['text']} (--column text={others[0]} takes another)")
    options.report.leave_out("columns that may hold times are not read", _unread_times(names, column))
    return column


def _plain(name: str) -> str:
    """A column's name as COLUMNS has it: startTime, Start Time and start (s) are start_time, start_time and start."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip()).lower()
    return re.sub(r"[ -]+", "_", _UNIT.sub("", name))


def _unread_times(names: Sequence[str], column: Mapping[str, str]) -> list[str]:
    return [name for name in names if _LIKE_TIMES.search(_plain(name)) and name not in column.values()]


def span_of(
    cell: Mapping[str, Any], column: Mapping[str, str], seconds_of: Callable[[], float | None], report: Report
) -> dict[str, float]:
    """`offset` and `duration` as a row's cells tell them; nothing where the audio is a clip cut at these times already.

    `seconds_of`: how long the audio is; None where it cannot be read. Raises UserError for what is no time in seconds.
    """
    time: dict[str, float] = {}
    for what in _TIMES:
        value = cell.get(what)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        try:
            time[what] = float(value)
        except (TypeError, ValueError):
            raise UserError(f"{column[what]} must be a number of seconds, but is '{value!s:.60}' instead.") from None
    if "end" in time:
        start, stop = time.get("offset", 0.0), time.pop("end")
        if not stop > start:
            raise UserError(f"{column['end']} must be after the start, {start:g} s, but is {stop:g} s.")
        time.setdefault("duration", stop - start)
    start, duration = time.get("offset", 0.0), time.get("duration")
    if start > _SAME_S and duration is not None:
        seconds = seconds_of()
        if seconds is not None and abs(seconds - duration) <= _SAME_S:
            kind = "clips as long as their start and end say are read whole, as cut already"
            report.note(kind, [f"{start:g} s, {duration:g} s long"])
            return {}
    return time


def _seconds(path: str) -> float | None:
    with suppress(HkdError):
        return probe(path).duration_s
    return None


# --- folders and tables of one's own ----------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A transcript's text, lines joined. Raises UserError where it is not UTF-8."""
    return " ".join(" ".join(line for _, line in numbered_lines(path, "a transcript")).split())


def read_folder(folder: Path, options: Options) -> Iterator[Row]:
    """Audio files with a text (.txt, .lab) of the same name beside each, or below another folder; or with tables (.tsv,
    .csv): one for all, or one for each split. A table itself, too.

    Ids are paths below the folder without their ending. Folders called train, dev, test and the like are splits; the
    first other level with several folders tells the speakers. Raises UserError that lists audio without text.
    """
    if not folder.is_dir():
        yield from table_rows(folder, options)
        return
    report = options.report
    files = walk(folder, report)
    audio, unreadable = sort_files(files)
    written = [path for path in files if path.suffix.lower() in TEXTS and path.exists()]
    texts = {path.with_suffix(""): path for ending in TEXTS for path in written if path.suffix.lower() == ending}
    text_of = {path: texts[path.with_suffix("")] for path in (*audio, *unreadable) if path.with_suffix("") in texts}

    def names(paths: Iterable[Path]) -> list[str]:
        return [str(path.relative_to(folder)) for path in paths]

    def with_text(paths: list[Path], wanted: bool) -> list[Path]:
        return [path for path in paths if (path in text_of) == wanted]

    silent = with_text(audio, False)
    tables = [path for path in files if path.parent == folder and path.suffix.lower() in TABLES]
    are_splits = all(split_named(path.stem) for path in tables)
    if audio and tables and len(silent) == len(audio) and (len(tables) == 1 or are_splits):
        split_of = {path: split_named(path.stem) if len(tables) > 1 else None for path in tables}
        found = [row for path in tables for row in table_rows(path, options, split=split_of[path])]
        leave_out_unnamed(files, found, folder, report)
        yield from found
        return
    if audio and len(silent) == len(audio):
        text_of = _in_another_folder(folder, [*audio, *unreadable], list(texts.values()))
        silent = with_text(audio, False)
        report.note("texts lie below another folder than the audio", names(text_of.values()))
    report.bad(folder, UNREADABLE, names(with_text(unreadable, True)))
    report.leave_out(f"{UNREADABLE}; no text beside them", names(with_text(unreadable, False)))
    if not audio:
        ending = f" that libsndfile reads, but {len(unreadable)} other recordings" if unreadable else ""
        packed = next((path.name for path in files if path.suffix.lower() in ARCHIVES), None)
        remedy = f" Unpack {packed} first, or say --from hf where it is of WebDataset." if packed else ""
        raise UserError(f"{folder} must hold audio files with a .txt beside each, but holds no audio{ending}.{remedy}")
    kind, sounds = "audio files have no .txt beside them", {*audio, *unreadable}
    if len(silent) == len(audio) and (perhaps := names(p for p in files if p not in sounds and p.exists())):
        more = f" and {len(perhaps) - 3} more" if len(perhaps) > 3 else ""
        kind += f" ({', '.join(perhaps[:3])}{more} may have the texts: {_GIVE})"
    report.bad(folder, kind, names(silent))
    used = set(text_of.values())
    others = [path for path in written if path not in used]
    doubled = [path for path in others if texts[path.with_suffix("")] in used]
    report.leave_out("text files whose recording has a .txt, too, which is taken", names(doubled))
    report.leave_out("text files without audio", names(path for path in others if path not in doubled))
    report.leave_out("tables are not read where recordings have a .txt (give the table itself)", names(tables))
    spoken: dict[Path, str] = {}
    broken: list[str] = []
    for path in with_text(audio, True):
        try:
            spoken[path] = _transcript(text_of[path])
        except UserError as error:
            broken.append(str(error))
    report.bad(folder, "transcripts cannot be read", broken)
    if not spoken:
        return
    audio = list(spoken)
    homes = _splits_and_speakers([path.relative_to(folder).parts[:-1] for path in audio], report)
    for path, (split, speaker) in zip(audio, homes, strict=True):
        utterance = Utterance(
            id=path.relative_to(folder).with_suffix("").as_posix(), text=spoken[path], speaker=speaker,
            audio_filepath=str(path.absolute()), extra={"split": split} if split else {},
        )  # fmt: skip
        yield str(path), utterance


def _transcript(path: Path) -> str:
    text = read_text(path)
    if _TIMED.search(text) or (path.suffix.lower() == ".lab" and re.match(r"\d+\s+\d+\s+\S", text)):
        raise UserError(
            f"{path} must be a transcript, but holds labels with times (subtitles, HTK). Write the words alone, "
            f"or a table with the columns audio, text, start and end."
        )
    return text


def _in_another_folder(folder: Path, audio: Sequence[Path], texts: Sequence[Path]) -> dict[Path, Path]:
    """The text of each recording where all recordings lie below one folder and all texts below another (wav/anna/1.wav,
    txt/anna/1.txt; anna/wav/1.wav, anna/txt/1.txt); of several such folders the one with most texts."""
    parts = {path: path.relative_to(folder).with_suffix("").parts for path in (*audio, *texts)}
    found: list[dict[Path, Path]] = []
    for level in range(min(len(parts[path]) for path in audio) - 1):
        if len({parts[path][level] for path in audio}) == 1:
            below: dict[str, dict[tuple[str, ...], Path]] = {}
            for path in texts:
                if len(parts[path]) > level + 1:
                    below.setdefault(parts[path][level], {})[parts[path][:level] + parts[path][level + 1 :]] = path
            rest = {path: parts[path][:level] + parts[path][level + 1 :] for path in audio}
            found += [{path: known[rest[path]] for path in audio if rest[path] in known} for known in below.values()]
    found = sorted(filter(None, found), key=len)
    return found[-1] if len(found) == 1 or (found and len(found[-2]) < len(found[-1])) else {}


def _splits_and_speakers(parents: list[tuple[str, ...]], report: Report) -> list[tuple[str | None, str | None]]:
    """(split, speaker) of files by their folders: splits are the first level whose folders all tell of one."""
    level = None
    for depth in range(min(map(len, parents))):
        names = {folders[depth] for folders in parents}
        telling = sorted(name for name in names if split_named(name))
        if len(telling) == len(names):
            level = depth
            break
        if telling:
            report.note("folders called like splits are not taken for such, as others beside them are not", telling)
    splits: list[str | None] = [None] * len(parents)
    rest = parents
    if level is not None:
        splits = [split_named(folders[level]) for folders in parents]
        above = level if len({folders[:level] for folders in parents}) > 1 else 0
        rest = [folders[:above] + folders[level + 1 :] for folders in parents]
    if set(splits) == {"train"}:
        splits = [None] * len(parents)
    level = next((n for n in range(min(map(len, rest))) if len({folders[n] for folders in rest}) > 1), 0)
    several = len(set(rest)) > 1
    speakers = [folders[level] if several and folders else None for folders in rest]
    return list(zip(splits, speakers, strict=True))


def table_rows(path: Path, options: Options, *, audio: Path | None = None, split: str | None = None) -> Iterator[Row]:
    """The rows of a table. `audio`: the folder that its paths are relative to; `split`: that of all its rows."""
    if _is_piped(path):
        yield from piped_rows(path, audio or path.parent / "wavs", options.report, split=split)
        return
    rows = _cells(path)
    header = [cell.strip() for cell in next(rows, (1, []))[1]]
    if sound := next(filter(is_sound, header), None):
        rule = f"{path}:1: a table must begin with a header (audio, text, perhaps speaker ...)"
        raise UserError(f"{rule}, but begins with the row of {sound}. Add a header as its first line.")
    column = columns_of(header, f"{path}:1: the header", options, needed=("audio", "text"))
    rest = [] if {"offset", "end"} & set(column) else _unread_times(header, column)
    if len(rest) > 1:  # a part's words would be those of the whole recording
        first = next(rows, (0, []))
        rows = chain([first] * bool(first[0]), rows)
        if any(name in rest and re.search(r"\d", cell) for name, cell in zip(header, first[1], strict=False)):
            rule = f"{path}:1: times must be in seconds, in columns like start and end"
            raise UserError(f"{rule}, but are in {', '.join(rest)}. Write them so, or remove them where files are cut.")
    place_of = {what: header.index(name) for what, name in column.items()}
    width = max(place_of.values()) + 1

    def read(row: list[str]) -> Utterance:
        if len(row) < width:
            raise UserError(f"a row must have {width} columns or more, but has {len(row)}.")
        if any(cell.strip() for cell in row[len(header) :]):
            raise UserError(
                f"a row must have {len(header)} columns as the header has, but has {len(row)}. Put a cell that "
                "holds what divides cells in quotes, in a .csv."
            )
        cell = {what: row[place].strip() for what, place in place_of.items()}
        return _table_row(cell, column, audio or path.parent, split, options.report)

    yield from options.report.usable(((f"{path}:{number}", row) for number, row in rows), read)


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """A table's rows that are not blank, by the number of their first line. Tabs divide the cells of a .tsv. A .csv has
    quotes (RFC 4180), and is divided by what its first line has most of: commas, semicolons, tabs, bars."""
    lines = numbered_lines(path, "a table")
    if path.suffix.lower() != ".csv":
        yield from ((number, line.split("\t")) for number, line in lines if line.strip())
        return
    begin, first = next(lines, (1, ""))
    delimiter = max(",;\t|", key=first.count)
    if said := re.fullmatch("sep=(.)", first.strip()):  # Excel's own
        delimiter, (begin, first) = said[1], next(lines, (2, ""))
    rows = chain([first], (line for _, line in lines))
    reader = csv.reader((f"{line}\n" for line in rows), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + begin
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}:{number}: a row must be CSV, but is not ({error}).") from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield number, row


def _is_piped(path: Path) -> bool:
    """Whether a table has no header, but rows as LJSpeech has them, or with paths as VITS has them."""
    if path.suffix.lower() not in (".csv", ".txt"):
        return False
    name, bar, _ = next(filled_lines(path, "a table"), ("", ""))[1].partition("|")
    sound = path.parent / "wavs" / f"{name}.wav"
    return bool(bar) and (is_sound(name) or os.path.exists(sound))  # noqa: PTH110 - it raises nothing for a long name


def piped_rows(
    path: Path, audio: Path, report: Report, *, speaker: str | None = None, split: str | None = None
) -> Iterator[Row]:
    """The rows of LJSpeech's table: ID|TEXT|NORMALISED TEXT, which is taken; the sound of each is ID.wav, or the first
    cell itself where it has such an ending. Second cells of one word are speakers, as Piper and VITS have them
    (ID|SPEAKER|TEXT), where they repeat beside texts of several words, or stand behind paths and are not the text."""
    rows = [cells for _, line in filled_lines(path, "a table") if len(cells := line.split("|")) == 3]
    pairs = [cells[1:] for cells in rows]
    are_named = all(is_sound(row[0]) and row[1].strip().lower() != row[2].strip().lower() for row in rows)
    names = {name.strip() for name, _ in pairs}
    spoken = [text for _, text in pairs if len(text.split()) > 1]
    by_cell = are_named or 2 * max(len(names), len(pairs) - len(spoken)) < len(pairs)
    by_cell = bool(rows) and by_cell and speaker is None and not any(len(name.split()) > 1 for name in names)

    def read(line: str) -> Utterance:
        cells = line.split("|")
        if not 2 <= len(cells) <= 3 or not cells[0].strip():
            raise UserError(f"a row must be ID|TEXT|NORMALISED TEXT, but is '{line[:60]}' instead.")
        name, text = cells[0].strip(), cells[2 if len(cells) > 2 else 1].strip()
        sound = find_audio(name, path.parent, report) if is_sound(name) else str((audio / f"{name}.wav").absolute())
        return Utterance(
            id=_stem(name, sound) if is_sound(name) else name, text=text, audio_filepath=sound,
            speaker=cells[1].strip() or None if by_cell and len(cells) == 3 else speaker,
            extra={"split": split} if split else {},
        )  # fmt: skip

    if by_cell:
        report.note("the second cells of rows are their speakers, as they are one word", sorted(names))
    return report.usable(filled_lines(path, "a table"), read)


def _table_row(
    cell: Mapping[str, str], column: Mapping[str, str], audio: Path, split: str | None, report: Report
) -> Utterance:
    if not cell["audio"]:
        raise UserError("a row must name its audio file, but does not.")
    name, split = cell["audio"], split or split_called(cell.get("split", ""))
    sound = find_audio(name, audio, report)
    channel = channel_of(cell["channel"]) if cell.get("channel") else None
    span = span_of(cell, column, lambda: _seconds(sound), report)
    return Utterance(
        id=cell.get("id") or _part(_stem(name, sound), span.get("offset", 0.0), channel), text=cell["text"],
        audio_filepath=sound,
        speaker=cell.get("speaker") or None, channel=channel, extra={"split": split} if split else {}, **span,
    )  # fmt: skip


def _stem(name: str, sound: str) -> str:
    """A path as a table has it, without its ending; with / where the file was found so."""
    return Path(name if Path(name).name == Path(sound).name else name.replace("\\", "/")).with_suffix("").as_posix()


def _part(recording: str, offset: float, channel: int | None) -> str:
    """What a part of a recording is called that has no id: also by its milliseconds and its channel, if not the
    first."""
    return f"{recording}{f'-{offset * 1000:07.0f}' if offset else ''}{f'-channel{channel}' if channel else ''}"


# --- Kaldi ------------------------------------------------------------------------------------------------------------

_REFUSED = {  # of the entries of wav.scp
    "entries are commands, where only paths are read (write the sound to files first, with wav-copy or sox)": r"\|$",
    "entries lie in archives, where only paths of sound files are read (write them out with wav-copy first)": (
        r"\.ark(:\d+)?(\[.*\])?$"
    ),
}
Table = dict[str, tuple[int, str]]  # key → line number, rest of the line
# recording, start and end in seconds (None: the recording's end), channel
Segment = tuple[str, float, float | None, int | None]


def kaldi_folders(folder: Path) -> list[Path]:
    """A folder itself where it is one of Kaldi's, else the Kaldi folders right below it."""
    if (folder / "wav.scp").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/wav.scp") if not is_hidden(path.parent.name))


def read_kaldi(folder: Path, options: Options) -> Iterator[Row]:
    """A Kaldi data folder (wav.scp with plain paths, text, perhaps utt2spk, segments, reco2dur, reco2file_and_channel),
    in order of ids; or all data folders right below one, whose names tell the splits.

    Piped commands in wav.scp are refused: hkd runs no commands out of data files. The fifth column of segments counts
    channels from 0, reco2file_and_channel names them A and B or 1 and 2. Raises UserError.
    """
    parts = kaldi_folders(folder)
    if not parts:
        raise UserError(f"{folder} must be a Kaldi data folder or hold such, but has no wav.scp in it nor right below.")
    for part in parts:
        extra = {} if part == folder else {"split": split_named(part.name) or part.name, "part": part.name}
        yield from kaldi_rows(part, options, extra=extra)


def kaldi_rows(folder: Path, options: Options, *, extra: Mapping[str, str]) -> Iterator[Row]:
    """The utterances of one data folder, with their places in `text`. Ids of reco2file_and_channel go to `told`."""
    report = options.report
    audio, text = _table(folder / "wav.scp"), _table(folder / "text")
    for kind, pattern in _REFUSED.items():
        refused = {name: number for name, (number, path) in audio.items() if re.search(pattern, path)}
        report.bad(folder / "wav.scp", kind, [f"line {number}: {name}" for name, number in refused.items()])
        audio = {name: entry for name, entry in audio.items() if name not in refused}
    names = ("utt2spk", "reco2file_and_channel", "reco2dur")
    speaker, side, duration = (_table(folder / name, optional=True) for name in names)
    if not (folder / "utt2spk").exists():
        spoken = _table(folder / "spk2utt", optional=True).items()
        speaker = {name: (number, who) for who, (number, said) in spoken for name in said.split()}
    lengths = {name: _length(folder / "reco2dur", *entry) for name, entry in duration.items()}
    is_cut = (folder / "segments").exists()
    listed = _table(folder / "segments") if is_cut else audio
    whole: dict[str, Segment] = {name: (name, 0.0, None, None) for name in audio}
    segments = _segments(folder / "segments", listed, audio, report) if is_cut else whole
    missing = [f"line {number}: {name}" for name, (number, _) in text.items() if name not in listed]
    report.bad(folder / "text", "utterances have no audio", missing)
    kind = "segments without a line in text" if is_cut else "recordings (wav.scp) without a line in text"
    report.leave_out(kind, [name for name in listed if name not in text])
    nobody = [name for name in speaker if name not in listed and name not in text]
    report.leave_out("speakers (utt2spk, spk2utt) of no utterance", nobody)
    used = {recording for recording, *_ in segments.values()}
    report.leave_out("recordings (wav.scp) without segments", [name for name in audio if name not in used])

    def read(name: str) -> Utterance:
        recording, start, stop, channel = segments[name]
        number, path = audio[recording]
        if not path:
            raise UserError(f"{folder / 'wav.scp'}:{number}: '{recording}' must have a path, but has none.")
        if speaker and not speaker.get(name, (0, ""))[1]:
            raise UserError(
                f"{folder}/utt2spk: every utterance must have a speaker, but '{name}' has none. Add it, or remove "
                f"the file."
            )
        if channel is None and recording in side:
            number, line = side[recording]
            with placed(f"{folder / 'reco2file_and_channel'}:{number}"):
                channel = channel_of(line.split()[-1] if line else "", first=1)
            options.told.add(name)
        length = None if is_cut else lengths.get(recording)
        return Utterance(
            id=name, text=" ".join(text[name][1].split()), offset=start,
            audio_filepath=find_audio(path, folder, options.report),
            duration=length if stop is None else stop - start, channel=channel,
            speaker=speaker[name][1] if speaker else None,
            extra={**extra, "recording": recording} if is_cut else extra,
        )  # fmt: skip

    ids = sorted(set(text) & set(segments))
    yield from report.usable(((f"{folder / 'text'}:{text[name][0]}", name) for name in ids), read)


def _table(path: Path, *, optional: bool = False) -> Table:
    """First word of a line → its number and the rest. Raises UserError with file and line for a duplicate."""
    table: Table = {}
    if optional and not path.exists():
        return table
    for number, line in numbered_lines(path, "a Kaldi table"):
        parts = line.split(maxsplit=1)
        if parts:
            if parts[0] in table:
                before = table[parts[0]][0]
                raise UserError(f"{path}:{number}: '{parts[0]}' must stand once, but stands at line {before} too.")
            table[parts[0]] = (number, parts[1].strip() if len(parts) > 1 else "")
    return table


def _segments(path: Path, listed: Table, audio: Table, report: Report) -> dict[str, Segment]:
    """Utterance → recording, start, end (Kaldi's -1: to the end of the recording) and channel."""

    def read(entry: tuple[str, str]) -> tuple[str, Segment]:
        name, line = entry
        recording, *cells = line.split() or [""]
        try:
            start, stop = map(float, cells[:2])
        except ValueError:
            found = f"{name} {line[:60]}"
            raise UserError(f"a segment must be UTTERANCE RECORDING START END, but is '{found}' instead.") from None
        if recording not in audio:
            left_out = ", or was left out" if report.num_bad else ""
            raise UserError(f"'{name}' is cut from '{recording}', which is not in wav.scp{left_out}.")
        to_the_end = stop == -1
        if not (math.isfinite(start) and start >= 0 and (to_the_end or (math.isfinite(stop) and stop > start))):
            raise UserError(f"a segment must start at 0 s or later and end after that, but is {start:g} to {stop:g} s.")
        channel = channel_of(cells[2]) if len(cells) > 2 else None
        return name, (recording, start, None if to_the_end else stop, channel)

    rows = ((f"{path}:{number}", (name, line)) for name, (number, line) in listed.items())
    return dict(found for _, found in report.usable(rows, read))


def _length(path: Path, number: int, value: str) -> float:
    """Seconds of a recording. Raises UserError with file and line."""
    rule = f"{path}:{number}: a duration must be"
    try:
        length = float(value)
    except ValueError:
        raise UserError(f"{rule} a number of seconds, but is '{value[:60]}' instead.") from None
    if not (math.isfinite(length) and length > 0):
        raise UserError(f"{rule} finite and above 0, but is {value} instead.")
    return length


# --- NeMo -------------------------------------------------------------------------------------------------------------

_NEMO_TAKEN = ("id", "audio_filepath", "offset", "duration", "text", "speaker", "split", "channel", "channel_selector")
_TARRED = "tarred NeMo data cannot be read. Give the manifest of the sound files that it was made from."
_DOCUMENT = re.compile(r'\s*(\[|\{\s*("[^"]*"\s*:\s*\{|$))')  # a list; an object of objects, as SpeechBrain's
NEMO_PATTERN = re.compile(r"_OP_\d+\.\.\d+_CL_|\{\d+\.\.\d+\}")  # how NeMo names several shards in one path


def nemo_files(folder: Path, report: Report) -> list[Path]:
    """The manifests right in a folder."""
    return [path for path in walk(folder, report, depth=1) if path.suffix in (".json", ".jsonl")]


def read_nemo(path: Path, options: Options) -> Iterator[Row]:
    """NeMo's JSONL (audio_filepath, text, perhaps duration, offset, speaker, channel, channel_selector), or a folder's.

    A file whose name has a word like train, dev, valid or test gives its utterances that split. NeMo has no ids: an
    `id` is taken where there is one; else it is the audio's path without its ending below the folder that all files
    share, where there is an offset its milliseconds, and the channel. Raises UserError with file and line.
    """
    files = nemo_files(path, options.report) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} must hold NeMo manifests (.json or .jsonl), but holds none.")
    rows = [row for file in files for row in _nemo_rows(file, options)]
    shared = os.path.commonpath([str(Path(row["audio_filepath"]).parent) for _, row in rows]) if rows else ""
    yield from options.report.usable(rows, lambda row: _nemo_utterance(row, shared))


def _nemo_rows(path: Path, options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    told = split_named(path.stem)
    text = options.columns.get("text", "text")
    if _DOCUMENT.match(next(filled_lines(path, "a NeMo manifest"), ("", ""))[1]):
        remedy = f"Write each object in a line, with NeMo's names (audio_filepath, text): `jq -c '.[]' {path.name}`."
        raise UserError(f"{path}:1: a line must be one JSON object, but is a list or a part of one document. {remedy}")
    has_tars = next(path.parent.glob("audio_*.tar"), None) is not None

    def read(line: str) -> dict[str, Any]:
        row = parse_json(line)
        if text != "text":
            row["text"] = row.pop(text, None)
        sound = row.get("audio_filepath")
        there = isinstance(sound, str) and Path(find_audio(sound, path.parent)).exists()
        if not there and ("shard_id" in row or (has_tars and isinstance(sound, str))):
            raise UserError(_TARRED)
        sound = check_field(row, "audio_filepath", STRING, needed=True)
        row["audio_filepath"] = find_audio(sound, path.parent, options.report)
        check_field(row, "text", STRING, needed=True, called=text)
        row |= {name: check_field(row, name, NUMBER) for name in ("offset", "duration")}
        return row if told is None else {**row, "split": row.get("split") or told}

    return options.report.usable(filled_lines(path, "a NeMo manifest"), read)


def _nemo_channel(row: Mapping[str, Any]) -> int | None:
    """NeMo's channel_selector: a channel from 0, a list of one, or "average"; the field `channel` likewise."""
    value = row.get("channel_selector")
    value = row.get("channel") if value is None else value
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        raise UserError(f"channel must be one channel, but is {value!s:.60}. Leave it out to read the mean of all.")
    return None if value in (None, "average") else channel_of(value)


def _nemo_utterance(row: dict[str, Any], shared: str) -> Utterance:
    """`shared`: the folder that all audio files share."""
    extra = {key: value for key, value in row.items() if key not in _NEMO_TAKEN}
    if row.get("split") is not None:
        extra["split"] = split_called(str(row["split"]))
    path, offset, channel, name = row["audio_filepath"], row["offset"] or 0.0, _nemo_channel(row), row.get("id")
    if name is None:
        below = Path(os.path.relpath(path, shared) if "://" not in path else path).with_suffix("").as_posix()
        name = _part(below, offset, channel)
    return Utterance(
        id=str(name), text=" ".join(row["text"].split()), audio_filepath=path, offset=offset, duration=row["duration"],
        channel=channel,
        speaker=None if row.get("speaker") is None else str(row["speaker"]), extra=extra,
    )  # fmt: skip


# --- Hugging Face -----------------------------------------------------------------------------------------------------

_BATCH_ROWS = 32
_SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk


def read_hf(source: str, options: Options) -> Iterator[Row]:
    """A data set: a folder of save_to_disk, of parquet or of audio with metadata, a .parquet, NAME[:CONFIG] of the hub.

    Rows are read as Arrow: sound inside the data set is written out as it is, not decoded; files on disk stay where
    they are. Rows without an id, or whose ids repeat, are called SPLIT-NUMBER. `validation` becomes `dev`. A data set
    whose only split is `train` has no splits: they are made as for any corpus without. Raises UserError, HkdError.
    """
    import datasets

    try:
        splits = _open(source)
        alone = len(splits) == 1 and next(iter(splits)) in ("train", "")
        rows: list[tuple[Row, str]] = []
        for name, part in splits.items():
            rows += _hf_rows(part, source, name, None if alone else split_named(name) or name, options)
    except HkdError:
        raise
    except (
        datasets.exceptions.DatasetsError,
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        ImportError,
    ) as e:
        reason = first_line(e)
        if isinstance(e, ConnectionError | TimeoutError):
            raise HkdError(f"data set {source} could not be reached ({reason}). Try again, or give a folder.") from None
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            raise
        raise UserError(f"data set {source} must be one that `datasets` can read, but it says: {reason}.") from None
    repeated = [name for name, count in Counter(u.id for (_, u), _ in rows).items() if count > 1]
    if repeated:
        options.report.note("ids of the data set repeat, so utterances are called SPLIT-NUMBER", repeated)
    found = [(place, replace(u, id=name) if repeated else u) for (place, u), name in rows]
    options.told.update(u.id for _, u in found if u.channel is not None)
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).exists() for name in _SAVED):
        leave_out_unnamed(walk(folder, options.report), found, folder, options.report)
    yield from found


def leave_out_unnamed(files: Iterable[Path], found: Iterable[Row], folder: Path, report: Report) -> None:
    """Count the audio files of a folder that no utterance names."""
    named = {os.path.realpath(u.audio_filepath) for _, u in found if u.audio_filepath}
    audio = [path for paths in sort_files(files) for path in paths if os.path.realpath(path) not in named]
    report.leave_out("audio files that no row of a table names", [str(path.relative_to(folder)) for path in audio])


def _open(source: str) -> Mapping[str, Any]:
    """Split → rows. What is not in Arrow already is streamed: no copy goes to a cache."""
    import datasets

    datasets.disable_progress_bars()
    path = Path(source)
    name, _, config = source.partition(":")
    if any((path / saved).exists() for saved in _SAVED):
        opened = datasets.load_from_disk(source)
    elif path.suffix == ".parquet":
        opened = datasets.load_dataset("parquet", data_files=source, streaming=True)
    else:
        wanted = (source,) if path.exists() else (name, config or None)
        opened = datasets.load_dataset(*wanted, streaming=True)
    return opened if isinstance(opened, Mapping) else {"": opened}


def _hf_rows(rows: Any, source: str, name: str, split: str | None, options: Options) -> Iterator[tuple[Row, str]]:
    """The utterances of a split with their places, and the name that each has by its number."""
    import datasets

    report = options.report
    features = dict(rows.features or {})
    inner = features.pop("json") if "__key__" in features and isinstance(features.get("json"), Mapping) else {}
    features = {**inner, **features}  # what WebDataset has of an utterance in its .json are columns, too
    sounds = [
        key
        for key, feature in features.items()
        if isinstance(feature, datasets.Audio) or (isinstance(feature, Mapping) and {"bytes", "path"} <= set(feature))
    ] or [key for key, feature in features.items() if getattr(feature, "dtype", "") in ("binary", "large_binary")]
    batch_rows = 1 if "__key__" in features else _BATCH_ROWS  # rows of WebDataset have columns in different orders
    column = columns_of(list(features), f"data set {source}", options, needed=("text",), audio=next(iter(sounds), None))
    if not sounds and "audio" not in options.columns:
        raise UserError(f"data set {source} must have a column of audio, but has {', '.join(features) or 'none'}.")
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    total = getattr(rows, "num_rows", 0)
    number = 0
    for batch in rows.with_format("arrow").iter(batch_size=batch_rows):
        for row in batch.to_pylist():
            row = {**(row.pop("json") or {}), **row} if inner else row
            place, called = f"{source}: {name or 'row'} {number}", f"{name or 'row'}-{number:07d}"
            number += 1
            if row[column["text"]] is None:
                report.leave_out("rows without a text", [place])
                continue
            read = partial(
                _hf_utterance, column=column, place=place, called=called, split=split, folder=folder, options=options
            )
            for found in report.usable([(place, row)], read):
                yield found, called
        if total:
            options.progress(number, total)


def _hf_utterance(
    row: dict[str, Any], *, column: Mapping[str, str], place: str, called: str, split: str | None, options: Options,
    folder: Path,
) -> Utterance:  # fmt: skip
    """`folder`: what paths are relative to; `called`: the name of a row without an id."""
    cell = {what: row[name] for what, name in column.items()}
    sound, text, name = cell["audio"], cell["text"], called if cell.get("id") is None else str(cell["id"])
    if not isinstance(text, str):
        raise UserError(f"'{name}' must have a text, but has {text!r:.60} instead.")
    if isinstance(sound, str | bytes):
        sound = {"bytes": None, "path": sound} if isinstance(sound, str) else {"bytes": sound, "path": None}
    if not sound or (sound["bytes"] is None and not sound["path"]):
        raise UserError(f"'{name}' must have audio, but has none.")
    path = str(_hf_file(sound, name, folder, options))
    seconds = _seconds(path)
    try:
        span = span_of(cell, column, lambda: seconds, options.report) if {"offset", "end"} & set(column) else {}
        if seconds is not None and span.get("offset", 0.0) + span.get("duration", _SAME_S) > seconds + _SAME_S:
            span = {}
            kind = "times that lie beyond the audio of their row are not taken: the audio is read whole"
            options.report.note(kind, [name])
    except UserError:
        span = {}
        options.report.leave_out("rows whose start and end are no times are read whole", [place])
    try:
        channel = None if cell.get("channel") is None else channel_of(cell["channel"])
    except UserError:  # a channel of another kind: of a broadcaster, say
        channel = None
    extra = plain_fields({key: value for key, value in row.items() if key not in column.values()})
    if channel is None and isinstance(cell.get("channel"), str):
        extra["channel_name"] = cell["channel"]
    if split is not None:
        extra["split"] = split
    speaker = cell.get("speaker")
    return Utterance(
        id=name, text=" ".join(text.split()), audio_filepath=path, channel=channel, extra=extra,
        speaker=None if speaker is None else str(speaker), **span,
    )  # fmt: skip


def _hf_file(sound: dict[str, Any], name: str, folder: Path, options: Options) -> Path:
    data, path = sound["bytes"], sound["path"]
    if data is None and "://" not in path:
        return Path(find_audio(path, folder, options.report))
    if data is None:
        import fsspec

        with fsspec.open(path, "rb") as file:
            data = file.read()
    return write_sound(data, options.audio_to, f"utterance '{name}'")


# --- which kind of data a path is -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of data: what people call it, and its reader."""

    title: str
    read: Callable[[Any, Options], Iterable[Row]]  # of a path; `hf` of a name too


def read_own(path: Path, options: Options) -> Iterator[Row]:
    """A manifest of hkd's."""
    folder = path.parent.absolute()
    return options.report.usable(filled_lines(path, "a manifest"), lambda line: manifest.parse_line(line, folder))


KINDS = {
    "folder": Kind("a folder of audio with texts (.txt, .lab) or a table (.tsv, .csv)", read_folder),
    "kaldi": Kind("a Kaldi data folder", read_kaldi),
    "nemo": Kind("a NeMo manifest", read_nemo),
    "lhotse": Kind("manifests of lhotse's", lhotse.read_lhotse),
    "hf": Kind("a Hugging Face data set", read_hf),
    "hkd": Kind("a manifest of hkd's", read_own),
}


def read_path(source: str, kind: str, options: Options) -> Manifest:
    """The utterances of a path (or, for `hf`, a name) of that kind. Raises UserError, HkdError."""
    check_choice("--from", kind, KINDS)
    where = source if kind == "hf" else Path(source)
    if isinstance(where, Path) and not where.exists():
        if NEMO_PATTERN.search(source):
            raise UserError(f"{source}: {_TARRED}")
        raise UserError(f"{source} must be {KINDS[kind].title}, but is not there.")
    return collect(KINDS[kind].read(where, options), where, options)


def guess_kind(path: Path) -> str:
    """Which kind of data a path is. Raises UserError where it could be several, or none."""
    kinds = sorted(set(_folder_clues(path) if path.is_dir() else _file_clues(path)))
    if len(kinds) > 1:
        titles = " or ".join(KINDS[kind].title for kind in kinds)
        raise UserError(f"{path} could be {titles}. Say which: --from {'|'.join(kinds)}.")
    if not kinds and not path.is_dir():
        remedy = " Unpack it first." if path.suffix.lower() in ARCHIVES else ""
        raise UserError(
            f"{path} must be a folder, a table (.tsv, .csv) or a .jsonl, or what --from names, but is none of them."
            f"{remedy}"
        )
    return kinds[0] if kinds else "folder"


def _folder_clues(folder: Path) -> Iterator[str]:
    if kaldi_folders(folder):
        yield "kaldi"
    arrow = (*_SAVED, "*.parquet", "data/*.parquet")
    tables = [folder.glob(name) for name in ("metadata.csv", "metadata.jsonl", "*/metadata.csv", "*/metadata.jsonl")]
    if any(not is_hidden(found.name) for name in arrow for found in folder.glob(name)) or any(
        "file_name" in next(filled_lines(table), ("", ""))[1] for table in chain.from_iterable(tables)
    ):
        yield "hf"
    elif any(_peek(path) in ("nemo", "hkd") for path in nemo_files(folder, Report())):
        yield "nemo"
    files = walk(folder, Report(), depth=1)
    if any(path.name.endswith(lhotse.ENDINGS) and (path.suffix == ".gz" or _peek(path) == "lhotse") for path in files):
        yield "lhotse"


def _file_clues(path: Path) -> Iterator[str]:
    by_ending = {".tsv": "folder", ".csv": "folder", ".parquet": "hf", ".json": "nemo"}
    if path.suffix.lower() == ".txt" and _is_piped(path):
        yield "folder"
    if path.suffix.lower() in by_ending:
        yield by_ending[path.suffix.lower()]
    elif path.name.endswith(lhotse.ENDINGS):
        yield _peek(path) or ("lhotse" if path.suffix == ".gz" else "hkd")


def _peek(path: Path) -> str | None:
    """Whose manifest a JSONL file is by its first row; None where that cannot be told."""
    try:
        row = next((parse_json(line) for _, line in filled_lines(path)), {})
    except UserError:
        return None
    if "recording" in row or "sources" in row or "recording_id" in row:
        return "lhotse"
    if "id" in row and "text" in row:
        return "hkd"
    return "nemo" if "audio_filepath" in row else None
