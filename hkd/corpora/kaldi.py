"""A Kaldi data folder: wav.scp (plain paths), text, and where they are there utt2spk and segments.

Piped commands in wav.scp are refused: hkd runs no commands out of data files.
"""

from pathlib import Path

from hkd.corpora.folder import refuse, with_durations
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress


def is_kaldi_folder(folder: Path) -> bool:
    """Whether a folder looks like one of Kaldi's."""
    return (folder / "wav.scp").is_file() and (folder / "text").is_file()


def _table(path: Path) -> dict[str, str]:
    """First word of a line → the rest. Raises UserError with file and line for a duplicate or for text that is not UTF-8."""
    table: dict[str, str] = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            name, _, rest = line.strip().partition(" ")
            if "\t" in name:
                name, _, rest = line.strip().partition("\t")
            if not name:
                continue
            if name in table:
                raise UserError(f"{path}:{number}: '{name}' must stand once, but stands twice.")
            table[name] = rest.strip()
    except UnicodeDecodeError:
        raise UserError(f"{path} must be UTF-8, but is not. Re-encode it.") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from None
    return table


def _segment(line: str, name: str, path: Path) -> tuple[str, float, float]:
    try:
        recording, start, end = line.split()
        return recording, float(start), float(end)
    except ValueError:
        raise UserError(f"{path}: segment '{name}' must be RECORDING START END, but is '{line}' instead.") from None


def read_kaldi(folder: Path, *, progress: Progress = no_progress) -> Manifest:
    """The utterances that have both a text and audio, in order of ids. Raises UserError that lists texts without audio."""
    audio, text = _table(folder / "wav.scp"), _table(folder / "text")
    speaker = _table(folder / "utt2spk") if (folder / "utt2spk").exists() else {}
    segments_path = folder / "segments"
    segments = _table(segments_path) if segments_path.exists() else dict.fromkeys(audio, "")
    piped = [name for name, path in audio.items() if path.endswith("|")]
    refuse(piped, folder / "wav.scp", "entries are commands, where only paths are read (write the sound to files first)")
    refuse((name for name in text if name not in segments), folder / "text", "utterances have no audio")
    utterances = []
    for name in sorted(text):
        recording, start, end = _segment(segments[name], name, segments_path) if segments_path.exists() else (name, 0.0, None)
        if recording not in audio:
            raise UserError(f"{segments_path}: '{name}' is cut from '{recording}', which is not in wav.scp.")
        utterances.append(
            Utterance(
                id=name,
                text=text[name],
                audio_filepath=str((folder / audio[recording]).absolute()),
                offset=start,
                duration=None if end is None else end - start,
                speaker=speaker.get(name),
            )
        )
    return with_durations(utterances, folder, progress=progress)
