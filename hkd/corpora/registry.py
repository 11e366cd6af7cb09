"""Which corpora there are, and how one becomes a project's manifest.

- Splits: those that the corpus has; else by speaker where there are at least ten, else by text, so that the same words never stand in two
  splits; train, dev and test get 80, 10 and 10 % of the speakers or texts by a rule that depends on nothing but their names.
"""

import difflib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from hkd import manifest
from hkd.corpora import asterisk, librispeech, text
from hkd.corpora.card import Card, check, load_card
from hkd.corpora.fetch import default_cache
from hkd.corpora.folder import read_any
from hkd.corpora.kaldi import is_kaldi_folder, read_kaldi
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance, assign_splits
from hkd.progress import Progress, no_progress

logger = logging.getLogger(__name__)

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
MIN_SPEAKERS = 10


class Recipe(Protocol):
    """Makes a named corpus' manifest; downloads go to the cache."""

    def __call__(self, cache: Path, *, base_url: str | None, progress: Progress) -> Manifest: ...


SPEECH: Mapping[str, Recipe] = {"asterisk": asterisk.prepare, "mini_librispeech": librispeech.prepare}
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


def read_corpus(
    name_or_path: str, *, cache: Path | None = None, base_url: str | None = None, progress: Progress = no_progress
) -> Manifest:
    """A named corpus, or a path: Kaldi data folder, folder of audio with .txt, .tsv, .jsonl. Raises UserError for unknown names."""
    if name_or_path in SPEECH:
        return SPEECH[name_or_path](cache or default_cache(), base_url=base_url, progress=progress)
    path = Path(name_or_path).expanduser()
    if is_kaldi_folder(path):
        return read_kaldi(path, progress=progress)
    if path.exists():
        return read_any(path, progress=progress)
    if name_or_path in TEXT:
        raise UserError(f"corpus '{name_or_path}' is text without sound. It serves language models, not a manifest.")
    near = difflib.get_close_matches(name_or_path, SPEECH, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known corpora: {', '.join(SPEECH)}."
    raise UserError(f"a corpus must be a known name or a path, but '{name_or_path}' is neither. {hint}")


def prepare(
    name_or_path: str,
    folder: Path,
    *,
    cache: Path | None = None,
    base_url: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Make `folder`/manifest.jsonl from a corpus, with splits, checked against its card. The same call again changes nothing.

    Raises UserError where another manifest is there already, unless `overwrite`.
    """
    whole, rule = split(read_corpus(name_or_path, cache=cache, base_url=base_url, progress=progress))
    if name_or_path in SPEECH:
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
