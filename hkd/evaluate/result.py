"""What an evaluation leaves in a run's folder, and how it is read back.

eval-SPLIT.json          the figures: deterministic, no clock
eval-SPLIT.hyp.jsonl     an utterance a line: reference, hypothesis, counts; all figures can be recomputed from it
eval-SPLIT.errors.txt    for people: the errors aligned, by speaker, and which words are confused
eval-SPLIT.nbest.jsonl   where asked for: an utterance a line, its hypotheses, best first
eval-SPLIT.timing.json   real-time factor: differs from run to run, hence kept apart

Other ways to decode lie beside, under a tag: eval-SPLIT@TAG.json and so on.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np

from hkd.errors import UserError
from hkd.evaluate.score import (
    ConfidenceInterval,
    Scores,
    block_sums,
    phones_of,
    score_characters,
    score_tokens,
    score_words,
)
from hkd.files import atomic_write, write_bytes, write_json
from hkd.units.lexicon import Lexicon

FORMAT = 1
METRICS = ("wer", "cer", "per")


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorRate:
    """One rate with its counts and its intervals (None where there are too few blocks). The rate is errors / tokens:
    NaN without tokens, which the file writes as null."""

    rate: float
    tokens: int
    errors: int
    substitutions: int
    insertions: int
    deletions: int
    by_utterance: ConfidenceInterval | None = None
    by_speaker: ConfidenceInterval | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "rate": None if math.isnan(self.rate) else self.rate}


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """One utterance and its hypothesis. Texts are normalised words; phones by the run's lexicon, or by the English one
    where None."""

    id: str
    speaker: str | None
    seconds: float
    reference: str
    hypothesis: str
    reference_phones: str | None = None
    hypothesis_phones: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedHypothesis:
    """One of an utterance's n best: normalised words, and the natural log-probability (acoustic and LM scores
    together)."""

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
    """Sentences about students that say nothing, or almost nothing, with the remedy; a remedy once for all students
    that need it."""
    silent: dict[str, list[str]] = {}
    for report in reports:
        wer = report.errors["wer"]
        if wer.tokens and wer.deletions >= SILENT * wer.tokens:
            remedy = GRAPH_REMEDY if report.decoder.get("name") == "graph" else CTC_REMEDY
            silent.setdefault(remedy, []).append(
                f"{report.name} ({wer.deletions:,} of {wer.tokens:,} words are left out)"
            )
    return [f"Nothing, or almost nothing, is said by {', '.join(names)}. {remedy}" for remedy, names in silent.items()]


def read_json(path: Path, what: str = "a part of a run") -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file. Raises UserError where it is broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(
            f"{path} must be {what} in JSON, but cannot be read as such ({error}). Make it again."
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must be {what} in JSON, but is no object. Make it again.")
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
        raise UserError(
            f"an evaluation must be at {error.filename}, but is not there. Run `hkd evaluate {run_folder.name} --split "
            f"{split}` first."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} must be an evaluation, but cannot be read as one ({error}). Run `hkd evaluate` again."
        ) from None


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
    """Write an evaluation's files, the figures last: they are the mark of completeness. Without n-best lists an older
    file of them goes."""
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
    """The same with the phones of both texts."""
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
    words_G, errors_G = (
        block_sums(counts_N, speakers).astype(int).tolist() for counts_N in (scores.tokens_N, scores.errors_N)
    )
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
    text += ["", "count  said → recognised"]
    text += [f"{count:>5}  {said} → {heard}" for said, heard, count in confusions(scores)]
    return "\n".join(text) + "\n"
