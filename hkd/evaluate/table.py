"""The objectives' table: one row a configuration, its seeds pooled, with intervals and paired tests against the baselines.

- Runs whose names differ only in the ending `-seedN` are seeds of one row. Errors are averaged over seeds, utterance by utterance, so
  intervals and p-values are about other test data, not other seeds. The range of the seeds is given beside.
- Blocks are speakers where there are at least MIN_SPEAKERS, else utterances: few blocks make no honest interval.
"""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.evaluate.result import METRICS, EvaluationReport, score_all
from hkd.evaluate.score import Comparison, Interval, Scores, bootstrap_interval, matched_pairs, paired_bootstrap


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns under a header and a rule, the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        "  ".join(
            text.ljust(w) if column == 0 else text.rjust(w) for column, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return [shown[0], "─" * len(shown[0]), *shown[1:]]


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left, the others to the right."""
    rule = [":--" if column == 0 else "--:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body))


def signed(share: float, digits: int = 2) -> str:
    """A share as per cent, with its sign."""
    return f"{100 * share:+.{digits}f}".replace("-", "−")


def format_p(p: float) -> str:
    """A p-value with as many digits as it deserves."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


MIN_SPEAKERS = 10
ORDER = ("none", "hard-heads", "interpolation", "auxiliary", "hierarchical")
_SEED = re.compile(r"[-_.]seed[-_]?\d+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A rate over all seeds, its interval, and the rate of each seed."""

    rate: float
    interval: Interval | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One configuration."""

    name: str
    objective: str
    runs: tuple[str, ...]
    cells: dict[str, Cell]  # wer, cer, per
    against: Mapping[str, Comparison]  # paired bootstrap of the WER by baseline
    segments: Mapping[str, Comparison]  # matched pairs by baseline, where both have one seed
    parameters: int
    lm_parameters: int  # of the LM beside the decoder
    rtf: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """All rows, and what they are rows of."""

    rows: tuple[Row, ...]
    split: str
    blocks: str  # speaker | utterance
    level: float
    baselines: tuple[str, ...]  # the first is that of the rows' own columns
    data: dict[str, float]

    @property
    def baseline(self) -> str | None:
        """The first one."""
        return self.baselines[0] if self.baselines else None

    def header(self) -> tuple[str, ...]:
        """Column titles, units in them."""
        interval = f"{100 * self.level:g} % interval"
        versus = f"p vs {self.baseline}" if self.baseline else "p"
        wer, *others = ((f"{metric.upper()} %", interval) for metric in METRICS)
        return ("run", *wer, "seeds", *itertools.chain(*others), "ΔWER", versus, "parameters", "RTF")

    def cells(self) -> list[tuple[str, ...]]:
        """The rows as texts."""
        return [_texts(row, self.comparison(row)) for row in self.rows]

    def comparison(self, row: Row) -> Comparison | None:
        """The row against the first baseline."""
        return row.against.get(base_of(row.name, self.baseline, [other.name for other in self.rows])) if self.baseline else None

    def pairs_header(self) -> tuple[str, ...]:
        """Column titles of `pairs`."""
        return ("run", "against", "ΔWER", f"{100 * self.level:g} % interval", "relative %", "p", "p by matched pairs")

    def pairs(self) -> list[tuple[str, ...]]:
        """Each row against each baseline, as texts."""
        rates = {row.name: row.cells["wer"].rate for row in self.rows}
        return [
            _pair(row, other, found, rates[other])
            for baseline in self.baselines
            for row in self.rows
            if (found := row.against.get(other := base_of(row.name, baseline, rates)))
        ]

    def text(self) -> str:
        """Aligned columns for a terminal; narrow: intervals for the WER, plain rates for the others."""
        header = self.header()
        kept = [column for column in range(len(header)) if column not in (5, 7)]
        shown = aligned([[row[column] for column in kept] for row in (header, *self.cells())])
        pairs = [*aligned([self.pairs_header(), *self.pairs()]), ""] if len(self.baselines) > 1 else []
        return "\n".join([*shown, "", *pairs, *self.notes()])

    def markdown(self) -> str:
        """Markdown tables, of rows and of pairs, and their notes."""
        tables = [markdown(self.header(), self.cells())]
        if self.baselines:
            tables.append(markdown(self.pairs_header(), self.pairs()))
        return "\n\n".join([*tables, "\n".join(self.notes())])

    def notes(self) -> list[str]:
        """How much data stands behind the figures, and how the intervals came about."""
        d = self.data
        speakers = f"{d['speakers']:.0f} speaker{'' if d['speakers'] == 1 else 's'}"
        seeds = {len(row.runs) for row in self.rows}
        runs = (
            "one seed each"
            if seeds == {1}
            else f"{min(seeds)} to {max(seeds)} seeds a row"
            if len(seeds) > 1
            else f"{max(seeds)} seeds each"
        )
        notes = [
            f"Split {self.split}: {d['utterances']:,.0f} utterances, {d['words']:,.0f} words, {60 * d['hours']:.1f} minutes, {speakers}; {runs}.",
            f"Intervals: bootstrap by {self.blocks}."
            + (f" p: paired bootstrap by {self.blocks} against {self.baseline}, two-sided." if self.baseline else ""),
        ]
        if any(len(row.runs) > 1 for row in self.rows):
            notes.append(
                "In brackets the WER of the best and the worst seed; intervals and p speak of other test data, not of other seeds."
            )
        if self.blocks == "utterance":
            notes.append(f"Fewer than {MIN_SPEAKERS} speakers: the intervals say nothing about other speakers.")
        return notes


def _pair(row: Row, other: str, found: Comparison, rate: float) -> tuple[str, ...]:
    interval = "–" if found.low is None or found.high is None else f"{signed(found.low, 1)} … {signed(found.high, 1)}"
    segments = row.segments.get(other)
    return (
        row.name, other, signed(found.difference), interval, signed(found.difference / rate, 1) if rate else "–", format_p(found.p),
        format_p(segments.p) if segments else "–",
    )  # fmt: skip


def _texts(row: Row, against: Comparison | None) -> tuple[str, ...]:
    rates: list[str] = []
    for metric in METRICS:
        cell = row.cells[metric]
        rates += [
            "–" if np.isnan(cell.rate) else f"{100 * cell.rate:.2f}",
            f"{100 * cell.interval.low:.1f}–{100 * cell.interval.high:.1f}" if cell.interval else "–",
        ]
    delta, p = (signed(against.difference), format_p(against.p)) if against else ("–", "–")
    parameters = f"{row.parameters / 1e6:.2f} M" + (f" + {row.lm_parameters / 1e6:.1f} M" if row.lm_parameters else "")
    rtf = "–" if row.rtf is None else f"{row.rtf:.3f}"
    seeds = [100 * rate for rate in row.cells["wer"].by_seed]
    spread = f" ({min(seeds):.1f}–{max(seeds):.1f})" if len(seeds) > 1 and not np.isnan(seeds[0]) else ""
    return (row.name, *rates[:2], f"{len(seeds)}{spread}", *rates[2:], delta, p, parameters, rtf)


def configuration_of(run: str) -> str:
    """A run's name without its seed: `hierarchical-seed2` → `hierarchical`, `none-seed1@fusion` → `none@fusion`."""
    name, at, tag = run.partition("@")
    return (_SEED.sub("", name) or name) + at + tag


def base_of(row: str, baseline: str, names: Collection[str]) -> str:
    """The row that a row is held against: the baseline, decoded alike where it was (`none@fusion` for `hierarchical@fusion`)."""
    alike = f"{baseline}@{row.partition('@')[2]}"
    return alike if alike in names and alike != row else baseline


def objectives_table(reports: Sequence[EvaluationReport], *, baselines: Sequence[str] = (), num_draws: int = 10_000) -> Table:
    """The table of evaluations of one split.

    baselines: the configurations, else objectives, that the others are tested against (see `base_of`); by default `none` where it is there.
    Raises UserError where splits or references differ, a baseline is not there, or what looks like seeds of one row is not.
    """
    if not reports:
        raise UserError("a table must have at least one evaluated run, but there is none. Run `hkd evaluate` first.")
    _check_same(reports)
    groups: dict[str, list[EvaluationReport]] = {}
    for report in sorted(reports, key=lambda r: (_rank(r.objective), r.name)):
        groups.setdefault(configuration_of(report.name), []).append(report)
    for name, group in groups.items():
        _check_seeds(name, group)
    bases = [_find(name, groups) for name in baselines] or [name for name in ("none",) if name in groups and len(groups) > 1]
    first = reports[0]
    speakers = [row.speaker for row in first.hypotheses if row.speaker is not None]
    by_speaker = len(speakers) == len(first.hypotheses) and len(set(speakers)) >= MIN_SPEAKERS
    group_N = speakers if by_speaker else None
    level = float(first.inputs.get("settings", {}).get("level", 0.95))
    scores = {name: [score_all(report.hypotheses) for report in group] for name, group in groups.items()}
    rows = []
    for name, group in groups.items():
        others = [other for base in bases if (other := base_of(name, base, groups)) != name]
        rows.append(_row(name, group, scores[name], {other: scores[other] for other in others}, group_N, level, num_draws))
    blocks = "speaker" if by_speaker else "utterance"
    return Table(rows=tuple(rows), split=first.split, blocks=blocks, level=level, baselines=tuple(bases), data=dict(first.data))


def _rank(objective: str) -> int:
    return ORDER.index(objective) if objective in ORDER else len(ORDER)


def _find(baseline: str, groups: Mapping[str, Sequence[EvaluationReport]]) -> str:
    """The row that a baseline means: its name, else its objective. Raises UserError where there is none."""
    names = [name for name in groups if name == baseline]
    names = names or [name for name, group in groups.items() if group[0].objective == baseline and not group[0].tag]
    if not names:
        raise UserError(f"a baseline must be one of {', '.join(groups)}, or their objective, but is '{baseline}' instead.")
    return names[0]


def _check_seeds(name: str, group: Sequence[EvaluationReport]) -> None:
    """Raises UserError where runs of one row have one name, or differ in more than their seed."""
    first = group[0]
    for number, other in enumerate(group[1:], start=1):
        if other.name in [report.name for report in group[:number]]:
            raise UserError(f"runs in one table must have different names, but two are called {other.name}. Rename one's folder.")
        for what in ("objective", "parameters", "decoder"):
            if getattr(first, what) != getattr(other, what):
                raise UserError(
                    f"{first.name} and {other.name} would be seeds of one row, {name}, but differ in {what}: {getattr(first, what)} and "
                    f"{getattr(other, what)}. Rename one's folder, or evaluate both alike."
                )


def _check_same(reports: Sequence[EvaluationReport]) -> None:
    references = [[(row.id, row.reference) for row in report.hypotheses] for report in reports]
    for report, found in zip(reports, references, strict=True):
        if report.split != reports[0].split or found != references[0]:
            raise UserError(
                f"runs in one table must be evaluated on the same utterances, but those of {report.name} and {reports[0].name} differ."
                " Run `hkd evaluate` for all of them."
            )


def _pooled(scores: Sequence[Scores]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Errors of each utterance, averaged over seeds, and its tokens."""
    return np.mean([s.errors_N for s in scores], axis=0), scores[0].tokens_N


def _row(
    name: str,
    group: Sequence[EvaluationReport],
    scores: Sequence[dict[str, Scores]],
    bases: Mapping[str, Sequence[dict[str, Scores]]],
    group_N: Sequence[str] | None,
    level: float,
    num_draws: int,
) -> Row:
    cells = {}
    for metric in METRICS:
        errors_N, tokens_N = _pooled([s[metric] for s in scores])
        cells[metric] = Cell(
            rate=float(errors_N.sum() / tokens_N.sum()) if tokens_N.sum() else float("nan"),
            interval=bootstrap_interval(errors_N, tokens_N, group_N=group_N, level=level, num_draws=num_draws),
            by_seed=tuple(s[metric].rate for s in scores),
        )
    errors_N, tokens_N = _pooled([s["wer"] for s in scores])
    against: dict[str, Comparison | None] = {}
    segments: dict[str, Comparison | None] = {}
    for other, base in bases.items():
        base_N, _ = _pooled([s["wer"] for s in base])
        against[other] = paired_bootstrap(errors_N, base_N, tokens_N, group_N=group_N, level=level, num_draws=num_draws)
        segments[other] = matched_pairs(scores[0]["wer"], base[0]["wer"]) if len(scores) == len(base) == 1 else None
    timed = [report.rtf for report in group if report.rtf is not None]
    return Row(
        name=name,
        objective=group[0].objective,
        runs=tuple(report.name for report in group),
        cells=cells,
        against={other: found for other, found in against.items() if found},
        segments={other: found for other, found in segments.items() if found},
        parameters=group[0].parameters,
        lm_parameters=int(group[0].decoder.get("lm_parameters", 0)),
        rtf=float(np.median(timed)) if timed else None,
    )
