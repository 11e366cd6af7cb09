"""speechocean762 (OpenSLR 101): {train,test}/{wav.scp,text,utt2spk}, Kaldi data folders whose paths start at the corpus' folder.

`test` is the corpus' own; `dev` are 15 of the 125 training speakers. A copy of the training part alone, a Kaldi folder itself, is read too.
"""

from dataclasses import replace
from types import MappingProxyType

from hkd.corpora.card import load_card
from hkd.corpora.collect import collect
from hkd.corpora.kaldi import is_kaldi_folder, kaldi_rows
from hkd.corpora.place import Place, corpus_folder
from hkd.manifest import Manifest, assign_splits
from hkd.progress import Progress, no_progress

_SHARES = {"train": 0.88, "dev": 0.12}


def prepare(place: Place, *, progress: Progress = no_progress) -> Manifest:
    """speechocean762 with its splits."""
    card = load_card("speechocean762")
    if place.root is not None and is_kaldi_folder(place.root):
        folders = {"train": place.root}
    else:
        folder = corpus_folder(card, place, "train/wav.scp", progress=progress)
        folders = {part: folder / part for part in place.choose(card, card.parts)}
    parts = {
        part: collect(kaldi_rows(folder, extra={"part": part}), folder, progress=progress) for part, folder in folders.items()
    }
    train = assign_splits(parts["train"], _SHARES, by=lambda u: u.speaker or "") if "train" in parts else ()
    test = (replace(u, extra=MappingProxyType({**u.extra, "split": "test"})) for u in parts.get("test", ()))
    return Manifest([*train, *test])
