"""write_report: run folders to one HTML page that needs nothing else, and the objectives' table.

- No scripts and no request to anywhere: style, drawings and sound are inside.
- A part that is missing (label stores, alignment, LMs, curves) leaves its section out, never the page.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hkd import __version__
from hkd.align.alignment import Alignment
from hkd.errors import HkdError
from hkd.evaluate.charts import NUM_COLOURS, forest, line_chart, panels, read_curves
from hkd.evaluate.examples import Example, examples, level_rank
from hkd.evaluate.result import EvaluationReport, by_speaker, confusions, read_result, tags_of
from hkd.evaluate.score import score_words
from hkd.evaluate.table import Table, objectives_table
from hkd.files import write_bytes
from hkd.labels.card import describe
from hkd.labels.store import LabelReader, store_folders
from hkd.manifest import Manifest
from hkd.manifest import read as read_manifest
from hkd.progress import Progress, no_progress

TIMING, STUDENT = "timing.jsonl", "student.json"


def training_facts(run_folder: Path, stores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Steps, audio hours, wall hours, audio seconds a second, share of the time that was spent waiting for data, hard heads' levels and teachers.

    stores: label store → its facts (`top1_hit_rate`, `perplexity`). Times cover what was logged, work that a kill undid included; None
    where the run has no timing.
    """
    rows = _rows(run_folder / TIMING)
    if not rows:
        return None
    wall_s, audio_s, wait_s = (sum(float(row.get(name, 0.0)) for row in rows) for name in ("wall_s", "audio_s", "wait_s"))
    heads = _heads(run_folder / STUDENT)
    taught = list(dict.fromkeys(str(head["store"]) for head in heads if head.get("store")))
    return {
        "steps": int(rows[-1]["step"]),
        "audio_hours": audio_s / 3600,
        "wall_hours": wall_s / 3600,
        "rate": audio_s / wall_s if wall_s else None,
        "waiting": wait_s / wall_s if wall_s else None,
        "hard": [str(head["level"]) for head in heads if head.get("kind") == "hard"],
        "teachers": [
            {"store": name, **{key: stores.get(name, {}).get(key) for key in ("top1_hit_rate", "perplexity")}} for name in taught
        ],
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file; a torn one is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(text)
            float(row["step"]), float(row["wall_s"])
        except (ValueError, KeyError, TypeError):
            continue
        found.append(row)
    return found


def _heads(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["heads"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return []


MAX_PANELS = 12
MAX_CONFUSIONS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A chart with its title."""

    title: str
    drawing: Markup


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    split: str = "test",
    baselines: Sequence[str] = (),
    manifest: Path | None = None,
    alignment: Path | None = None,
    labels: Path | None = None,
    lm: Path | None = None,
    title: str = "",
    num_examples: int = 3,
    progress: Progress = no_progress,
) -> Table:
    """Write the page; returns the table it holds. A run is called as its folder.

    baselines: see `hkd.evaluate.table.objectives_table`. manifest, alignment, labels (folder of stores), lm (folder of unit LMs): what is
    None or not there is left out of the page. Raises UserError where a run is not evaluated on the split, or the runs make no table.
    """
    reports = [replace(read_result(run, split, tag), run=run.name) for run in runs for tag in ("", *tags_of(run, split))]
    progress(1, 4)
    table = objectives_table(reports, baselines=baselines)
    order = [name for row in table.rows for name in row.runs]
    reports.sort(key=lambda report: order.index(report.name))
    utterances = read_manifest(manifest) if manifest is not None else None
    aligned = Alignment(alignment) if alignment is not None else None
    folders = store_folders(labels) if labels is not None and _has_store(labels) else {}
    stores = {name: LabelReader.open(path) for name, path in folders.items() if _complete(path)}
    progress(2, 4)
    shown = (
        examples(utterances, reports=reports, alignment=aligned, stores=stores, number=num_examples)
        if utterances is not None
        else []
    )
    progress(3, 4)
    lms = read_lms(lm) if lm is not None else []
    facts = [store_facts(folders[name], stores[name], lms) for name in stores]
    trained = {run.name: training_facts(run, {entry["name"]: entry for entry in facts}) for run in runs}
    page = render(
        title=title or out.resolve().parent.name,
        table=table,
        reports=reports,
        charts=chart_panels(runs, order),
        trained={name: value for name, value in trained.items() if value is not None},
        stores=_by_level(facts),
        lms=_by_level(lms),
        shown=shown,
        train=train_facts(utterances),
        aligned=aligned,
    )
    write_bytes(out, page.encode())
    progress(4, 4)
    return table


def _has_store(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("**/store.json"))


def _complete(folder: Path | str) -> bool:
    try:
        LabelReader.open(folder)
    except HkdError:
        return False
    return True


def _by_level(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fine to coarse, then by name."""
    return sorted(entries, key=lambda e: (level_rank(e["level"]), e["name"]))


def read_lms(folder: Path) -> list[dict[str, Any]]:
    """What each unit LM's report.json says of its perplexity: neural, n-gram and unigram at the same positions."""
    found = []
    for path in sorted(folder.glob("*/report.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        for judged_on, figures in value.get("figures", {}).items():
            found.append({"name": path.parent.name, "level": value["unit"], **value, "judged_on": judged_on, "figures": figures})
    return found


def store_facts(folder: Path | str, store: LabelReader, lms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `hkd labels info` says of a store, and the perplexity on the transcripts of the n-gram that its LM was held against."""
    facts = describe(folder, store.spec)
    own = [
        m for m in lms if (m["name"], m["level"], m["judged_on"]) == (facts["teacher"].get("name"), facts["level"], "transcripts")
    ]
    return {**facts, "ngram_perplexity": own[0]["figures"]["ngram"]["perplexity"] if own else None}


def error_details(report: EvaluationReport) -> dict[str, Any]:
    """Speakers from worst to best, and the commonest confusions."""
    scores = score_words([row.reference for row in report.hypotheses], [row.hypothesis for row in report.hypotheses])
    return {
        "name": report.name,
        "speakers": by_speaker(report.hypotheses, scores),
        "confusions": confusions(scores, most=MAX_CONFUSIONS),
    }


def train_facts(manifest: Manifest | None) -> dict[str, Any] | None:
    """Utterances, hours and speakers of the train part; None where there is no manifest or no such part."""
    part = [u for u in manifest or () if u.split == "train"]
    if not part:
        return None
    return {
        "utterances": len(part),
        "hours": sum(u.duration or 0.0 for u in part) / 3600,
        "speakers": len({u.speaker for u in part if u.speaker is not None}),
    }


def colours_of(order: Sequence[str]) -> dict[str, int]:
    """Run → number of its colour, in the order of the table."""
    return {name: number for number, name in enumerate(order)}


def chart_panels(runs: Sequence[Path], order: Sequence[str]) -> list[Panel]:
    """Training curves, a figure a panel, all runs in each."""
    colours = colours_of(order)
    folder_of = {run.name: run for run in runs}
    curves = {name: read_curves(folder_of[name]) for name in order if name in folder_of}
    return [Panel(title=name, drawing=line_chart(series, colours, label=name)) for name, series in panels(curves)[:MAX_PANELS]]


def render(
    *,
    title: str,
    table: Table,
    reports: Sequence[EvaluationReport],
    charts: Sequence[Panel],
    trained: Mapping[str, Mapping[str, Any]],
    stores: Sequence[Mapping[str, Any]],
    lms: Sequence[Mapping[str, Any]],
    shown: Sequence[Example],
    train: Mapping[str, Any] | None,
    aligned: Alignment | None,
) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hkd.evaluate", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "figure": figure, "minutes": minutes}
    colours = colours_of([report.name for report in reports])
    return environment.get_template("report.html").render(
        title=title,
        table=table,
        body=table.cells(),
        reports=reports,
        charts=charts,
        trained=trained,
        pairs=table.pairs(),
        deltas={run: table.comparison(row) for row in table.rows for run in row.runs},
        stores=stores,
        lms=lms,
        examples=shown,
        details=[error_details(report) for report in reports],
        train=train,
        aligned=aligned,
        colours={name: colour % NUM_COLOURS for name, colour in colours.items()},
        forest=_forest(table, colours),
        version=__version__,
    )


def _forest(table: Table, colours: Mapping[str, int]) -> Markup:
    rows = []
    for row in table.rows:
        cell = row.cells["wer"]
        low, high = (100 * cell.interval.low, 100 * cell.interval.high) if cell.interval else (None, None)
        rows.append((row.name, 100 * cell.rate, low, high, colours[row.runs[0]]))
    reference = next((100 * row.cells["wer"].rate for row in table.rows if row.name == table.baseline), None)
    return forest(rows, label="word error rates with their intervals", reference=reference)


def percent(value: float | None, digits: int = 1) -> str:
    """0.1234 → 12.3; a dash where there is no value."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


def figure(value: float | None, digits: int = 2) -> str:
    """A number with its digits and thousands; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def minutes(hours: float) -> str:
    """Hours as people say them."""
    return f"{60 * hours:.1f} minutes" if hours < 2 else f"{hours:.1f} hours"
