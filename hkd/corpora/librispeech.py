"""LibriSpeech's layout: PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac with a SPEAKER-CHAPTER.trans.txt beside them.

- LibriSpeech: train-* are `train`, dev-clean and test-clean are `dev` and `test`; dev-other and test-other are splits of their own names.
- Mini LibriSpeech has a training and a development part; the latter is halved by speaker into `dev` and `test`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from hkd import lines
from hkd.corpora.card import Card, load_card
from hkd.corpora.collect import Found, collect
from hkd.corpora.place import Place, archive_folder, find_below
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance, assign_splits
from hkd.progress import Progress, no_progress

_MINI_TRAIN = "train-clean-5"
_SPLIT_OF = {"dev-clean": "dev", "test-clean": "test"}


def read_part(folder: Path, part: str) -> Iterator[Found]:
    """The utterances of a part's folder by id, with `part` in the extra fields. Raises UserError where a transcript has no audio."""
    for transcript in sorted(folder.rglob("*.trans.txt")):
        for number, line in lines.numbered_lines(transcript, "a transcript"):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            path = (transcript.parent / f"{name}.flac").absolute()
            if not path.exists():
                raise UserError(
                    f"{transcript}:{number}: {name} has a text, but {path.name} is not beside it. Unpack the archive anew."
                )
            speaker, _, chapter = transcript.name.removesuffix(".trans.txt").partition("-")
            extra = {"recording": f"{speaker}-{chapter}", "part": part}
            yield (
                f"{transcript}:{number}",
                Utterance(id=name, text=text.strip(), audio_filepath=str(path), speaker=speaker, extra=MappingProxyType(extra)),
            )


def prepare(place: Place, *, progress: Progress = no_progress) -> Manifest:
    """LibriSpeech, the parts that are asked for; without a wish those that `root` has, or all."""
    parts = _read(load_card("librispeech"), place, progress)
    split_of = {part: "train" if part.startswith("train-") else _SPLIT_OF.get(part, part) for part in parts}
    return Manifest(_with_split(u, split_of[part]) for part, found in parts.items() for u in found)


def prepare_mini(place: Place, *, progress: Progress = no_progress) -> Manifest:
    """Mini LibriSpeech with its splits."""
    parts = _read(load_card("mini_librispeech"), place, progress)
    train = [_with_split(u, "train") for u in parts.pop(_MINI_TRAIN, ())]
    held_out = [u for found in parts.values() for u in found]
    return Manifest([*train, *assign_splits(Manifest(held_out), {"dev": 0.5, "test": 0.5}, by=lambda u: u.speaker or "")])


def _with_split(u: Utterance, split: str) -> Utterance:
    return replace(u, extra=MappingProxyType({**u.extra, "split": split}))


def _read(card: Card, place: Place, progress: Progress) -> dict[str, Manifest]:
    """Part → its utterances: from a folder of that name below `root`, else from its archive."""
    archives = {archive.file.removesuffix(".tar.gz"): archive for archive in card.archives}
    folders: dict[str, Path] = {}
    for part in place.choose(card, archives):
        above = find_below(place.root, part) if place.root is not None else None
        if above is not None:
            folders[part] = above / part
        elif place.root is None or place.parts or not card.some_parts or (place.root / archives[part].file).is_file():
            folders[part] = archive_folder(card, archives[part], place, progress=progress)
    if not folders:
        raise UserError(f"{place.root} must hold parts of {card.name} ({', '.join(archives)}), but holds none of them.")
    return {part: collect(read_part(folder, part), folder, progress=progress) for part, folder in folders.items()}
