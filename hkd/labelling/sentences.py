"""Sentences → a manifest of text without sound, for label stores of text and for training beside speech.

- An id is `text-` and the first 16 hex digits of the SHA-256 of the sentence's words: lines that are put in or moved, case and punctuation do
  not change it. Where the same words stand again the ids end in `-2`, `-3`.
- Left out, counted and listed: what has no words, or too many; words that the project cannot pronounce or spell; what is a transcript of
  the project, so that no student learns what it is tested on.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hkd import manifest as manifests
from hkd.corpora import Report
from hkd.errors import UserError
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

    max_words: int = 40  # about 16 seconds of speech; longer ones are left out, and said

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise UserError(f"`max_words` must be at least 1, but is {self.max_words} instead.")


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

    units: the project's; before `hkd units train`, the English dictionary says what can be pronounced. transcripts: not to be in it.
    Raises UserError where no sentence is left, and where `out` has other sentences, unless `overwrite`.
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

    count: Counter[bytes] = Counter()
    found: list[Utterance] = []
    for done, path in enumerate(texts):
        for number, line in numbered_lines(path, "text", remedy="Give a text file, one sentence a line."):
            said = words_of_line(line)
            why, named = left_out(line, said)
            if why:
                report.leave_out(why, [f"{path.name}:{number}: {named}"])
                continue
            digest = text_digest(said)
            count[digest] += 1
            again = f"-{count[digest]}" if count[digest] > 1 else ""
            found.append(Utterance(id=f"text-{digest.hex()}{again}", text=line.strip()))
            if number % 1000 == 0:
                progress(done, len(texts), sentences=len(found))
    report.write()
    if not found:
        raise UserError(f"{', '.join(map(str, texts))} must have sentences, but none is left. {report.path} says why.")
    if repeats := count.total() - len(count):
        report.note(f"{repeats} sentences have the words of an earlier one and are kept, with ids that end in -2, -3 ...")
    for kind in report.lines():
        log.warning("%s (all in %s)", kind, report.path)
    whole = Manifest(found)
    if out.exists() and not overwrite:
        if manifests.read(out).digest != whole.digest:
            raise UserError(f"{out} must not be replaced, but has other sentences. Take another file (--out), or --overwrite.")
        report.outcome = "up to date"
    else:
        manifests.write(out, whole)
    return whole
