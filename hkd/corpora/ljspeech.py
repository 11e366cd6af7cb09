"""LJSpeech 1.1: metadata.csv (id|text|normalised text) and wavs/ID.wav, one female speaker, 22.05 kHz. The normalised text is taken."""

from collections.abc import Iterator
from pathlib import Path

from hkd import lines
from hkd.corpora.card import load_card
from hkd.corpora.collect import Found, collect
from hkd.corpora.place import Place, corpus_folder
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

SPEAKER = "lj"


def read(folder: Path) -> Iterator[Found]:
    """The utterances in the table's order. Raises UserError with file and line."""
    table = folder / "metadata.csv"
    for number, line in lines.numbered_lines(table, "a table"):
        if not line.strip():
            continue
        cells = line.split("|")
        if len(cells) < 2 or not cells[0].strip():
            raise UserError(f"{table}:{number}: a row must be ID|TEXT|NORMALISED TEXT, but is '{line[:60]}' instead.")
        name, text = cells[0].strip(), cells[2 if len(cells) > 2 else 1].strip()
        path = (folder / "wavs" / f"{name}.wav").absolute()
        yield f"{table}:{number}", Utterance(id=name, text=text, audio_filepath=str(path), speaker=SPEAKER)


def prepare(place: Place, *, progress: Progress = no_progress) -> Manifest:
    """LJSpeech, without splits (one speaker: they are made by text)."""
    folder = corpus_folder(load_card("ljspeech"), place, "metadata.csv", progress=progress)
    return collect(read(folder), folder, progress=progress)
