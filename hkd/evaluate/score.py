"""Error rates, how sure they are, and whether two runs differ; the files that an evaluation leaves in a run's folder.

- How many words, characters (spaces between words included) or phones must change to turn a hypothesis into its
  reference: jiwer's alignment (minimum edit distance, all costs 1) and rates.
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

    eval-SPLIT.json          the figures: deterministic, no clock
    eval-SPLIT.hyp.jsonl     an utterance a line: reference, hypothesis, counts; all figures can be recomputed from it
    eval-SPLIT.errors.txt    for people: the errors aligned, by speaker, and which words are confused
    eval-SPLIT.nbest.jsonl   where asked for: an utterance a line, its hypotheses, best first
    eval-SPLIT.timing.json   real-time factor: differs from run to run, hence kept apart

Other ways to decode lie beside, under a tag: eval-SPLIT@TAG.json and so on. All draws are a function of the seed.
Shape letters: N utterances, G blocks, R draws.
"""

import json
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hkd.align.files import FOLD_61, SILENCE
from hkd.errors import UserError
from hkd.files import atomic_write, write_bytes, write_json
from hkd.units.lexicon import Lexicon, is_silence_name

Counts_N = NDArray[np.int64]
NUM_DRAWS = 10_000
_DRAWN_AT_ONCE = 4_000_000  # blocks: bounds the memory
_FOLD = FOLD_61 | {"q": "q"} | dict.fromkeys(["#h", "sp", "spn", "<sil>"], SILENCE)
_DROPPED = "q"


def fold_39(phones: Iterable[str]) -> list[str]:
    """Phones (TIMIT's 61 or ARPAbet, any case or stress; others in lower case) → the 39, with single silences."""
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
    """Edit counts by utterance. `edits`: jiwer's chunks. The rate, errors / reference tokens, may exceed 1."""

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
    return score_tokens(*([list(" ".join(text.split())) for text in side] for side in (references, hypotheses)))


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
    """Σ errors / Σ tokens of every draw that has tokens (R), and the ends of their interval; None as below."""
    from scipy.special import ndtr, stdtrit
    from scipy.stats import DegenerateDataWarning, bootstrap

    num_blocks = len(errors_G)
    if num_blocks < 2 or tokens_G.sum() == 0:
        return None

    def rate(errors: NDArray[np.float64], tokens: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        errors, tokens = errors.sum(axis), tokens.sum(axis)
        return np.divide(errors, tokens, out=np.full_like(errors, np.nan), where=tokens > 0)

    with warnings.catch_warnings(action="ignore", category=DegenerateDataWarning):  # of draws without tokens
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
    """Rate of A − rate of B on the same utterances, blocked by `group_N`; None for fewer than two blocks, or no tokens.

    Seeds of a run are pooled by the means of their errors. Runs without any difference have p = 1; p is never 0: the
    smallest share that draws can tell apart is 1 / (num_draws + 1), which is p = 0.004 for 13 blocks.
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
    """Errors in gap 0, on token 0, in gap 1, ..., in gap n: insertions lie in gaps, other errors on tokens."""
    place = np.zeros(2 * num_tokens + 1, np.int64)
    for e in edits:
        if e.type == "insert":
            place[2 * e.ref_start_idx] += e.hyp_end_idx - e.hyp_start_idx
        elif e.type != "equal":
            place[2 * e.ref_start_idx + 1 : 2 * e.ref_end_idx : 2] += 1
    return place


def segment_differences(a: Scores, b: Scores) -> NDArray[np.int64]:
    """Errors of A − errors of B in each segment where either errs. A segment ends before two words that both have
    right, and at the utterance's end. Raises ValueError where the references differ."""
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
    """Matched-pairs sentence-segment word error test of run A against run B, by Student's law for few segments. None
    where fewer than two segments hold errors, or all that do differ by the same: there is no spread."""
    from scipy.special import stdtr

    difference_S = segment_differences(a, b)
    if len(difference_S) < 2:
        return None
    mean, spread = float(difference_S.mean()), float(difference_S.std(ddof=1)) / math.sqrt(len(difference_S))
    if spread == 0 and mean != 0:
        return None
    p = 2 * float(stdtr(len(difference_S) - 1, -abs(mean) / spread)) if spread else 1.0
    return Comparison(difference=int(difference_S.sum()) / max(1, int(a.tokens_N.sum())), p=p)


FORMAT = 1
METRICS = ("wer", "cer", "per")


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorRate:
    """One rate, errors / tokens (NaN without tokens: null in the file), its counts and intervals (None: few blocks)."""

    rate: float
    tokens: int
    errors: int
    substitutions: int
    insertions: int
    deletions: int
    by_utterance: ConfidenceInterval | None = None
    by_speaker: ConfidenceInterval | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rate": None if math.isnan(self.rate) else self.rate}


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """One utterance and its hypothesis: normalised words; phones by the run's lexicon (None: by the English one)."""

    id: str
    speaker: str | None
    seconds: float
    reference: str
    hypothesis: str
    reference_phones: str | None = None
    hypothesis_phones: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedHypothesis:
    """One of an utterance's n best: normalised words, and the natural log-probability (acoustic model and LM)."""

    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """One run on one split. `errors`: wer, cer, per; `frames`: per head the figures of `hkd.evaluate.heads`."""

    run: str
    split: str
    objective: str
    seed: int | None
    data: Mapping[str, float]  # utterances, speakers, hours, words
    errors: Mapping[str, ErrorRate]
    frames: Mapping[str, Mapping[str, Any]]
    parameters: int
    decoder: Mapping[str, Any]
    inputs: Mapping[str, Any]  # digests: what must be the same for this evaluation to be left as it is
    tag: str = ""  # another way to decode than the usual one
    rtf: float | None = None  # from the timing file
    hypotheses: tuple[Hypothesis, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """The run, and the tag of its decoding where it has one: `none@fusion`."""
        return f"{self.run}@{self.tag}" if self.tag else self.run

    def to_json(self) -> dict[str, Any]:
        """The content of eval-SPLIT.json."""
        value = {name: item for name, item in self.__dict__.items() if name not in ("hypotheses", "rtf")}
        return {"format": FORMAT, **value, "errors": {name: rate.to_json() for name, rate in self.errors.items()}}


SILENT = 0.9  # share of words left out from which a student is called silent
CTC_REMEDY = (
    "CTC needs more speech or more steps than it had: train longer, with senones as the main output (--set "
    "main=senone, searched with a word LM), or on a frozen encoder (--set encoder.upstream=openai/whisper-base)."
)
GRAPH_REMEDY = "No path reached a word's end: train longer, or widen the search (--set search.hybrid.beam=20)."


def silence_notes(reports: Sequence[EvaluationReport]) -> list[str]:
    """Sentences about students that say nothing, or almost nothing: one for all that need the same remedy."""
    silent: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        wer = report.errors["wer"]
        if wer.tokens and wer.deletions >= SILENT * wer.tokens:
            remedy = GRAPH_REMEDY if report.decoder.get("name") == "graph" else CTC_REMEDY
            silent[remedy].append(f"{report.name} ({wer.deletions:,} of {wer.tokens:,} words are left out)")
    return [f"Nothing, or almost nothing, is said by {', '.join(names)}. {remedy}" for remedy, names in silent.items()]


def read_json(path: Path, what: str = "a part of a run") -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file. Raises UserError where it is broken."""
    rule = f"{path} must be {what} in JSON"
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{rule}, but cannot be read as such ({error}). Make it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{rule}, but is no object. Make it again.")
    return value


def result_paths(run_folder: Path, split: str, tag: str = "") -> tuple[Path, Path, Path]:
    """The three files that are always there: figures, hypotheses, timing."""
    stem = f"eval-{split}@{tag}" if tag else f"eval-{split}"
    return run_folder / f"{stem}.json", run_folder / f"{stem}.hyp.jsonl", run_folder / f"{stem}.timing.json"


def n_best_path(run_folder: Path, split: str, tag: str = "") -> Path:
    """Where the n-best lists are, where they were asked for."""
    return result_paths(run_folder, split, tag)[0].with_suffix(".nbest.jsonl")


def tags_of(run_folder: Path, split: str) -> list[str]:
    """The tags of the run's other decodings of a split."""
    prefix = f"eval-{split}@"
    names = (path.name for path in sorted(run_folder.glob(f"{prefix}*.json")))
    return [name.removeprefix(prefix).removesuffix(".json") for name in names if not name.endswith(".timing.json")]


def _rate(value: Mapping[str, Any]) -> ErrorRate:
    intervals = {name: value[name] and ConfidenceInterval(**value[name]) for name in ("by_utterance", "by_speaker")}
    return ErrorRate(**{**value, **intervals, "rate": math.nan if value["rate"] is None else value["rate"]})


def read_result(run_folder: Path, split: str, tag: str = "") -> EvaluationReport:
    """Read what `hkd evaluate` wrote. Raises UserError where it is missing or broken."""
    path, hyp_path, timing_path = result_paths(run_folder, split, tag)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.pop("format") != FORMAT:
            raise UserError(f"{path} must have the format {FORMAT}, but has another instead. Run `hkd evaluate` again.")
        errors = {name: _rate(rate) for name, rate in value.pop("errors").items()}
        timing = json.loads(timing_path.read_text(encoding="utf-8")) if timing_path.exists() else {}
        with hyp_path.open(encoding="utf-8") as file:
            rows = tuple(_hypothesis(json.loads(line)) for line in file)
        return EvaluationReport(**value, errors=errors, rtf=timing.get("rtf"), hypotheses=rows)
    except FileNotFoundError as error:
        remedy = f"Run `hkd evaluate {run_folder.name} --split {split}` first."
        raise UserError(f"an evaluation must be at {error.filename}, but is not there. {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{path} must be an evaluation, but cannot be read as one ({error})"
        raise UserError(f"{what}. Run `hkd evaluate` again.") from None


def _hypothesis(row: Mapping[str, Any]) -> Hypothesis:
    kept = ("id", "speaker", "seconds", "reference", "hypothesis")
    phones = {name: row.get(name) for name in ("reference_phones", "hypothesis_phones")}  # older files have none
    return Hypothesis(**{name: row[name] for name in kept} | phones)


def write_result(
    run_folder: Path,
    report: EvaluationReport,
    scores: Mapping[str, Scores],
    *,
    n_best: Sequence[Sequence[RankedHypothesis]],
    timing: Mapping[str, Any],
) -> None:
    """Write an evaluation's files, the figures last, the mark of completeness; an older file of n-best lists goes."""
    rows, (path, hyp_path, timing_path) = report.hypotheses, result_paths(run_folder, report.split, report.tag)
    names = ("tokens", "substitutions", "insertions", "deletions")

    def counts(n: int) -> dict[str, dict[str, int]]:
        return {metric: {name: int(getattr(s, f"{name}_N")[n]) for name in names} for metric, s in scores.items()}

    path.unlink(missing_ok=True)
    _write_lines(hyp_path, ({**asdict(row), **counts(n)} for n, row in enumerate(rows)))
    write_bytes(path.with_suffix(".errors.txt"), listing(rows, scores["wer"]).encode())
    lists_path = n_best_path(run_folder, report.split, report.tag)
    lists_path.unlink(missing_ok=True)
    if n_best:
        lists = zip(rows, n_best, strict=True)
        _write_lines(lists_path, ({"id": row.id, "hypotheses": list(map(asdict, options))} for row, options in lists))
    write_json(timing_path, timing)
    write_json(path, report.to_json())


def _write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    with atomic_write(path) as file:
        file.writelines((json.dumps(value, ensure_ascii=False) + "\n").encode() for value in values)


@cache
def english() -> Lexicon:
    """The default lexicon, read once."""
    return Lexicon()


def with_phones(row: Hypothesis, lexicon: Lexicon) -> Hypothesis:
    reference, hypothesis = (" ".join(phones_of(text, lexicon)) for text in (row.reference, row.hypothesis))
    return replace(row, reference_phones=reference, hypothesis_phones=hypothesis)


def score_all(rows: Iterable[Hypothesis]) -> dict[str, Scores]:
    """wer, cer and per of the hypotheses."""
    rows = [row if row.reference_phones is not None else with_phones(row, english()) for row in rows]
    references, hypotheses = [row.reference for row in rows], [row.hypothesis for row in rows]
    phones = [((row.reference_phones or "").split(), (row.hypothesis_phones or "").split()) for row in rows]
    return {
        "wer": score_words(references, hypotheses),
        "cer": score_characters(references, hypotheses),
        "per": score_tokens([said for said, _ in phones], [heard for _, heard in phones]),
    }


NOTHING = "∅"


class SpeakerErrors(NamedTuple):
    """A speaker's utterances, words, errors and word error rate, NaN without words."""

    speaker: str
    utterances: int
    words: int
    errors: int
    rate: float


def by_speaker(rows: Sequence[Hypothesis], scores: Scores) -> list[SpeakerErrors]:
    """Speakers from worst to best, those without words last; utterances without a speaker are under "?"."""
    speakers = [row.speaker or "?" for row in rows]
    counts = (scores.tokens_N, scores.errors_N)
    words_G, errors_G = (block_sums(count_N, speakers).astype(int).tolist() for count_N in counts)
    found = [
        SpeakerErrors(speaker, number, words, errors, errors / words if words else math.nan)
        for (speaker, number), words, errors in zip(Counter(speakers).items(), words_G, errors_G, strict=True)
    ]
    return sorted(found, key=lambda row: (-row.rate if row.words else 1.0, row.speaker))


def confusions(scores: Scores, most: int = 20) -> list[tuple[str, str, int]]:
    """(said, recognised, count) by falling count; ∅ on the left for inserted words, on the right for deleted ones."""
    counts: Counter[tuple[str, str]] = Counter()
    for reference, hypothesis, edits in zip(scores.reference, scores.hypothesis, scores.edits, strict=True):
        for e in edits:
            if e.type != "equal":
                said, heard = reference[e.ref_start_idx : e.ref_end_idx], hypothesis[e.hyp_start_idx : e.hyp_end_idx]
                counts.update(zip_longest(said, heard, fillvalue=NOTHING))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(*pair, count) for pair, count in ordered[:most]]


def listing(rows: Sequence[Hypothesis], scores: Scores) -> str:
    """All utterances with errors as jiwer aligns them, most errors first; then speakers, then confusions."""
    totals = scores.totals()
    text = [f"{totals['errors']} errors in {totals['tokens']} words, {len(rows)} utterances", ""]
    for n in sorted(np.flatnonzero(scores.errors_N).tolist(), key=lambda n: (-int(scores.errors_N[n]), rows[n].id)):
        output = jiwer.process_words(rows[n].reference, rows[n].hypothesis)
        lines = jiwer.visualize_alignment(output, show_measures=False).splitlines()[2:]  # without its number
        speaker = f" · {rows[n].speaker}" if rows[n].speaker else ""
        text += [f"{rows[n].id}{speaker} · {scores.errors_N[n]} of {scores.tokens_N[n]}", *lines, ""]
    text += ["speaker            utterances  words  errors  WER %"]
    for s in by_speaker(rows, scores):
        rate = f"{100 * s.rate:.1f}" if s.words else "–"
        text.append(f"{s.speaker:<18} {s.utterances:>10} {s.words:>6} {s.errors:>7} {rate:>6}")
    pairs = [f"{count:>5}  {said} → {heard}" for said, heard, count in confusions(scores)]
    return "\n".join([*text, "", "count  said → recognised", *pairs, ""])
