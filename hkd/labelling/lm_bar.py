"""The bar that a neural unit LM must clear: a Kneser-Ney n-gram of the same units from the same training data.

- A causal LM is held against the n-gram's p(u_n | the units before); a cloze LM against its p(u_n | all others), normalised over V; with
  given `outside-phone` against the two-sided phone n-gram folded through p(senone | phone in context, state). Always the same positions.
- Perplexity = exp of the mean of −log p(u_n | what is given) over positions; </s> is no position for either.

Shape letters: V inventory.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.labelling.kneser_ney import estimate
from hkd.labelling.lm_data import Sentences
from hkd.labelling.shuffle import Shuffled
from hkd.teachers.base import Sentence, Teacher
from hkd.teachers.unit_lm_senones import SenoneMap

log = logging.getLogger(__name__)
NGRAM_UNITS = 50_000_000  # its counts stay in memory: of larger corpora it gets an even part
_DRAWN_AT_ONCE = 4096  # sentences


def train_ngram(sentences: Iterable[NDArray[Any]], path: Path, *, order: int, work: Path) -> None:
    """A Kneser-Ney n-gram whose words are unit ids in decimal. Raises HkdError where it fails."""
    work.mkdir(parents=True, exist_ok=True)
    text = work / "ngram.txt"
    with text.open("w", encoding="ascii") as file:
        for unit_U in sentences:
            file.write(" ".join(map(str, unit_U.tolist())) + "\n")
    estimate(text, path, order=order)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """How well something predicts a set of positions."""

    perplexity: float
    top1: float  # share of positions whose likeliest unit is the right one


def figures(
    teacher: Teacher, sentences: Sequence[NDArray[np.int32]], *, step: Callable[[], None] = lambda: None
) -> tuple[float, int, int]:
    """(sum of −log p in nats, right first guesses, positions) of a teacher, a few sentences at a time."""
    nats, hits, count = 0.0, 0, 0
    for start in range(0, len(sentences), 64):
        part = [
            Sentence(id="", unit_U=unit_U, word_U=np.full(len(unit_U), -1, np.int32)) for unit_U in sentences[start : start + 64]
        ]
        for topk in teacher.score(part, k=2):  # two, since with one the gold unit would displace the first guess
            nats -= float(topk.gold_logp_N.astype(np.float64).sum())
            hits += int((topk.ids_NK[:, 0] == topk.gold_N).sum())
            count += len(topk)
        step()
    return nats, hits, count


def unigram(counts_V: NDArray[np.int64], senones: SenoneMap | None) -> NDArray[np.float64]:
    """log p(u) by add-half estimates; given the state's number with senones."""
    weight = counts_V + 0.5
    group_V = np.zeros(len(weight), np.int64) if senones is None else senones.state_of_V
    logp_V: NDArray[np.float64] = np.log(weight / np.bincount(group_V, weights=weight)[group_V])
    return logp_V


def unigram_figures(
    logp_V: NDArray[np.float64], senones: SenoneMap | None, sentences: Sequence[NDArray[np.int32]]
) -> tuple[float, int, int]:
    """As `figures`, of the unigram."""
    unit_N = np.concatenate([np.zeros(0, np.int32), *sentences]).astype(np.int64)
    group_V = np.zeros(len(logp_V), np.int64) if senones is None else senones.state_of_V
    best_G = [int(np.flatnonzero(group_V == g)[np.argmax(logp_V[group_V == g])]) for g in range(int(group_V.max()) + 1)]
    hits = int((np.array(best_G)[group_V[unit_N]] == unit_N).sum())
    return -float(logp_V[unit_N].sum()), hits, len(unit_N)


def summed(parts: Sequence[tuple[float, int, int]]) -> Figures:
    """Sums over folds → figures."""
    nats, hits, count = (sum(column) for column in zip(*parts, strict=True))
    return Figures(perplexity=float(np.exp(nats / count)), top1=hits / count)


def sample(sentences: Sentences, *, max_positions: int, seed: int) -> list[NDArray[np.int32]]:
    """Whole sentences in a fixed random order until there are enough positions."""
    chosen: list[NDArray[np.int32]] = []
    count = 0
    order = Shuffled(len(sentences), [seed, len(sentences)])
    for start in range(0, len(order), _DRAWN_AT_ONCE):
        for number in order[start : start + _DRAWN_AT_ONCE].tolist():
            if count >= max_positions:
                return chosen
            unit_U = sentences[number]
            if len(unit_U):
                chosen.append(unit_U)
                count += len(unit_U)
    return chosen
