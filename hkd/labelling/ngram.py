"""N-grams by Kneser-Ney (one discount an order, back-off), estimated by kaldingram in a process of its own; unigrams
are relative frequencies. Of words for the search, and of units as the bar that a neural unit LM must clear.

- A causal LM is held against the n-gram's p(u_n | the units before); a cloze LM against its p(u_n | all others),
  normalised over V; with given `outside-phone` against the two-sided phone n-gram folded through p(senone | phone in
  context, state). Always the same positions.
- Perplexity = exp of the mean of −log p(u_n | what is given) over positions; </s> is no position for either.

Shape letters: V inventory.
"""

import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import HkdError, Progress, UserError, check_setting, no_progress
from hkd.files import sync, temporary
from hkd.labelling.lm_data import Sentences, read_lines
from hkd.teachers.base import Sentence, Teacher
from hkd.teachers.cloze import SenoneMap
from hkd.units.text import normalised_lines

WORDS = "words.arpa"  # its name in the folder of the LMs


@dataclass(frozen=True, kw_only=True, slots=True)
class WordNgramConfig:
    """A word n-gram, pruned as in Stolcke 1998; not by counts: Kneser-Ney's discounts need what is seen once."""

    order: int = 3  # words of the longest n-gram
    transcripts: bool = False  # read the transcripts of the train split too
    prune: float = 1e-7  # n-grams go whose absence raises the perplexity by less than that share; 0 keeps all

    def __post_init__(self) -> None:
        check_setting("words.order", self.order, "be 1 to 5", 1 <= self.order <= 5)
        check_setting("words.prune", self.prune, "be a number from 0 up and below 1", 0 <= self.prune < 1)


def train_word_ngram(
    texts: Sequence[Path],
    out: Path,
    *,
    config: WordNgramConfig,
    more: Iterable[str] = (),
    progress: Progress = no_progress,
) -> int:
    """Texts (plain or .gz, a sentence a line) and `more` sentences, normalised → an ARPA file; returns the sentences
    read. Streams. Raises UserError where there is no text, HkdError where estimation fails."""
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
            remedy = "Put a file with a sentence a line into text/, or name it: --text."
            raise UserError(f"a word n-gram needs text, but there is none. {remedy}")
        estimate(work, out, order=config.order, prune=config.prune)
    return count


def estimate(text: Path, arpa: Path, *, order: int, prune: float = 0.0) -> None:
    """A text of symbols with spaces between, which goes → an ARPA file, written atomically. Raises HkdError."""
    part = temporary(arpa)
    try:
        if order == 1:  # kaldingram 0.1.2 counts only the first word of each sentence then
            _unigrams(text, part)
        else:
            _kaldingram("train", "--ngram-order", order, "--text", text, "--lm", part)
            if prune:
                _kaldingram("prune", "--threshold", prune, "--lm", part, "--write-lm", part)
        sync(part)
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


NGRAM_UNITS = 50_000_000  # its counts stay in memory: of larger corpora it gets an even part
Figures = tuple[float, int, int]  # sum of −log p in nats, right first guesses, positions


def train_ngram(sentences: Iterable[NDArray[Any]], path: Path, *, order: int, work: Path) -> None:
    """A Kneser-Ney n-gram whose words are unit ids in decimal. Raises HkdError where it fails."""
    work.mkdir(parents=True, exist_ok=True)
    text = work / "ngram.txt"
    with text.open("w", encoding="ascii") as file:
        for unit_U in sentences:
            file.write(" ".join(map(str, unit_U.tolist())) + "\n")
    estimate(text, path, order=order)


def figures(teacher: Teacher, sentences: Sequence[NDArray[np.int32]]) -> Figures:
    """The figures of a teacher, a few sentences at a time."""
    nats, hits, count = 0.0, 0, 0
    for start in range(0, len(sentences), 64):
        own = sentences[start : start + 64]
        part = [Sentence(id="", unit_U=unit_U, word_U=np.full(len(unit_U), -1, np.int32)) for unit_U in own]
        for topk in teacher.score(part, k=2):  # two, since with one the gold unit would displace the first guess
            nats -= float(topk.gold_logp_N.astype(np.float64).sum())
            hits += int((topk.ids_NK[:, 0] == topk.gold_N).sum())
            count += len(topk)
    return nats, hits, count


def unigram(counts_V: NDArray[np.int64], senones: SenoneMap | None) -> NDArray[np.float64]:
    """log p(u) by add-half estimates; given the state's number with senones."""
    weight = counts_V + 0.5
    group_V = np.zeros(len(weight), np.int64) if senones is None else senones.state_of_V
    logp_V: NDArray[np.float64] = np.log(weight / np.bincount(group_V, weights=weight)[group_V])
    return logp_V


def unigram_figures(
    logp_V: NDArray[np.float64], senones: SenoneMap | None, sentences: Sequence[NDArray[np.int32]]
) -> Figures:
    unit_N = np.concatenate([np.zeros(0, np.int32), *sentences]).astype(np.int64)
    group_V = np.zeros(len(logp_V), np.int64) if senones is None else senones.state_of_V
    best_G = [int(np.flatnonzero(group_V == g)[np.argmax(logp_V[group_V == g])]) for g in range(int(group_V.max()) + 1)]
    hits = int((np.array(best_G)[group_V[unit_N]] == unit_N).sum())
    return -float(logp_V[unit_N].sum()), hits, len(unit_N)


def summed(parts: Sequence[Figures]) -> dict[str, float]:
    """Sums over folds → perplexity, and the share of positions whose likeliest unit is the right one."""
    nats, hits, count = (sum(column) for column in zip(*parts, strict=True))
    return {"perplexity": float(np.exp(nats / count)), "top1": hits / count}


def sample(sentences: Sentences, *, max_positions: int, seed: int) -> list[NDArray[np.int32]]:
    """Whole sentences in a fixed random order until there are enough positions."""
    chosen: list[NDArray[np.int32]] = []
    count = 0
    for number in np.random.default_rng([seed, len(sentences)]).permutation(len(sentences)):
        if count >= max_positions:
            break
        unit_U = sentences[int(number)]
        if len(unit_U):
            chosen.append(unit_U)
            count += len(unit_U)
    return chosen
