"""Error rates, how sure they are, and whether two runs differ.

- How many words, characters or phones must change to turn a hypothesis into its reference. The alignment is jiwer's
  (minimum edit distance, all costs 1), so the rates are jiwer's. A character error rate counts the spaces between
  words, as jiwer does.
- Everything is kept by utterance: intervals, tests, tables by speaker and listings are sums over rows.
- Phones: words to phones by the lexicon, English ones folded to the 39 that papers report (Lee & Hon 1989,
  Speaker-independent phone recognition using hidden Markov models, table II). CMUdict's 39 phones are not the same 39:
  its AO joins AA and its ZH joins SH here.
- Bootstrap (Bisani & Ney 2004, Bootstrap estimates for confidence intervals in ASR performance evaluation): draw as
  many blocks as there are, with replacement, and take the rate of the draw. A block is an utterance, or all utterances
  of a speaker, whose errors are not independent. The interval is the percentiles of the drawn rates.
- Few blocks make percentiles too narrow: 95 % intervals over 12 speakers cover about 90 %. So the percentiles are
  expanded (Hesterberg 2015, What teachers should know about the bootstrap, section 5.3): the share of draws beyond each
  end is Φ(−√(G / (G − 1)) · t), where t is the quantile of Student's law with G − 1 degrees of freedom.
- Paired bootstrap: both runs on the same drawn blocks; p is 1 − the level of the widest interval that leaves zero out.
- Matched pairs (Gillick & Cox 1989, Some statistical issues in the comparison of speech recognition algorithms;
  sclite's `mapsswe`): segments bounded by two words that both runs have right are taken as independent; t = mean
  difference / its standard error.

All draws are a function of the seed. Shape letters: N utterances, G blocks, R draws.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hkd.align.files import FOLD_61, SILENCE
from hkd.units.lexicon import Lexicon, is_silence_name

Counts_N = NDArray[np.int64]
NUM_DRAWS = 10_000
_DRAWN_AT_ONCE = 4_000_000  # blocks: bounds the memory
_FOLD = FOLD_61 | {"q": "q"} | dict.fromkeys(["#h", "sp", "spn", "<sil>"], SILENCE)
_DROPPED = "q"


def fold_39(phones: Iterable[str]) -> list[str]:
    """Phones (TIMIT's 61 or ARPAbet, any case, stress marks allowed) → the 39, silences in a row joined. Idempotent.

    Phones of neither set come back in lower case, unchanged.
    """
    folded: list[str] = []
    for phone in phones:
        name = phone.lower().rstrip("012")
        name = _FOLD.get(name, name)
        if name != _DROPPED and not (name == SILENCE and folded and folded[-1] == SILENCE):
            folded.append(name)
    return folded


def phones_of(text: str, lexicon: Lexicon) -> list[str]:
    """The phones of a text without silence, each word by its one pronunciation; English ones folded to 39."""
    phones = [phone for word in text.split() for phone in lexicon.pronounce(word)]
    if not lexicon.is_english:
        return [phone for phone in phones if not is_silence_name(phone)]
    return [phone for phone in fold_39(phones) if phone != SILENCE]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Edit counts by utterance. `edits`: jiwer's alignment chunks. The rate is errors / reference tokens, so it may
    exceed 1."""

    reference: tuple[tuple[str, ...], ...]
    hypothesis: tuple[tuple[str, ...], ...]
    edits: tuple[tuple[jiwer.AlignmentChunk, ...], ...]
    tokens_N: Counts_N
    substitutions_N: Counts_N
    insertions_N: Counts_N
    deletions_N: Counts_N

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
        names = ("tokens", "errors", "substitutions", "insertions", "deletions")
        return {name: int(getattr(self, f"{name}_N").sum()) for name in names}


def score_tokens(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> Scores:
    """Align token sequences pair by pair. Raises ValueError where there are not as many hypotheses as references."""
    if len(references) != len(hypotheses):
        raise ValueError(f"there must be {len(references)} hypotheses, but there are {len(hypotheses)}")
    reference, hypothesis = (tuple(map(tuple, side)) for side in (references, hypotheses))

    def as_lists(rows: Any) -> Any:  # in place of jiwer's own tokenisation
        return [list(row) for row in rows]

    process: Any = jiwer.process_words
    edits = tuple(map(tuple, process(reference, hypothesis, as_lists, as_lists).alignments))
    counts = {
        f"{name}s_N": np.array([sum(_size(e) for e in row if e.type == kind) for row in edits], np.int64)
        for name, kind in (("substitution", "substitute"), ("insertion", "insert"), ("deletion", "delete"))
    }
    tokens_N = np.array([len(row) for row in reference], np.int64)
    return Scores(reference=reference, hypothesis=hypothesis, edits=edits, tokens_N=tokens_N, **counts)


def _size(e: jiwer.AlignmentChunk) -> int:
    return max(e.ref_end_idx - e.ref_start_idx, e.hyp_end_idx - e.hyp_start_idx)


def score_words(references: Sequence[str], hypotheses: Sequence[str]) -> Scores:
    """Word errors; words are separated by white space (normalise first)."""
    return score_tokens([r.split() for r in references], [h.split() for h in hypotheses])


def score_characters(references: Sequence[str], hypotheses: Sequence[str]) -> Scores:
    """Character errors, the single spaces between words included."""
    return score_tokens(
        [list(" ".join(r.split())) for r in references], [list(" ".join(h.split())) for h in hypotheses]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidenceInterval:
    """A confidence interval: `low` and `high` at `level` (0.95), over `blocks` blocks."""

    low: float
    high: float
    level: float
    blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Run A against run B: difference of the rates (A − B), two-sided p, and an interval where the test has one."""

    difference: float
    p: float
    low: float | None = None
    high: float | None = None


def block_sums(value_N: ArrayLike, group_N: Sequence[str] | None) -> NDArray[np.float64]:
    """Sums by group, in order of first appearance; the values themselves where there are no groups."""
    value: NDArray[np.float64] = np.asarray(value_N, np.float64)
    if group_N is None:
        return value
    number: dict[str, int] = {}
    row_N = [number.setdefault(name, len(number)) for name in group_N]
    return np.bincount(row_N, weights=value, minlength=len(number)).astype(np.float64)


def _drawn_rates(
    errors_G: NDArray[np.float64], tokens_G: NDArray[np.float64], *, level: float, num_draws: int, seed: int
) -> tuple[NDArray[np.float64], float, float] | None:
    """Σ errors / Σ tokens of every draw that has tokens (R), and the ends of their interval; None below two blocks or
    without tokens."""
    from scipy.special import ndtr, stdtrit
    from scipy.stats import bootstrap

    num_blocks = len(errors_G)
    if num_blocks < 2 or tokens_G.sum() == 0:
        return None

    def rate(errors: NDArray[np.float64], tokens: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        errors, tokens = errors.sum(axis), tokens.sum(axis)
        return np.divide(errors, tokens, out=np.full_like(errors, np.nan), where=tokens > 0)

    drawn = bootstrap(
        (errors_G, tokens_G), rate, paired=True, vectorized=True, n_resamples=num_draws, method="percentile",
        batch=max(1, _DRAWN_AT_ONCE // num_blocks), rng=np.random.default_rng(seed),
    )  # fmt: skip
    rate_R: NDArray[np.float64] = drawn.bootstrap_distribution
    rate_R = rate_R[np.isfinite(rate_R)]
    # expanded percentiles
    beyond = ndtr(-math.sqrt(num_blocks / (num_blocks - 1)) * stdtrit(num_blocks - 1, (1 + level) / 2))
    low, high = np.quantile(rate_R, [beyond, 1 - beyond])
    return rate_R, float(low), float(high)


def bootstrap_interval(
    errors_N: ArrayLike,
    tokens_N: ArrayLike,
    *,
    group_N: Sequence[str] | None = None,
    level: float = 0.95,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> ConfidenceInterval | None:
    """Expanded percentile interval of Σ errors / Σ tokens; None where there are fewer than two blocks, or no tokens."""
    errors_G, tokens_G = block_sums(errors_N, group_N), block_sums(tokens_N, group_N)
    drawn = _drawn_rates(errors_G, tokens_G, level=level, num_draws=num_draws, seed=seed)
    return drawn and ConfidenceInterval(low=drawn[1], high=drawn[2], level=level, blocks=len(errors_G))


def paired_bootstrap(
    errors_a_N: ArrayLike,
    errors_b_N: ArrayLike,
    tokens_N: ArrayLike,
    *,
    group_N: Sequence[str] | None = None,
    level: float = 0.95,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Comparison | None:
    """Rate of A − rate of B on the same utterances, blocked by `group_N`; None where there are fewer than two blocks,
    or no tokens.

    Several seeds of a run are pooled by giving the means of their errors. Runs without any difference have p = 1; p is
    never 0: the smallest share that draws can tell apart is 1 / (num_draws + 1), which is p = 0.004 for 13 blocks.
    """
    from scipy.special import ndtri, stdtr

    difference_G = block_sums(errors_a_N, group_N) - block_sums(errors_b_N, group_N)
    tokens_G, num_blocks = block_sums(tokens_N, group_N), len(difference_G)
    drawn = _drawn_rates(difference_G, tokens_G, level=level, num_draws=num_draws, seed=seed)
    if drawn is None:
        return None
    delta_R, low, high = drawn
    share = (min(int((delta_R <= 0).sum()), int((delta_R >= 0).sum())) + 1) / (len(delta_R) + 1)
    # the inverse of the expanded percentiles: the level whose interval ends at zero
    p = 2 * stdtr(num_blocks - 1, math.sqrt((num_blocks - 1) / num_blocks) * ndtri(min(share, 0.5)))
    return Comparison(difference=float(difference_G.sum() / tokens_G.sum()), p=min(1.0, float(p)), low=low, high=high)


def _errors_at(edits: Sequence[jiwer.AlignmentChunk], num_tokens: int) -> NDArray[np.int64]:
    """Errors in gap 0, on token 0, in gap 1, ..., in gap n: insertions lie in gaps, other errors on reference
    tokens."""
    place = np.zeros(2 * num_tokens + 1, np.int64)
    for e in edits:
        if e.type == "insert":
            place[2 * e.ref_start_idx] += e.hyp_end_idx - e.hyp_start_idx
        elif e.type != "equal":
            place[2 * e.ref_start_idx + 1 : 2 * e.ref_end_idx : 2] += 1
    return place


def segment_differences(a: Scores, b: Scores) -> NDArray[np.int64]:
    """Errors of A − errors of B in each segment where either errs.

    A segment ends before two words that both have right, and at the utterance's end. Raises ValueError where the
    references differ.
    """
    if a.reference != b.reference:
        raise ValueError("two runs can only be compared on the same references, but theirs differ")
    differences: list[int] = []
    for reference, edits_a, edits_b in zip(a.reference, a.edits, b.edits, strict=True):
        error_a, error_b = _errors_at(edits_a, len(reference)), _errors_at(edits_b, len(reference))
        wrong = np.flatnonzero((error_a > 0) | (error_b > 0))
        if len(wrong):
            right = wrong[1:] // 2 - (wrong[:-1] + 1) // 2  # tokens (odd places) strictly between two wrong places
            segment = np.concatenate([[0], np.cumsum(right >= 2)])
            differences.extend(np.bincount(segment, weights=(error_a - error_b)[wrong]).astype(np.int64).tolist())
    return np.array(differences, np.int64)


def matched_pairs(a: Scores, b: Scores) -> Comparison | None:
    """Matched-pairs sentence-segment word error test of run A against run B, by Student's law for few segments.

    None where fewer than two segments hold errors, or where all that do differ by the same: no spread to hold the mean
    against.
    """
    from scipy.special import stdtr

    difference_S = segment_differences(a, b)
    if len(difference_S) < 2:
        return None
    mean, spread = float(difference_S.mean()), float(difference_S.std(ddof=1)) / math.sqrt(len(difference_S))
    if spread == 0 and mean != 0:
        return None
    p = 2 * float(stdtr(len(difference_S) - 1, -abs(mean) / spread)) if spread else 1.0
    return Comparison(difference=int(difference_S.sum()) / max(1, int(a.tokens_N.sum())), p=p)
