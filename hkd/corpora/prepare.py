"""How a corpus becomes a project's manifest.

- A corpus is a name that is known here, the name of a recipe of lhotse's (`kind="lhotse"` and a root), a data set on
  the Hugging Face hub (`kind="hf"`), or a path whose kind is given or guessed.
- Splits are those that the corpus has; else they are made (`split`), so that the same voices or words never stand in
  two splits where that can be had. The rule depends on nothing but names and texts.
- Preparing again takes what has changed and says so; other utterances or texts are refused.
"""

import difflib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from hkd import manifest
from hkd.corpora import lhotse
from hkd.corpora.cards import CORPORA, check
from hkd.corpora.collect import Options, Report, collect
from hkd.corpora.importers import NEMO_PATTERN, guess_kind, read_path
from hkd.errors import HkdError, UserError
from hkd.files import atomic_write
from hkd.manifest import Manifest, Utterance, assign_splits
from hkd.progress import Progress, no_progress

logger = logging.getLogger(__name__)

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
MIN_GROUPS = 10  # speakers or texts, for splits that deserve the name
LEFT_OUT = "left-out.tsv"


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


def split(whole: Manifest, report: Report | None = None) -> tuple[Manifest, str]:
    """A manifest with splits, and by which rule it got them: as given; else by the first of these that has enough
    groups.

    Ten speakers, ten texts, three speakers, three texts, three recordings, three utterances. With fewer utterances all
    are `train`. train, dev and test get 80, 10 and 10 % of the groups. What is worse than ten of either is noted in the
    report.
    """
    report = report or Report()
    if any(u.split for u in whole):
        missing = sum(u.split is None for u in whole)
        if missing:
            raise UserError(
                f"either all utterances or none must have a split, but {missing} of {len(whole)} have none."
            )
        return whole, "as given"
    speakers, texts = {u.speaker or "" for u in whole}, {_same_words(u) for u in whole}
    if "" in speakers:
        unknown = [u.id for u in whole if not u.speaker]
        some = " of some" if len(unknown) < len(whole) else ""
        report.note(
            f"no speaker is known{some}, so the same voice may be in train and test (give one folder a speaker, a "
            f"column `speaker`, or a "
            "pattern of the ids: --speaker '^[^_]+')",
            unknown,
        )
        speakers = set()
    for name, by, groups, at_least in (
        ("speaker", _speaker, speakers, MIN_GROUPS),
        ("text", _same_words, texts, MIN_GROUPS),
        ("speaker", _speaker, speakers, len(SHARES)),
        ("text", _same_words, texts, len(SHARES)),
        ("recording", GROUPS["recording"], {u.recording for u in whole}, len(SHARES)),
        ("utterance", lambda u: u.id, {u.id for u in whole}, len(SHARES)),
    ):
        if len(groups) >= at_least:
            if at_least < MIN_GROUPS:
                few = f"there are {len(speakers) or 'no known'} speakers and {len(texts)} different texts"
                same = ", so the same texts are in train and test" if name != "text" and len(texts) < MIN_GROUPS else ""
                report.note(f"splits are made by {name}: {few}{same} (a column or field `split` gives your own)")
            return assign_splits(whole, SHARES, by=by), f"by {name}"
    report.note(f"all is train: splits need at least {len(SHARES)} utterances, but there are {len(whole)}")
    return assign_splits(whole, {"train": 1.0}, by=lambda u: u.id), "all train"


def kind_of(name_or_path: str, kind: str | None = None) -> str | None:
    """The kind of data that a name or path is read as; None for a corpus that is known by name. Raises UserError where
    it is neither."""
    path = Path(name_or_path).expanduser()
    is_text = name_or_path in text_corpora()
    if kind is not None or (name_or_path in CORPORA and not is_text):
        return kind
    if path.exists():
        return guess_kind(path)
    if is_text:
        raise UserError(f"corpus '{name_or_path}' is text without sound. It serves language models, not a manifest.")
    if NEMO_PATTERN.search(name_or_path):
        return "nemo"
    known = sorted(name for name, corpus in CORPORA.items() if not corpus.is_text)
    near = difflib.get_close_matches(name_or_path, known, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known corpora: {', '.join(known)}."
    raise UserError(f"a corpus must be a known name or a path, but '{name_or_path}' is neither. {hint}")


def read_corpus(name_or_path: str, *, kind: str | None = None, options: Options | None = None) -> Manifest:
    """A named corpus, or data of some kind (see the module). Raises UserError, HkdError."""
    options = options or Options()
    kind = kind_of(name_or_path, kind)
    if options.parts and not (kind is None and CORPORA[name_or_path].card.some_parts):
        raise UserError(
            f"--part must go with a corpus that has parts to choose from, but {name_or_path} has none. Leave it out."
        )
    if options.columns and kind not in ("folder", "hf", "nemo"):
        raise UserError(
            f"--column must go with a table (folder, hf, nemo), but {name_or_path} is read as {kind or 'itself'}. "
            f"Leave it out."
        )
    if kind is None:
        return CORPORA[name_or_path].manifest(options)
    path = Path(name_or_path).expanduser()
    if kind == "lhotse" and options.root is not None and not path.exists():
        return collect(lhotse.recipe_rows(name_or_path, options.root, options), options.root, options)
    if options.root is not None:
        raise UserError(f"--root must go with the name of a corpus, but {name_or_path} is read as it is. Leave it out.")
    return read_path(str(path) if path.exists() else name_or_path, kind, options)


def prepare(
    name_or_path: str,
    folder: Path,
    options: Options | None = None,
    *,
    kind: str | None = None,
    speaker: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Make `folder`/manifest.jsonl from a corpus, with splits, checked against its card. The same call again changes
    nothing.

    `kind`: see `read_corpus`. `speaker`: a pattern whose first match in an id (or its first group) is the speaker. The
    report counts what is left out; `left-out.tsv` beside the manifest lists it all. Raises UserError where a manifest
    of other utterances is there already, unless `overwrite`.
    """
    options = replace(options or Options(), audio_to=folder / "audio")
    report = options.report
    report.path = folder / LEFT_OUT
    try:
        read = read_corpus(name_or_path, kind=kind, options=options)
        if speaker:
            read = _with_speakers(read, speaker)
        whole, rule = split(read, report)
        if kind is None and name_or_path in CORPORA and not report.num_bad:
            check(CORPORA[name_or_path].card, whole)
    except HkdError:
        if report.num_bad:
            report.write()
        raise
    report.write()
    logger.info("%d utterances, split %s", len(whole), rule)
    for line in report.lines():
        logger.warning("%s (all in %s)", line, report.path)
    path = folder / "manifest.jsonl"
    if path.exists() and not overwrite:
        whole = _updated(path, whole, rule, report)
    if report.outcome != "up to date":
        manifest.write(path, whole)
    return whole


def _with_speakers(whole: Manifest, pattern: str) -> Manifest:
    """The utterances with the speaker that a pattern finds in their ids. Raises UserError where it finds none."""
    try:
        found = {u.id: re.search(pattern, u.id) for u in whole}
    except re.error as error:
        raise UserError(f"--speaker must be a regular expression, but '{pattern}' is none ({error}).") from None
    name_of = {name: (match[1] if match.re.groups else match[0]) for name, match in found.items() if match}
    if without := [u.id for u in whole if not name_of.get(u.id)]:
        raise UserError(
            f"--speaker must match every id, but '{pattern}' finds nothing in {len(without)} of {len(whole)}, "
            f"'{without[0]}' first."
        )
    return Manifest(replace(u, speaker=name_of[u.id]) for u in whole)


def _without_split(u: Utterance) -> dict[str, object]:
    return {name: value for name, value in u.extra.items() if name != "split"}


def _facts(u: Utterance) -> dict[str, object]:
    """What may change while an utterance stays the same: all but id, text and split."""
    names = ("audio_filepath", "offset", "duration", "channel", "speaker")
    return {**{name: getattr(u, name) for name in names}, **_without_split(u)}


def _updated(path: Path, whole: Manifest, rule: str, report: Report) -> Manifest:
    """The manifest that follows the one at `path`: with the new facts, with the splits that stand there. Says what has
    changed.

    Raises UserError where ids or texts are others.
    """
    before = manifest.read(path)
    if before.digest != whole.digest:
        there, wanted = {u.id: u.text for u in before}, {u.id: u.text for u in whole}
        new = [name for name, text in wanted.items() if there.get(name) != text]
        gone = [name for name in there if name not in wanted]
        raise UserError(
            f"{path} must not be replaced, but has other utterances ({len(new)} new or with another text, {len(gone)} "
            f"gone, "
            f"'{(new + gone)[0]}' first). Use another folder, or --overwrite."
        )
    changed: dict[str, list[str]] = defaultdict(list)
    kept = 0
    after = []
    for u in whole:
        old = before.by_id(u.id)
        was, now = _facts(old), _facts(u)
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                changed[name].append(f"'{u.id}': {was.get(name)} → {now.get(name)}")
        if old.split != u.split:
            kept += 1
            u = replace(u, extra=_without_split(u) | ({"split": old.split} if old.split else {}))
        after.append(u)
    for name, examples in changed.items():
        report.note(f"{name} of {len(examples)} utterances was another and is replaced, for example {examples[0]}")
    if (
        changed.keys() & {"offset", "duration", "channel", "audio_filepath"}
        and (path.parent / "alignment.arrow").exists()
    ):
        report.note("the alignment was made of the sound as it was: run hkd align --overwrite if the sound has changed")
    if kept:
        by = "the corpus has" if rule == "as given" else f"splits {rule} give"
        report.note(f"{kept} utterances keep the split that {path} has, where {by} another (--overwrite takes that)")
    report.outcome = "updated" if changed else "up to date"
    return Manifest(after)


def text_corpora() -> list[str]:
    """The names of the corpora that are text without sound."""
    return sorted(name for name, corpus in CORPORA.items() if corpus.is_text)


def prepare_text(name: str, out: Path, *, progress: Progress = no_progress) -> int:
    """Write a text-only corpus to `out`, a sentence a line; their number. Raises UserError for unknown names."""
    if name not in text_corpora():
        raise UserError(f"text corpus must be one of {', '.join(text_corpora())}, but is '{name}' instead.")
    corpus, number = CORPORA[name], 0
    with atomic_write(out) as file:
        for sentence in corpus.read(corpus.card, Options(progress=progress)):
            file.write(f"{sentence}\n".encode())
            number += 1
    return number
