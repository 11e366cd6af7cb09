"""One sound file → its text, in pieces with times."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile

from hkd.audio import read_audio
from hkd.decode.recogniser import Recogniser, cut_at_quiet
from hkd.errors import UserError
from hkd.manifest import Utterance
from hkd.timebase import SAMPLE_RATE_HZ

_ENDINGS = {f".{name.lower()}" for name in soundfile.available_formats()} | {
    ".aif",
    ".aifc",
    ".oga",
    ".opus",
    ".snd",
    ".sph",
    ".wv1",
    ".wv2",
}


def sound_files(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files, of folders those below with an ending of sound; and the other files of the folders. Raises UserError for a folder without sound."""
    sounds: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if not path.is_dir():
            sounds.append(path)
            continue
        below = sorted(Path(top, name) for top, _, names in os.walk(path, followlinks=True) for name in names)
        found = [file for file in below if file.suffix.lower() in _ENDINGS and not file.name.startswith(".")]
        if not found:
            raise UserError(
                f"folder {path} must hold sound (WAV, FLAC, Opus, MP3 ...), but holds none. Give files or another folder."
            )
        sounds += found
        others += sorted(set(below) - set(found))
    return sounds, others


def transcribe_file(recogniser: Recogniser, path: Path) -> dict[str, Any]:
    """What is said in a file: `text`, `seconds`, and `pieces` (start_s, stop_s, text, units). Raises UserError for what is no sound."""
    wave_S = read_audio(Utterance(id=path.name, text="", audio_filepath=str(path)))
    pieces = []
    start = 0
    for piece_S in cut_at_quiet(wave_S):
        recognition = recogniser.recognise([piece_S])
        symbols = [recogniser.search.symbols[unit] for unit in recognition.units[0]]
        stop = start + len(piece_S)
        times = {"start_s": start / SAMPLE_RATE_HZ, "stop_s": stop / SAMPLE_RATE_HZ}
        pieces.append({**times, "text": recognition.texts[0], "units": symbols})
        start = stop
    text = " ".join(str(piece["text"]) for piece in pieces if piece["text"])
    return {"file": str(path), "text": text, "seconds": len(wave_S) / SAMPLE_RATE_HZ, "pieces": pieces}
