"""Common Voice, any language: a release's folder LANGUAGE/ with train.tsv, dev.tsv, test.tsv and clips/*.mp3."""

from dataclasses import replace
from pathlib import Path

from hkd.corpora.card import load_card
from hkd.corpora.collect import collect
from hkd.corpora.folder import tsv_rows
from hkd.corpora.place import Place, corpus_folder
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

PARTS = ("train", "dev", "test")


def read(folder: Path, *, progress: Progress = no_progress) -> Manifest:
    """The three splits. Raises UserError with file and line."""
    found = []
    for split in PARTS:
        for place, u in tsv_rows(folder / f"{split}.tsv", audio=folder / "clips", split=split):
            found.append((place, _with_ending(u)))
    return collect(found, folder, progress=progress)


def _with_ending(u: Utterance) -> Utterance:
    """Releases before 2019-12 name clips without their ending."""
    path = Path(u.audio_filepath or "")
    return u if path.suffix else replace(u, audio_filepath=str(path.with_suffix(".mp3")))


def prepare(place: Place, *, progress: Progress = no_progress) -> Manifest:
    """A language of Common Voice. Raises UserError where the folder holds several."""
    folder = corpus_folder(load_card("common_voice"), place, "train.tsv", progress=progress)
    others = sorted(path.parent.name for path in folder.parent.glob("*/train.tsv"))
    if place.root is not None and folder != place.root and len(others) > 1:
        raise UserError(
            f"--root must be one language's folder, but {folder.parent} has {', '.join(others)}. Give {folder.parent}/LANGUAGE."
        )
    return read(folder, progress=progress)
