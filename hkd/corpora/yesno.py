"""yesno: sixty recordings of eight words each by one speaker, who says yes or no in Hebrew. The file's name is what is said."""

import re
from collections.abc import Iterator
from pathlib import Path

from hkd.corpora.card import load_card
from hkd.corpora.collect import Found, collect
from hkd.corpora.place import Place, corpus_folder
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

_NAME = re.compile(r"[01](_[01]){7}")
_WORDS = {"0": "NO", "1": "YES"}


def read(folder: Path) -> Iterator[Found]:
    """The utterances by name. Raises UserError for a file whose name is not eight zeros or ones."""
    for path in sorted(folder.glob("*.wav")):
        if not _NAME.fullmatch(path.stem):
            raise UserError(f"{path}: a name must be eight zeros or ones with _ between them, but is '{path.stem}' instead.")
        text = " ".join(_WORDS[digit] for digit in path.stem.split("_"))
        yield str(path), Utterance(id=path.stem, text=text, audio_filepath=str(path.absolute()), speaker="yesno")


def prepare(place: Place, *, progress: Progress = no_progress) -> Manifest:
    """yesno, without splits (one speaker: they are made by text)."""
    folder = corpus_folder(load_card("yesno"), place, "[01]_[01]_*.wav", progress=progress)
    return collect(read(folder), folder, progress=progress)
