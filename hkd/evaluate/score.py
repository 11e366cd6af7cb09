"""Error rates: how many words, characters or phones must change to turn a hypothesis into its reference.

- The alignment is jiwer's (minimum edit distance, all costs 1), so the rates are jiwer's.
- Everything is kept by utterance: intervals, tests, tables by speaker and listings are sums over rows.
- A character error rate counts the spaces between words as characters, as jiwer does.

Shape letter: N utterances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np
from numpy.typing import NDArray

Counts_N = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """A stretch of an alignment: reference tokens [ref_start, ref_stop) against hypothesis tokens [hyp_start, hyp_stop)."""

    kind: str  # equal | substitute | insert | delete
    ref_start: int
    ref_stop: int
    hyp_start: int
    hyp_stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Edit counts by utterance. The rate is errors / reference tokens over all utterances, hence may exceed 1."""

    reference: tuple[tuple[str, ...], ...]
    hypothesis: tuple[tuple[str, ...], ...]
    edits: tuple[tuple[Edit, ...], ...]
    substitutions_N: Counts_N
    insertions_N: Counts_N
    deletions_N: Counts_N

    def __len__(self) -> int:
        return len(self.reference)

    @property
    def tokens_N(self) -> Counts_N:
        """Reference tokens of each utterance."""
        return np.array([len(r) for r in self.reference], np.int64)

    @property
    def errors_N(self) -> Counts_N:
        """Substitutions, insertions and deletions of each utterance."""
        return self.substitutions_N + self.insertions_N + self.deletions_N

    @property
    def rate(self) -> float:
        """Errors / reference tokens; NaN where there are no reference tokens at all."""
        tokens = int(self.tokens_N.sum())
        return int(self.errors_N.sum()) / tokens if tokens else float("nan")

    def totals(self) -> dict[str, int]:
        """Counts over all utterances: tokens, errors, substitutions, insertions, deletions."""
        arrays = {
            "tokens": self.tokens_N,
            "errors": self.errors_N,
            "substitutions": self.substitutions_N,
            "insertions": self.insertions_N,
            "deletions": self.deletions_N,
        }
        return {name: int(count_N.sum()) for name, count_N in arrays.items()}


def score_tokens(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> Scores:
    """Align token sequences pair by pair. Raises ValueError where there are not as many hypotheses as references."""
    if len(references) != len(hypotheses):
        raise ValueError(f"there must be {len(references)} hypotheses, but there are {len(hypotheses)}")
    reference = tuple(tuple(r) for r in references)
    hypothesis = tuple(tuple(h) for h in hypotheses)

    def as_lists(tokens: Any) -> Any:  # the tokens are cut already, so jiwer's own cutting is bypassed
        return [list(row) for row in tokens]

    process: Any = jiwer.process_words
    output = process(reference, hypothesis, as_lists, as_lists)
    edits = tuple(
        tuple(
            Edit(
                kind=c.type, ref_start=c.ref_start_idx, ref_stop=c.ref_end_idx, hyp_start=c.hyp_start_idx, hyp_stop=c.hyp_end_idx
            )
            for c in chunks
        )
        for chunks in output.alignments
    )

    def count(kind: str) -> Counts_N:
        sums = [sum(max(e.ref_stop - e.ref_start, e.hyp_stop - e.hyp_start) for e in row if e.kind == kind) for row in edits]
        return np.array(sums, np.int64)

    return Scores(
        reference=reference,
        hypothesis=hypothesis,
        edits=edits,
        substitutions_N=count("substitute"),
        insertions_N=count("insert"),
        deletions_N=count("delete"),
    )


def score_words(references: Sequence[str], hypotheses: Sequence[str]) -> Scores:
    """Word errors; words are what white space separates (normalise first)."""
    return score_tokens([r.split() for r in references], [h.split() for h in hypotheses])


def score_characters(references: Sequence[str], hypotheses: Sequence[str]) -> Scores:
    """Character errors, the single spaces between words included."""
    return score_tokens([list(" ".join(r.split())) for r in references], [list(" ".join(h.split())) for h in hypotheses])
