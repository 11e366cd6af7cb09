"""Error rates, how sure they are, and whether two runs differ.

- How many words, characters or phones must change to turn a hypothesis into its reference. The alignment is jiwer's (minimum edit
  distance, all costs 1), so the rates are jiwer's. A character error rate counts the spaces between words, as jiwer does.
- Everything is kept by utterance: intervals, tests, tables by speaker and listings are sums over rows.
- Phones: words to phones by the lexicon, English ones folded to the 39 that papers report (Lee & Hon 1989, Speaker-independent phone
  recognition using hidden Markov models, table II). CMUdict's 39 phones are not the same 39: its AO joins AA and its ZH joins SH here.
- Bootstrap (Bisani & Ney 2004, Bootstrap estimates for confidence intervals in ASR performance evaluation): draw as many blocks as there
  are, with replacement, and take the rate of the draw. A block is an utterance, or all utterances of a speaker, whose errors are not
  independent. The interval is the percentiles of the drawn rates.
- Few blocks make percentiles too narrow: 95 % intervals over 12 speakers cover about 90 %. So the percentiles are expanded (Hesterberg 2015,
  What teachers should know about the bootstrap, section 5.3): the share of draws beyond each end is Φ(−√(G / (G − 1)) · t), where t is the
  quantile of Student's law with G − 1 degrees of freedom.
- Paired bootstrap: both runs on the same drawn blocks; p is 1 − the level of the widest interval that leaves zero out.
- Matched pairs (Gillick & Cox 1989, Some statistical issues in the comparison of speech recognition algorithms; sclite's `mapsswe`):
  segments bounded by two words that both runs have right are taken as independent; t = mean difference / its standard error.

All draws are a function of the seed. Shape letters: N utterances, G blocks, R draws.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hkd.units.lexicon import Lexicon
from hkd.units.phones import is_silence_name

SILENCE = "sil"
_FOLD = {
    "ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "el": "l", "em": "m", "en": "n", "nx": "n",
    "eng": "ng", "zh": "sh", "ux": "uw",
    **dict.fromkeys(("pcl", "tcl", "kcl", "bcl", "dcl", "gcl", "h#", "#h", "pau", "epi", "sil", "sp", "spn", "<sil>"), SILENCE),
}  # fmt: skip
_DROPPED = frozenset({"q"})


def fold_39(phones: Iterable[str]) -> list[str]:
    """Phones (TIMIT's 61 or ARPAbet, any case, stress marks allowed) → the 39, silences in a row joined.

    Phones of neither set come back in lower case, unchanged. Idempotent.
    """
    folded: list[str] = []
    for phone in phones:
        name = phone.lower().rstrip("012")
        name = _FOLD.get(name, name)
        if name not in _DROPPED and not (name == SILENCE and folded and folded[-1] == SILENCE):
            folded.append(name)
    return folded


def phones_of(text: str, lexicon: Lexicon) -> list[str]:
    """The phones of a text, each word by its one pronunciation; silence is left out. English ones are folded to 39, others stay as they are."""
    phones = [phone for word in text.split() for phone in lexicon.pronounce(word)]
    if not lexicon.is_english:
        return [phone for phone in phones if not is_silence_name(phone)]
    return [phone for phone in fold_39(phones) if phone != SILENCE]


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


NUM_DRAWS = 10_000
_DRAWN_AT_ONCE = 4_000_000  # blocks: bounds the memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A confidence interval: `low` and `high` at `level` (0.95), over `blocks` blocks."""

    low: float
    high: float
    level: float
    blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Run A against run B: difference of the rates (A − B), two-sided p; an interval and the blocks where the test has them."""

    difference: float
    p: float
    method: str
    blocks: int
    low: float | None = None
    high: float | None = None


def block_sums(value_N: ArrayLike, group_N: Sequence[str] | None) -> NDArray[np.float64]:
    """Sums by group, in order of first appearance; the values themselves where there are no groups."""
    value: NDArray[np.float64] = np.asarray(value_N, np.float64)
    if group_N is None:
        return value
    if len(group_N) != len(value):
        raise ValueError(f"there must be {len(value)} group names, but there are {len(group_N)}")
    number: dict[str, int] = {}
    row_N = [number.setdefault(name, len(number)) for name in group_N]
    sums: NDArray[np.float64] = np.bincount(row_N, weights=value, minlength=len(number)).astype(np.float64)
    return sums


def _drawn_sums(values_G: Sequence[NDArray[np.float64]], num_draws: int, seed: int) -> list[NDArray[np.float64]]:
    """Each array's sum over the blocks of every draw (R), all arrays on the same draws; in pieces, so that memory stays bounded."""
    random = np.random.Generator(np.random.PCG64(seed))
    num_blocks = len(values_G[0])
    step = max(1, _DRAWN_AT_ONCE // num_blocks)
    pieces: list[list[NDArray[np.float64]]] = [[] for _ in values_G]
    for first in range(0, num_draws, step):
        block_RG = random.integers(0, num_blocks, size=(min(step, num_draws - first), num_blocks), dtype=np.int32)
        for piece, value_G in zip(pieces, values_G, strict=True):
            piece.append(value_G[block_RG].sum(axis=1))
    return [np.concatenate(piece) for piece in pieces]


def _share_beyond(level: float, num_blocks: int) -> float:
    """The share of draws beyond each end of an interval: expanded percentiles."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr(-math.sqrt(num_blocks / (num_blocks - 1)) * stdtrit(num_blocks - 1, (1 + level) / 2)))


def _p_value(share: float, num_blocks: int) -> float:
    """Two-sided p where `share` of the draws lie beyond zero: the inverse of `_share_beyond`."""
    from scipy.special import ndtri, stdtr

    return min(1.0, 2 * float(stdtr(num_blocks - 1, math.sqrt((num_blocks - 1) / num_blocks) * ndtri(min(share, 0.5)))))


def bootstrap_interval(
    errors_N: ArrayLike,
    tokens_N: ArrayLike,
    *,
    group_N: Sequence[str] | None = None,
    level: float = 0.95,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Interval | None:
    """Expanded percentile interval of Σ errors / Σ tokens. None where there are fewer than two blocks, which no draw can tell apart."""
    errors_G, tokens_G = block_sums(errors_N, group_N), block_sums(tokens_N, group_N)
    if len(errors_G) < 2 or tokens_G.sum() == 0:
        return None
    errors_R, tokens_R = _drawn_sums([errors_G, tokens_G], num_draws, seed)
    rate_R = errors_R[tokens_R > 0] / tokens_R[tokens_R > 0]
    beyond = _share_beyond(level, len(errors_G))
    low, high = np.quantile(rate_R, [beyond, 1 - beyond])
    return Interval(low=float(low), high=float(high), level=level, blocks=len(errors_G))


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
    """Rate of A − rate of B on the same utterances, blocked by `group_N`. None where there are fewer than two blocks.

    Several seeds of a run are pooled by giving the sums of their errors, and of the tokens as often. Runs without any difference
    have p = 1; p is never 0: the smallest share that draws can tell apart is 1 / (num_draws + 1), which is p = 0.004 for 13 blocks.
    """
    difference_G = block_sums(errors_a_N, group_N) - block_sums(errors_b_N, group_N)
    tokens_G = block_sums(tokens_N, group_N)
    if len(tokens_G) < 2 or tokens_G.sum() == 0:
        return None
    difference_R, tokens_R = _drawn_sums([difference_G, tokens_G], num_draws, seed)
    delta_R = difference_R[tokens_R > 0] / tokens_R[tokens_R > 0]
    below, above = int((delta_R <= 0).sum()), int((delta_R >= 0).sum())
    beyond = _share_beyond(level, len(tokens_G))
    low, high = np.quantile(delta_R, [beyond, 1 - beyond])
    return Comparison(
        difference=float(difference_G.sum() / tokens_G.sum()),
        p=_p_value((min(below, above) + 1) / (len(delta_R) + 1), len(tokens_G)),
        method="paired bootstrap" + (" by speaker" if group_N is not None else " by utterance"),
        blocks=len(tokens_G),
        low=float(low),
        high=float(high),
    )


def _errors_at(edits: Sequence[Edit], num_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Errors on each reference token, and insertions in each of the gaps around them (gap i lies before token i)."""
    token, gap = np.zeros(num_tokens, np.int64), np.zeros(num_tokens + 1, np.int64)
    for e in edits:
        if e.kind == "insert":
            gap[e.ref_start] += e.hyp_stop - e.hyp_start
        elif e.kind != "equal":
            token[e.ref_start : e.ref_stop] += 1
    return token, gap


def segment_differences(a: Scores, b: Scores, *, buffer: int = 2) -> NDArray[np.int64]:
    """Errors of A − errors of B in each segment where either errs; `buffer` words that both have right end a segment, and so does
    the utterance's end. Raises ValueError where the references differ."""
    if a.reference != b.reference:
        raise ValueError("two runs can only be compared on the same references, but theirs differ")
    differences: list[int] = []
    for row, reference in enumerate(a.reference):
        token_a, gap_a = _errors_at(a.edits[row], len(reference))
        token_b, gap_b = _errors_at(b.edits[row], len(reference))
        error_a = np.ravel(np.column_stack([gap_a, np.append(token_a, 0)]))[:-1]  # gap 0, token 0, gap 1, ..., gap n
        error_b = np.ravel(np.column_stack([gap_b, np.append(token_b, 0)]))[:-1]
        wrong = np.flatnonzero((error_a > 0) | (error_b > 0))
        if not len(wrong):
            continue
        right = wrong[1:] // 2 - (wrong[:-1] + 1) // 2  # tokens (odd places) strictly between two wrong places
        segment = np.concatenate([[0], np.cumsum(right >= buffer)])
        delta = error_a[wrong] - error_b[wrong]
        differences.extend(np.bincount(segment, weights=delta).astype(np.int64).tolist())
    return np.array(differences, np.int64)


def matched_pairs(a: Scores, b: Scores) -> Comparison | None:
    """Matched-pairs sentence-segment word error test of run A against run B, by Student's law for few segments.

    None where fewer than two segments hold errors, or where all that do differ by the same: no spread to hold the mean against.
    """
    from scipy.special import stdtr

    difference_S = segment_differences(a, b)
    if len(difference_S) < 2:
        return None
    rate = (int(a.errors_N.sum()) - int(b.errors_N.sum())) / max(1, int(a.tokens_N.sum()))
    spread = float(difference_S.std(ddof=1)) / math.sqrt(len(difference_S))
    mean = float(difference_S.mean())
    if spread == 0 and mean != 0:
        return None
    p = 2 * float(stdtr(len(difference_S) - 1, -abs(mean) / spread)) if spread else 1.0
    return Comparison(difference=rate, p=p, method="matched pairs", blocks=len(difference_S))
