"""One sound file → its text, in pieces with times."""

from pathlib import Path
from typing import Any

from hkd.audio import read_audio
from hkd.decode.recogniser import Recogniser, cut_at_quiet
from hkd.manifest import Utterance
from hkd.timebase import SAMPLE_RATE_HZ


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
