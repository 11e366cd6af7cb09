"""AN4 (CMU, 1991): spelt and spoken numbers, names and addresses; etc/an4_{train,test}.{fileids,transcription} and wav/PART/SPEAKER/ID.sph.

Training speakers are divided into `train` and `dev` by speaker; the corpus' own test part is `test`.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from hkd import lines
from hkd.corpora.card import load_card
from hkd.corpora.collect import Found, collect
from hkd.corpora.place import Place, corpus_folder
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance, assign_splits
from hkd.progress import Progress, no_progress

_ENDINGS = (".sph", ".wav", ".flac")
_LINE = re.compile(r"^(?:<s>)?(?P<text>.*?)(?:</s>)?\s*\((?P<id>[^()]+)\)$")


def read_part(folder: Path, part: str) -> Iterator[Found]:
    """The utterances of `train` or `test`. Raises UserError where a line is no transcription or a file list says otherwise."""
    listed = folder / "etc" / f"an4_{part}.fileids"
    path_of = {Path(line.strip()).name: line.strip() for _, line in lines.numbered_lines(listed, "a file list") if line.strip()}
    transcription = folder / "etc" / f"an4_{part}.transcription"
    for number, line in lines.numbered_lines(transcription, "a transcription"):
        if not line.strip():
            continue
        match = _LINE.match(line.strip())
        if match is None:
            raise UserError(f"{transcription}:{number}: a line must be TEXT (ID), but is '{line[:60]}' instead.")
        name = match["id"].strip()
        if name not in path_of:
            raise UserError(f"{transcription}:{number}: '{name}' must stand in {listed.name} too, but does not.")
        stem = folder / "wav" / path_of[name]
        audio = next(
            (p for ending in _ENDINGS if (p := stem.with_name(stem.name + ending)).exists()), stem.with_name(f"{name}.sph")
        )
        yield (
            f"{transcription}:{number}",
            Utterance(
                id=name, text=" ".join(match["text"].split()), audio_filepath=str(audio.absolute()), speaker=stem.parent.name,
                extra=MappingProxyType({"part": part}),
            ),
        )  # fmt: skip


def prepare(place: Place, *, progress: Progress = no_progress) -> Manifest:
    """AN4 with its splits."""
    folder = corpus_folder(load_card("an4"), place, "etc/an4_train.fileids", progress=progress)
    train, test = (collect(read_part(folder, part), folder, progress=progress) for part in ("train", "test"))
    divided = assign_splits(train, {"train": 0.9, "dev": 0.1}, by=lambda u: u.speaker or "")
    return Manifest([*divided, *(replace(u, extra=MappingProxyType({**u.extra, "split": "test"})) for u in test)])
