"""LibriSpeech's layout: PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac with a SPEAKER-CHAPTER.trans.txt beside them.

Mini LibriSpeech has a training and a development part; the latter is halved by speaker into `dev` and `test`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from hkd.audio import probe
from hkd.corpora.card import load_card
from hkd.corpora.fetch import download, unpack
from hkd.errors import HkdError
from hkd.manifest import Manifest, Utterance, assign_splits
from hkd.progress import Progress, no_progress

TRAIN, DEV = "train-clean-5", "dev-clean-2"


def read_part(folder: Path, part: str) -> Iterator[Utterance]:
    """The utterances of a part's folder by id, with `part` in the extra fields. Raises HkdError where a transcript has no audio."""
    for transcript in sorted(folder.rglob("*.trans.txt")):
        for line in transcript.read_text(encoding="utf-8").splitlines():
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            path = (transcript.parent / f"{name}.flac").absolute()
            if not path.exists():
                raise HkdError(f"{transcript} tells of {name}, but {path.name} is not beside it. Unpack the archive anew.")
            speaker, chapter = name.split("-")[:2]  # the corpus' own naming, read once, here
            yield Utterance(
                id=name, text=text, audio_filepath=str(path), duration=probe(path).duration_s, speaker=speaker,
                extra=MappingProxyType({"recording": f"{speaker}-{chapter}", "part": part}),
            )  # fmt: skip


def prepare(cache: Path, *, base_url: str | None = None, progress: Progress = no_progress) -> Manifest:
    """Mini LibriSpeech with its splits; archives and audio in `cache`/mini_librispeech."""
    card = load_card("mini_librispeech")
    base = (base_url or card.base_url).rstrip("/")
    home = cache / "mini_librispeech"
    parts: dict[str, list[Utterance]] = {}
    for archive in card.archives:
        path = download(f"{base}/{archive.file}", home / archive.file, archive, progress=progress)
        part = archive.file.removesuffix(".tar.gz")
        folder = unpack(path, home / part)
        parts[part] = list(read_part(folder, part))
    train = [replace(u, extra=MappingProxyType({**u.extra, "split": "train"})) for u in parts[TRAIN]]
    held_out = assign_splits(Manifest(parts[DEV]), {"dev": 0.5, "test": 0.5}, by=lambda u: u.speaker or "")
    return Manifest([*train, *held_out])
