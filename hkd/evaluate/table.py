"""The objectives' table: a row a configuration, its seeds pooled, with intervals and paired tests against baselines.

- Runs whose names differ only in the ending `-seedN` are seeds of one row. Errors are averaged over seeds, utterance by
  utterance, so intervals and p-values are about other test data, not other seeds, whose range is given beside.
- Blocks are speakers where there are at least MIN_SPEAKERS, else utterances: few blocks make no honest interval.
"""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError, did_you_mean
from hkd.evaluate.score import (
    METRICS,
    Comparison,
    ConfidenceInterval,
    Counts_N,
    EvaluationReport,
    Scores,
    bootstrap_interval,
    matched_pairs,
    paired_bootstrap,
    score_all,
    silence_notes,
)

MIN_SPEAKERS = 10
ORDER = ("none", "hard-heads", "interpolation", "auxiliary", "hierarchical")
_SEED = re.compile(r"[-_.]seed[-_]?\d+$")


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns under a header and a rule, the first to the left, the others to the right."""
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = ([line[0].ljust(first), *map(str.rjust, line[1:], others)] for line in lines)
    shown = ["  ".join(row) for row in cells]
    return [shown[0], "─" * len(shown[0]), *shown[1:]]


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left, the others to the right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body))


def signed(share: float, digits: int = 2) -> str:
    """A share as per cent, with its sign."""
    return f"{100 * share:+.{digits}f}".replace("-", "−")


def format_p(p: float) -> str:
    """A p-value with as many digits as it deserves."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A rate over all seeds, its interval, and the rate of each seed."""

    rate: float
    interval: ConfidenceInterval | None
    by_seed: tuple[float, ...]

    def texts(self) -> tuple[str, str]:
        interval = f"{100 * self.interval.low:.1f}–{100 * self.interval.high:.1f}" if self.interval else "–"
        return "–" if np.isnan(self.rate) else f"{100 * self.rate:.2f}", interval


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    name: str
    runs: tuple[str, ...]
    cells: dict[str, Cell]  # wer, cer, per
    against: Mapping[str, Comparison]  # paired bootstrap of the WER by baseline
    segments: Mapping[str, Comparison]  # matched pairs by baseline, where both have one seed
    parameters: int
    lm_parameters: int  # of the LM beside the decoder
    rtf: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectivesTable:
    """All rows, and what they are rows of."""

    rows: tuple[TableRow, ...]
    split: str
    blocks: str  # speaker | utterance
    level: float
    baselines: tuple[str, ...]  # the first is that of the rows' own columns
    data: dict[str, float]
    remarks: tuple[str, ...]  # sentences about students that say nothing, and what an LM at the search still gains

    @property
    def baseline(self) -> str | None:
        return self.baselines[0] if self.baselines else None

    def header(self) -> tuple[str, ...]:
        """Column titles, units in them."""
        interval = f"{100 * self.level:g} % interval"
        versus = f"p vs {self.baseline}" if self.baseline else "p"
        wer, *others = ((f"{metric.upper()} %", interval) for metric in METRICS)
        return ("run", *wer, "seeds", *itertools.chain(*others), "ΔWER", versus, "parameters", "RTF")

    def cells(self) -> list[tuple[str, ...]]:
        """The rows as texts."""
        found = []
        for row in self.rows:
            against = self.comparison(row)
            wer, *others = (row.cells[metric].texts() for metric in METRICS)
            delta, p = (signed(against.difference), format_p(against.p)) if against else ("–", "–")
            of_lm = f" + {row.lm_parameters / 1e6:.1f} M" if row.lm_parameters else ""
            seeds = [100 * rate for rate in row.cells["wer"].by_seed]
            spread = f" ({min(seeds):.1f}–{max(seeds):.1f})" if len(seeds) > 1 and not np.isnan(seeds[0]) else ""
            last = (delta, p, f"{row.parameters / 1e6:.2f} M{of_lm}", "–" if row.rtf is None else f"{row.rtf:.3f}")
            found.append((row.name, *wer, f"{len(seeds)}{spread}", *itertools.chain(*others), *last))
        return found

    def comparison(self, row: TableRow) -> Comparison | None:
        if not self.baseline:
            return None
        return row.against.get(base_of(row.name, self.baseline, [other.name for other in self.rows]))

    def pairs_header(self) -> tuple[str, ...]:
        return ("run", "against", "ΔWER", f"{100 * self.level:g} % interval", "relative %", "p", "p by matched pairs")

    def pairs(self) -> list[tuple[str, ...]]:
        """Each row against each baseline, as texts."""
        rates = {row.name: row.cells["wer"].rate for row in self.rows}
        found: list[tuple[str, ...]] = []
        for baseline, row in itertools.product(self.baselines, self.rows):
            other = base_of(row.name, baseline, rates)
            if c := row.against.get(other):
                interval = "–" if c.low is None or c.high is None else f"{signed(c.low, 1)} … {signed(c.high, 1)}"
                relative = signed(c.difference / rates[other], 1) if rates[other] else "–"
                segments = format_p(row.segments[other].p) if other in row.segments else "–"
                found.append((row.name, other, signed(c.difference), interval, relative, format_p(c.p), segments))
        return found

    def text(self) -> str:
        """Aligned columns for a terminal; narrow: intervals for the WER, plain rates for the others."""
        shown = aligned([[*row[:5], row[6], *row[8:]] for row in (self.header(), *self.cells())])
        pairs = [*aligned([self.pairs_header(), *self.pairs()]), ""] if len(self.baselines) > 1 else []
        return "\n".join([*shown, "", *pairs, *self.notes()])

    def markdown(self) -> str:
        """Markdown tables, of rows and of pairs, and their notes."""
        tables = [markdown(self.header(), self.cells())]
        if self.baselines:
            tables.append(markdown(self.pairs_header(), self.pairs()))
        return "\n\n".join([*tables, "\n".join(self.notes())])

    def notes(self) -> list[str]:
        """Students that say nothing, the size of the test data, and how the intervals came about."""
        d = self.data
        speakers = f"{d['speakers']:.0f} speaker{'' if d['speakers'] == 1 else 's'}"
        least, most = (f(len(row.runs) for row in self.rows) for f in (min, max))
        seeds = f"{most} seeds each" if least == most else f"{least} to {most} seeds a row"
        seeds = "one seed each" if most == 1 else seeds
        size = f"{d['utterances']:,.0f} utterances, {d['words']:,.0f} words, {60 * d['hours']:.1f} minutes, {speakers}"
        tests = f" p: paired bootstrap by {self.blocks} against {self.baseline}, two-sided." if self.baseline else ""
        notes = [*self.remarks, f"Split {self.split}: {size}; {seeds}."]
        notes.append(f"Intervals: bootstrap by {self.blocks}.{tests}")
        if most > 1:
            about = "intervals and p are about other test data, not other seeds"
            notes.append(f"In brackets the WER of the best and the worst seed; {about}.")
        if self.blocks == "utterance":
            notes.append(f"Fewer than {MIN_SPEAKERS} speakers: the intervals say nothing about other speakers.")
        return notes


def configuration_of(run: str) -> str:
    """A run's name without its seed: `hierarchical-seed2` → `hierarchical`, `none-seed1@fusion` → `none@fusion`."""
    name, at, tag = run.partition("@")
    return (_SEED.sub("", name) or name) + at + tag


def base_of(row: str, baseline: str, names: Collection[str]) -> str:
    """The row that a row is compared with: the baseline, decoded alike where it was (`none@lm` for `hard-heads@lm`)."""
    alike = f"{baseline}@{row.partition('@')[2]}"
    return alike if alike in names and alike != row else baseline


def objectives_table(reports: Sequence[EvaluationReport], *, baselines: Sequence[str] = ()) -> ObjectivesTable:
    """The table of evaluations of one split. baselines: the configurations, else objectives, that the others are tested
    against (see `base_of`); by default `none` where present. Raises UserError where splits or references differ, a
    baseline is missing, or runs that look like seeds of one row are not."""
    if not reports:
        raise UserError("a table must have at least one evaluated run, but there is none. Run `hkd evaluate` first.")
    first = reports[0]
    _check_same(reports)
    rank = {objective: place for place, objective in enumerate(ORDER)}
    groups: dict[str, list[EvaluationReport]] = {}
    for report in sorted(reports, key=lambda r: (rank.get(r.objective, len(ORDER)), r.name)):
        groups.setdefault(configuration_of(report.name), []).append(report)
    for name, group in groups.items():
        _check_seeds(name, group)
    usual = ["none"] if "none" in groups and len(groups) > 1 else []
    bases = [_find(name, groups) for name in baselines] or usual
    speakers = [row.speaker for row in first.hypotheses if row.speaker is not None]
    by_speaker = len(speakers) == len(first.hypotheses) and len(set(speakers)) >= MIN_SPEAKERS
    level = float(first.inputs["settings"]["level"])
    draws = {"group_N": speakers if by_speaker else None, "level": level}
    scores = {name: [score_all(report.hypotheses) for report in group] for name, group in groups.items()}
    rows = []
    for name, group in groups.items():
        others = [other for base in bases if (other := base_of(name, base, groups)) != name]
        rows.append(_row(name, group, scores[name], {other: scores[other] for other in others}, draws))
    silent = silence_notes([report for group in groups.values() for report in group])
    return ObjectivesTable(
        rows=tuple(rows), split=first.split, blocks="speaker" if by_speaker else "utterance", level=level,
        baselines=tuple(bases), data=dict(first.data), remarks=(*silent, *_fusion_left(rows, groups, bases)),
    )  # fmt: skip


def _fusion_left(
    rows: Sequence[TableRow], groups: Mapping[str, Sequence[EvaluationReport]], bases: Sequence[str]
) -> Iterator[str]:
    """For each way to decode with an LM: what it gains on each row, which is less where the student knows the same."""
    rate = {row.name: 100 * row.cells["wer"].rate for row in rows}
    tags = dict.fromkeys(name.partition("@")[2] for name in rate if groups[name][0].decoder.get("lm"))
    for tag in filter(None, tags):
        gain = {name: rate[name] - rate[f"{name}@{tag}"] for name in rate if f"{name}@{tag}" in rate}
        base = next((gain[name] for name in bases if name in gain), 0.0)
        said = []
        for name, points in sorted(gain.items(), key=lambda item: item[0] not in bases):
            share = f" ({100 * points / base:.0f} %)" if base > 0 and name not in bases[:1] else ""
            said.append(f"{name} {points:.1f}{share}")
        if gain:
            what = "still gains (share of the baseline)" if base > 0 else "still gains"
            yield f"Points of WER that the LM of @{tag} {what}: {', '.join(said)}."


def _find(baseline: str, groups: Mapping[str, Sequence[EvaluationReport]]) -> str:
    """The row that a baseline means: its name, else its objective. Raises UserError where there is none."""
    of_objective = (name for name, group in groups.items() if group[0].objective == baseline and not group[0].tag)
    found = baseline if baseline in groups else next(of_objective, None)
    if found is None:
        hint = did_you_mean(baseline, [*groups, *(group[0].objective for group in groups.values())])
        known = f"one of {', '.join(groups)}, or their objective"
        raise UserError(f"a baseline must be {known}, but is '{baseline}' instead.{hint}")
    return found


def _check_seeds(name: str, group: Sequence[EvaluationReport]) -> None:
    """Raises UserError where runs of one row have one name, or differ in more than their seed."""
    first, seen = group[0], {group[0].name}
    for other in group[1:]:
        if other.name in seen:
            rule = "runs in one table must have different names"
            raise UserError(f"{rule}, but two are called {other.name}. Rename one's folder.")
        seen.add(other.name)
        for what in ("objective", "parameters", "decoder"):
            if getattr(first, what) != getattr(other, what):
                raise UserError(
                    f"{first.name} and {other.name} would be seeds of one row, {name}, but differ in {what}: "
                    f"{getattr(first, what)} and {getattr(other, what)}. Rename one's folder, or evaluate both alike."
                )


def _check_same(reports: Sequence[EvaluationReport]) -> None:
    heard = [(report.split, [(row.id, row.reference) for row in report.hypotheses]) for report in reports]
    for report, found in zip(reports, heard, strict=True):
        if found != heard[0]:
            raise UserError(
                f"runs in one table must be evaluated on the same utterances, but those of {report.name} and "
                f"{reports[0].name} differ. Run `hkd evaluate` for all of them."
            )


def _pooled(scores: Sequence[Mapping[str, Scores]], metric: str) -> tuple[NDArray[np.float64], Counts_N]:
    """Errors of each utterance, averaged over seeds, and its tokens."""
    return np.mean([s[metric].errors_N for s in scores], axis=0), scores[0][metric].tokens_N


def _row(
    name: str,
    group: Sequence[EvaluationReport],
    scores: Sequence[Mapping[str, Scores]],
    bases: Mapping[str, Sequence[Mapping[str, Scores]]],
    draws: Mapping[str, Any],
) -> TableRow:
    cells = {}
    for metric in METRICS:
        errors_N, tokens_N = _pooled(scores, metric)
        cells[metric] = Cell(
            rate=float(errors_N.sum() / tokens_N.sum()) if tokens_N.sum() else float("nan"),
            interval=bootstrap_interval(errors_N, tokens_N, **draws),
            by_seed=tuple(s[metric].rate for s in scores),
        )
    errors_N, tokens_N = _pooled(scores, "wer")
    against: dict[str, Comparison] = {}
    segments: dict[str, Comparison] = {}
    for other, base in bases.items():
        if paired := paired_bootstrap(errors_N, _pooled(base, "wer")[0], tokens_N, **draws):
            against[other] = paired
        if len(scores) == len(base) == 1 and (matched := matched_pairs(scores[0]["wer"], base[0]["wer"])):
            segments[other] = matched
    timed = [report.rtf for report in group if report.rtf is not None]
    return TableRow(
        name=name,
        runs=tuple(report.name for report in group),
        cells=cells,
        against=against,
        segments=segments,
        parameters=group[0].parameters,
        lm_parameters=int(group[0].decoder.get("lm_parameters", 0)),
        rtf=float(np.median(timed)) if timed else None,
    )
