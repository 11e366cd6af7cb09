"""Which corpora there are, and how one becomes a project's manifest.

- A corpus is a name that is known here, the name of a recipe of lhotse's (`kind="lhotse"` and a root), a data set on the Hugging Face hub
  (`kind="hf"`), or a path whose kind is given or guessed.
- Splits: those that the corpus has; else by speaker where there are at least ten, else by text, so that the same words never stand in two
  splits; train, dev and test get 80, 10 and 10 % of the speakers or texts by a rule that depends on nothing but their names.
"""

import difflib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from hkd import manifest
from hkd.corpora import an4, asterisk, common_voice, lhotse, librispeech, ljspeech, speechocean762, text, timit, yesno
from hkd.corpora.card import Card, check, load_card
from hkd.corpora.imports import guess_kind, read_path
from hkd.corpora.place import Place
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance, assign_splits
from hkd.progress import Progress, no_progress
from hkd.remote import default_cache

logger = logging.getLogger(__name__)

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
MIN_SPEAKERS = 10


class Recipe(Protocol):
    """Makes a named corpus' manifest."""

    def __call__(self, place: Place, *, progress: Progress) -> Manifest: ...


SPEECH: Mapping[str, Recipe] = {
    "an4": an4.prepare,
    "asterisk": asterisk.prepare,
    "common_voice": common_voice.prepare,
    "librispeech": librispeech.prepare,
    "ljspeech": ljspeech.prepare,
    "mini_librispeech": librispeech.prepare_mini,
    "speechocean762": speechocean762.prepare,
    "timit": timit.prepare,
    "yesno": yesno.prepare,
}
TEXT: Mapping[str, Callable[..., int]] = {"fortunes": text.prepare}


def known_corpora() -> list[Card]:
    """The cards of all corpora that can be prepared by name."""
    return [load_card(name) for name in sorted([*SPEECH, *TEXT])]


def _same_words(utterance: Utterance) -> str:
    letters = "".join(c if c.isalnum() or c == "'" else " " for c in utterance.text.casefold())
    return " ".join(letters.split())


def _speaker(utterance: Utterance) -> str:
    if not utterance.speaker:
        raise UserError(f"utterance '{utterance.id}' must have a speaker, but has none. Split by text or recording.")
    return utterance.speaker


GROUPS: Mapping[str, Callable[[Utterance], str]] = {
    "speaker": _speaker,
    "recording": lambda utterance: utterance.recording,
    "text": _same_words,
}


def split(whole: Manifest) -> tuple[Manifest, str]:
    """A manifest with splits, and by which rule it got them (see the module)."""
    if any(u.split for u in whole):
        missing = sum(u.split is None for u in whole)
        if missing:
            raise UserError(f"either all utterances or none must have a split, but {missing} of {len(whole)} have none.")
        return whole, "as given"
    speakers = {u.speaker for u in whole}
    if None not in speakers and len(speakers) >= MIN_SPEAKERS:
        return assign_splits(whole, SHARES, by=_speaker), "by speaker"
    return assign_splits(whole, SHARES, by=_same_words), "by text"


def kind_of(name_or_path: str, kind: str | None = None) -> str | None:
    """The kind of data that a name or path is read as; None for a corpus that is known by name. Raises UserError where it is neither."""
    if kind is not None:
        return kind
    if name_or_path in SPEECH:
        return None
    path = Path(name_or_path).expanduser()
    if path.exists():
        return guess_kind(path)
    if name_or_path in TEXT:
        raise UserError(f"corpus '{name_or_path}' is text without sound. It serves language models, not a manifest.")
    near = difflib.get_close_matches(name_or_path, SPEECH, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known corpora: {', '.join(SPEECH)}."
    raise UserError(f"a corpus must be a known name or a path, but '{name_or_path}' is neither. {hint}")


def read_corpus(
    name_or_path: str,
    *,
    kind: str | None = None,
    place: Place | None = None,
    audio_to: Path = Path("audio"),
    progress: Progress = no_progress,
) -> Manifest:
    """A named corpus, or data of some kind (see the module); sound that no path names is written below `audio_to`. Raises UserError, HkdError."""
    place = place or Place()
    kind = kind_of(name_or_path, kind)
    if place.parts and not (kind is None and load_card(name_or_path).some_parts):
        raise UserError(f"--part must go with a corpus that has parts to choose from, but {name_or_path} has none. Leave it out.")
    if kind is None:
        return SPEECH[name_or_path](place, progress=progress)
    path = Path(name_or_path).expanduser()
    if kind == "lhotse" and place.root is not None and not path.exists():
        return lhotse.read_recipe(name_or_path, place.root, audio_to=audio_to, progress=progress)
    if place.root is not None:
        raise UserError(f"--root must go with the name of a corpus, but {name_or_path} is read as it is. Leave it out.")
    return read_path(str(path) if path.exists() else name_or_path, kind, audio_to=audio_to, progress=progress)


def prepare(
    name_or_path: str,
    folder: Path,
    *,
    kind: str | None = None,
    cache: Path | None = None,
    root: Path | None = None,
    base_url: str | None = None,
    download: bool = False,
    parts: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Make `folder`/manifest.jsonl from a corpus, with splits, checked against its card. The same call again changes nothing.

    `kind`, `root`, `base_url`, `download` and `parts`: see `read_corpus` and `hkd.corpora.place`. Raises UserError where another manifest
    is there already, unless `overwrite`.
    """
    place = Place(cache=cache or default_cache(), root=root, base_url=base_url, download=download, parts=parts)
    read = read_corpus(name_or_path, kind=kind, place=place, audio_to=folder / "audio", progress=progress)
    whole, rule = split(read)
    if kind is None and name_or_path in SPEECH:
        check(load_card(name_or_path), whole)
    logger.info("%d utterances, split %s", len(whole), rule)
    path = folder / "manifest.jsonl"
    if path.exists() and not overwrite:
        there = manifest.read(path)
        if there.digest != whole.digest:
            raise UserError(f"{path} must not be replaced, but is of another corpus. Use another folder, or --overwrite.")
        return there  # with whatever splits it has by now
    manifest.write(path, whole)
    return whole


def prepare_text(name: str, out: Path, *, cache: Path | None = None, progress: Progress = no_progress) -> int:
    """Write a text-only corpus to `out`, a sentence a line; their number. Raises UserError for unknown names."""
    if name not in TEXT:
        raise UserError(f"text corpus must be one of {', '.join(TEXT)}, but is '{name}' instead.")
    return TEXT[name](cache or default_cache(), out, progress=progress)
