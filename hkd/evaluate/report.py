"""write_report: run folders to one HTML page that needs nothing else, and the objectives' table.

- No scripts and no request to anywhere: style, drawings and sound are inside.
- A part that is missing (label stores, alignment, LMs, curves) leaves its section out, never the page.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hkd import __version__
from hkd.align.alignment import Alignment
from hkd.errors import HkdError
from hkd.evaluate.charts import NUM_COLOURS, forest, json_lines, line_chart, panels, read_curves
from hkd.evaluate.examples import examples, level_rank
from hkd.evaluate.result import EvaluationReport, by_speaker, confusions, read_json, read_result, tags_of
from hkd.evaluate.score import score_words
from hkd.evaluate.table import Table, objectives_table
from hkd.files import write_bytes
from hkd.labels.card import describe
from hkd.labels.store import LabelReader, store_folders
from hkd.manifest import Manifest
from hkd.manifest import read as read_manifest
from hkd.progress import Progress, no_progress

MAX_PANELS = 12
MAX_CONFUSIONS = 12


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

    baselines: see `hkd.evaluate.table.objectives_table`. manifest, alignment, labels (folder of stores), lm (folder of unit LMs): parts that
    are None or missing are left out of the page. Raises UserError where a run is not evaluated on the split, or the runs make no table.
    """
    import jinja2

    reports = [replace(read_result(run, split, tag), run=run.name) for run in runs for tag in ("", *tags_of(run, split))]
    progress(1, 4)
    table = objectives_table(reports, baselines=baselines)
    order = [name for row in table.rows for name in row.runs]
    reports.sort(key=lambda report: order.index(report.name))
    colours = {name: number for number, name in enumerate(order)}
    utterances = read_manifest(manifest) if manifest is not None else None
    aligned = Alignment(alignment) if alignment is not None else None
    stores = _open_stores(labels)
    progress(2, 4)
    shown = []
    if utterances is not None:
        shown = examples(utterances, reports=reports, alignment=aligned, stores=stores, number=num_examples)
    progress(3, 4)
    lms = read_lms(lm) if lm is not None else []
    facts = {name: _store_facts(store, lms) for name, store in stores.items()}
    trained = {run.name: training_facts(run, facts) for run in runs}
    folders = {run.name: run for run in runs}
    curves = {name: read_curves(folders[name]) for name in order if name in folders}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hkd.evaluate", "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "figure": figure, "minutes": minutes}
    page = environment.get_template("report.html").render(
        title=title or out.resolve().parent.name,
        table=table,
        body=table.cells(),
        reports=reports,
        charts=[(name, line_chart(series, colours, label=name)) for name, series in panels(curves)[:MAX_PANELS]],
        trained={name: value for name, value in trained.items() if value is not None},
        pairs=table.pairs(),
        deltas={run: table.comparison(row) for row in table.rows for run in row.runs},
        stores=sorted(facts.values(), key=_by_level),
        lms=sorted(lms, key=_by_level),
        examples=shown,
        details=[_error_details(report) for report in reports],
        train=_train_facts(utterances),
        aligned=aligned,
        colours={name: colour % NUM_COLOURS for name, colour in colours.items()},
        forest=_forest(table, colours),
        version=__version__,
    )
    write_bytes(out, page.encode())
    progress(4, 4)
    return table


def _open_stores(labels: Path | None) -> dict[str, LabelReader]:
    """The complete stores of a folder."""
    found = {}
    if labels is not None and any(labels.glob("**/store.json")):
        for name, folder in store_folders(labels).items():
            with suppress(HkdError):
                found[name] = LabelReader.open(folder)
    return found


def _by_level(entry: Mapping[str, Any]) -> tuple[int, str]:
    """Fine to coarse, then by name."""
    return level_rank(entry["level"]), entry["name"]


def training_facts(run_folder: Path, stores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """A run's steps, audio and wall hours, audio seconds a second, share of time spent waiting for data, levels of hard heads, and teachers.

    stores: label store → its facts (`top1_hit_rate`, `perplexity`). Times cover what was logged, work that a kill undid included; None
    where the run has no timing.
    """
    rows = [row for row in json_lines(run_folder / "timing.jsonl") if "wall_s" in row]
    if not rows:
        return None
    wall_s, audio_s, wait_s = (sum(float(row.get(name, 0.0)) for row in rows) for name in ("wall_s", "audio_s", "wait_s"))
    heads = list(read_json(run_folder / "student.json", "the heads of a run").get("heads", {}).values())
    data = read_json(run_folder / "identity.json", "the data of a run").get("data", {})
    taught = dict.fromkeys([*(str(head["store"]) for head in heads if head.get("store")), *data.get("stores", {})])
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


def read_lms(folder: Path) -> list[dict[str, Any]]:
    """The perplexities in each unit LM's report.json: neural, n-gram and unigram at the same positions."""
    found = []
    for path in sorted(folder.glob("*/report.json")):
        value = read_json(path, "the report of an LM")
        for judged_on, figures in value.get("figures", {}).items():
            found.append({"name": path.parent.name, "level": value["unit"], **value, "judged_on": judged_on, "figures": figures})
    return found


def _store_facts(store: LabelReader, lms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of `hkd labels info`, and the perplexity on the transcripts of the n-gram that the store's LM was compared with."""
    facts = describe(store.path, store.spec)
    wanted = (facts["teacher"].get("name"), facts["level"], "transcripts")
    own = [m["figures"]["ngram"]["perplexity"] for m in lms if (m["name"], m["level"], m["judged_on"]) == wanted]
    return {**facts, "ngram_perplexity": own[0] if own else None}


def _error_details(report: EvaluationReport) -> dict[str, Any]:
    """Speakers from worst to best, and the commonest confusions."""
    rows = report.hypotheses
    scores = score_words([row.reference for row in rows], [row.hypothesis for row in rows])
    return {"name": report.name, "speakers": by_speaker(rows, scores), "confusions": confusions(scores, most=MAX_CONFUSIONS)}


def _train_facts(manifest: Manifest | None) -> dict[str, Any] | None:
    """Utterances, hours and speakers of the train part; None where there is no manifest or no such part."""
    part = [u for u in manifest or () if u.split == "train"]
    if not part:
        return None
    speakers = {u.speaker for u in part if u.speaker is not None}
    return {"utterances": len(part), "hours": sum(u.duration or 0.0 for u in part) / 3600, "speakers": len(speakers)}


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
