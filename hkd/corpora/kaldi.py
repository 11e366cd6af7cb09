"""A Kaldi data folder (wav.scp with plain paths, text, and where they are there utt2spk, segments, reco2dur), or a folder of such: a split each.

Piped commands in wav.scp are refused: hkd runs no commands out of data files. Paths are looked for in the data folder, in those above
it, and in the working directory, as Kaldi's recipes write them relative to their own.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from hkd import lines
from hkd.corpora.collect import Found, collect, find_audio, refuse, split_named
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

_ARK = re.compile(r"\.ark(:\d+)?(\[.*\])?$")
Table = dict[str, tuple[int, str]]  # key → line number, rest of the line


def is_kaldi_folder(folder: Path) -> bool:
    """Whether a folder looks like one of Kaldi's."""
    return (folder / "wav.scp").is_file()


def split_folders(folder: Path) -> list[Path]:
    """The Kaldi folders right below a folder."""
    return sorted(path.parent for path in folder.glob("*/wav.scp"))


def read_kaldi(folder: Path, *, progress: Progress = no_progress) -> Manifest:
    """The utterances of a data folder in order of ids, or of all data folders right below it, their names telling the splits. Raises UserError."""
    if is_kaldi_folder(folder):
        return collect(kaldi_rows(folder), folder, progress=progress)
    parts = split_folders(folder)
    if not parts:
        raise UserError(f"{folder} must be a Kaldi data folder or hold such, but there is no wav.scp in it nor right below it.")
    found = [
        row for part in parts for row in kaldi_rows(part, extra={"split": split_named(part.name) or part.name, "part": part.name})
    ]
    return collect(found, folder, progress=progress)


def kaldi_rows(folder: Path, *, extra: dict[str, str] | None = None) -> Iterator[Found]:
    """The utterances of one data folder, with their places in `text`."""
    audio, text = _table(folder / "wav.scp"), _table(folder / "text")
    speaker = _table(folder / "utt2spk") if (folder / "utt2spk").exists() else {}
    refuse(
        (f"line {number}: {name}" for name, (number, path) in audio.items() if path.endswith("|")),
        folder / "wav.scp",
        "entries are commands, where only paths are read (write the sound to files first, with wav-copy or sox)",
    )
    refuse(
        (f"line {number}: {name}" for name, (number, path) in audio.items() if _ARK.search(path)),
        folder / "wav.scp",
        "entries lie in archives, where only paths of sound files are read (write them out with wav-copy first)",
    )
    segments = _segments(folder / "segments", audio) if (folder / "segments").exists() else None
    lengths = _lengths(folder / "reco2dur") if (folder / "reco2dur").exists() else {}
    refuse(
        (f"line {number}: {name}" for name, (number, _) in text.items() if name not in (segments or audio)),
        folder / "text",
        "utterances have no audio",
    )
    for name in sorted(text):
        recording, start, stop = segments[name] if segments is not None else (name, 0.0, None)
        number, path = audio[recording]
        if not path:
            raise UserError(f"{folder / 'wav.scp'}:{number}: '{name}' must have a path, but has none.")
        if speaker and name not in speaker:
            raise UserError(
                f"{folder / 'utt2spk'}: every utterance must have a speaker, but '{name}' has none. Add it, or remove the file."
            )
        duration = lengths.get(recording) if segments is None else None if stop is None else stop - start
        yield (
            f"{folder / 'text'}:{text[name][0]}",
            Utterance(
                id=name,
                text=" ".join(text[name][1].split()),
                audio_filepath=find_audio(path, folder),
                offset=start,
                duration=duration,
                speaker=speaker[name][1] if speaker else None,
                extra=MappingProxyType({**(extra or {}), **({"recording": recording} if segments is not None else {})}),
            ),
        )


def _table(path: Path) -> Table:
    """First word of a line → its number and the rest. Raises UserError with file and line for a duplicate."""
    table: Table = {}
    for number, line in lines.numbered_lines(path, "a Kaldi table"):
        parts = line.split(maxsplit=1)
        if parts:
            if parts[0] in table:
                raise UserError(f"{path}:{number}: '{parts[0]}' must stand once, but stands at line {table[parts[0]][0]} too.")
            table[parts[0]] = (number, parts[1].strip() if len(parts) > 1 else "")
    return table


def _segments(path: Path, audio: Table) -> dict[str, tuple[str, float, float | None]]:
    """Utterance → recording, start, end (None: to the end of the recording, Kaldi's -1). Raises UserError with file and line."""
    segments: dict[str, tuple[str, float, float | None]] = {}
    for name, (number, line) in _table(path).items():
        try:
            recording, start, stop = line.split()[0], *map(float, line.split()[1:3])
        except (ValueError, IndexError):
            raise UserError(
                f"{path}:{number}: a segment must be UTTERANCE RECORDING START END, but is '{name} {line[:60]}' instead."
            ) from None
        if recording not in audio:
            raise UserError(f"{path}:{number}: '{name}' is cut from '{recording}', which is not in wav.scp.")
        to_the_end = stop == -1
        if not (math.isfinite(start) and start >= 0 and (to_the_end or (math.isfinite(stop) and stop > start))):
            raise UserError(
                f"{path}:{number}: a segment must start at 0 s or later and end after that, but is {start:g} to {stop:g} s."
            )
        segments[name] = (recording, start, None if to_the_end else stop)
    return segments


def _lengths(path: Path) -> dict[str, float]:
    """Recording → seconds. Raises UserError with file and line."""
    lengths = {}
    for name, (number, value) in _table(path).items():
        try:
            lengths[name] = float(value)
        except ValueError:
            raise UserError(f"{path}:{number}: a duration must be a number of seconds, but is '{value[:60]}' instead.") from None
        if not (math.isfinite(lengths[name]) and lengths[name] > 0):
            raise UserError(f"{path}:{number}: a duration must be finite and above 0, but is {value} instead.")
    return lengths
