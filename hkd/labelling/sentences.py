"""Sentences → a manifest of text without sound, for label stores of text and for training beside speech.

- An id is `text-` and the first 16 hex digits of the SHA-256 of the sentence's words: lines that are put in or moved,
  case and punctuation do not change it. Where the same words stand again the ids end in `-2`, `-3`.
- `shuffle` gives the control: the same sentence lengths and the same words, whose order over all sentences says
  nothing.
- Left out, counted and listed: what has no words, or too many; words that the project cannot pronounce or spell; what
  is a transcript of the project, so that no student learns what it is tested on.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from hkd import manifest as manifests
from hkd.corpora import Report
from hkd.errors import UserError, check_setting
from hkd.lines import numbered_lines
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress
from hkd.units.level import SPELLED
from hkd.units.sequences import Units
from hkd.units.subword import model_file
from hkd.units.text import text_digest, words_of_line

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencesConfig:
    """Which sentences are taken."""

    max_words: int = 40  # longer sentences are left out, and said; 40 words are about 16 seconds of speech
    total_words: int = 0  # sentences at random, up to so many words in all; 0: all sentences
    shuffle: bool = False  # the control: the words of all sentences in a random order, the sentences as long as before

    def __post_init__(self) -> None:
        check_setting("`total_words`", self.total_words, "be at least 1, or 0 for all", self.total_words >= 0)
        check_setting("`max_words`", self.max_words, "be at least 1", self.max_words >= 1)


def prepare_sentences(
    texts: Sequence[Path],
    out: Path,
    *,
    units: Units,
    transcripts: Manifest | None = None,
    config: SentencesConfig | None = None,
    report: Report | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Text files, plain or .gz, a sentence a line → the manifest `out`. The same call again changes nothing.

    units: the project's; before `hkd units train`, the English dictionary says what can be pronounced. transcripts: not
    to be in it. Raises UserError where no sentence is left, and where `out` has other sentences, unless `overwrite`.
    """
    config, report = config or SentencesConfig(), report or Report()
    report.path = out.with_name(f"{out.stem}-left-out.tsv")
    spoken = frozenset(" ".join(words_of_line(u.text)) for u in transcripts or ())
    spelled = [units.spelling(level) for level in SPELLED if (units.folder / model_file(level)).exists()]

    @cache
    def problem(word: str) -> str:
        if not units.lexicon.pronounce(word):
            return "sentences with a word that has no pronunciation"
        lacking = any(model.unknown in model.encode([word])[0] for model in spelled)
        return "sentences with a letter that the project's units lack" if lacking else ""

    def left_out(line: str, said: Sequence[str]) -> tuple[str, str]:
        """Why a line is left out ("" where it is not), and what of it is named."""
        if not said:
            return "lines without words", line
        if len(said) > config.max_words:
            return f"sentences of more than {config.max_words} words", line
        if " ".join(said) in spoken:
            return "sentences that are transcripts of the project", line
        return next(((why, word) for word in said if (why := problem(word))), ("", ""))

    kept: list[tuple[str, tuple[str, ...]]] = []
    for done, path in enumerate(texts):
        for number, line in numbered_lines(path, "text", remedy="Give a text file, one sentence a line."):
            said = words_of_line(line)
            why, named = left_out(line, said)
            if why:
                report.leave_out(why, [f"{path.name}:{number}: {named}"])
                continue
            kept.append((line.strip(), tuple(said)))
            if number % 1000 == 0:
                progress(done, len(texts), sentences=len(kept))
    report.write()
    if not kept:
        raise UserError(f"{', '.join(map(str, texts))} must have sentences, but none is left. {report.path} says why.")
    count: Counter[bytes] = Counter()
    found: list[Utterance] = []
    for text, own in _chosen(kept, config):
        digest = text_digest(own)
        count[digest] += 1
        again = f"-{count[digest]}" if count[digest] > 1 else ""
        found.append(Utterance(id=f"text-{digest.hex()}{again}", text=text))
    if repeats := count.total() - len(count):
        report.note(
            f"{repeats} sentences have the words of an earlier one and are kept, with ids that end in -2, -3 ..."
        )
    for kind in report.lines():
        log.warning("%s (all in %s)", kind, report.path)
    whole = Manifest(found)
    if out.exists() and not overwrite:
        if manifests.read(out).digest != whole.digest:
            raise UserError(
                f"{out} must not be replaced, but has other sentences. Take another file (--out), or --overwrite."
            )
        report.outcome = "up to date"
    else:
        manifests.write(out, whole)
    return whole


def _chosen(kept: list[tuple[str, tuple[str, ...]]], config: SentencesConfig) -> list[tuple[str, tuple[str, ...]]]:
    """(text, words) of the sentences that are taken, in their order; shuffled if that is asked for."""
    order = np.random.default_rng(0)
    if config.total_words:
        picked = order.permutation(len(kept))
        before = np.cumsum([0, *(len(kept[n][1]) for n in picked)])[:-1]
        kept = [kept[n] for n in sorted(picked[before < config.total_words])]
    if not config.shuffle:
        return kept
    pool = [word for _, said in kept for word in said]
    words = iter([pool[n] for n in order.permutation(len(pool))])
    shuffled = [tuple(islice(words, len(said))) for _, said in kept]
    return [(" ".join(said), said) for said in shuffled]
