"""Word n-grams: Kneser-Ney (one discount an order, back-off) by kaldingram, in a process of its own; unigrams are relative frequencies."""

import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hkd.errors import HkdError, UserError
from hkd.files import temporary
from hkd.labelling.lm_data import read_lines
from hkd.progress import Progress, no_progress
from hkd.units.text import normalised_lines

WORDS = "words.arpa"  # its name in the folder of the LMs


@dataclass(frozen=True, kw_only=True, slots=True)
class WordNgramConfig:
    """A word n-gram. `prune`: n-grams go whose absence raises the perplexity by less than that share (Stolcke 1998); 0 keeps all.

    There are no cut-offs by count: Kneser-Ney takes its discounts from what is seen once and twice.
    """

    order: int = 3
    transcripts: bool = False  # those of the train split too
    prune: float = 1e-7

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 5:
            raise UserError(f"words.order must be 1 to 5, but is {self.order} instead.")
        if not 0 <= self.prune < 1:
            raise UserError(f"words.prune must be a number from 0 up and below 1, but is {self.prune} instead.")


def train_word_ngram(
    texts: Sequence[Path], out: Path, *, config: WordNgramConfig, more: Iterable[str] = (), progress: Progress = no_progress
) -> int:
    """Texts (plain or .gz, a sentence a line) and `more` sentences, normalised → an ARPA file; returns the sentences read.

    Streams. Raises UserError where there is no text, HkdError where estimation fails.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        work = Path(folder) / "text"
        with work.open("w", encoding="utf-8") as file:
            for lines in (read_lines(texts, progress=progress), more):
                for line in normalised_lines(lines):
                    file.write(line + "\n")
                    count += 1
        if not count:
            raise UserError(
                "a word n-gram needs text, but there is none. Put a file with a sentence a line into text/, or name it: --text."
            )
        estimate(work, out, order=config.order, prune=config.prune)
    return count


def estimate(text: Path, arpa: Path, *, order: int, prune: float = 0.0) -> None:
    """Estimate an n-gram from a text of symbols with spaces between; the ARPA file is written atomically, the text removed. Raises HkdError where it fails."""
    part = temporary(arpa)
    try:
        if order == 1:  # kaldingram 0.1.2 counts only the first word of each sentence then
            _unigrams(text, part)
        else:
            _kaldingram("train", "--ngram-order", order, "--text", text, "--lm", part)
            if prune:
                _kaldingram("prune", "--threshold", prune, "--lm", part, "--write-lm", part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(arpa)
    finally:
        part.unlink(missing_ok=True)
    text.unlink()


def _unigrams(text: Path, arpa: Path) -> None:
    counts: Counter[str] = Counter()
    with text.open(encoding="utf-8") as lines:
        for line in lines:
            counts.update((*line.split(), "</s>"))
    total = counts.total()
    entries = [f"{math.log10(count / total):.7f}\t{word}" for word, count in sorted(counts.items())]
    head = f"\\data\\\nngram 1={len(entries) + 1}\n\n\\1-grams:\n-99.0000000\t<s>\n"
    arpa.write_text(head + "\n".join(entries) + "\n\n\\end\\\n", encoding="utf-8")


def _kaldingram(*arguments: object) -> None:
    command = [sys.executable, "-m", "kaldingram.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HkdError(f"kaldingram failed with exit {done.returncode}: {last}.")
