"""write_report: run folders to one HTML page that needs nothing else, and the objectives' table.

- No scripts and no request to anywhere: style, drawings and sound are inside.
- A part that is missing (label stores, alignment, LMs, curves) leaves its section out, never the page.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from hkd import __version__
from hkd.align.alignment import Alignment
from hkd.audio import read_audio, to_int16
from hkd.errors import HkdError, Progress, UserError, no_progress
from hkd.evaluate.charts import NUM_COLOURS, Segment, forest, json_lines, line_chart, panels, read_curves, timeline
from hkd.evaluate.result import NOTHING, EvaluationReport, by_speaker, confusions, read_json, read_result, tags_of
from hkd.evaluate.score import score_words
from hkd.evaluate.table import ObjectivesTable, objectives_table
from hkd.files import write_bytes
from hkd.labels.card import describe, show
from hkd.labels.store import LabelReader, store_folders
from hkd.manifest import Manifest, Utterance
from hkd.manifest import read as read_manifest
from hkd.timebase import FRAME_SHIFT_S, SAMPLE_RATE_HZ
from hkd.units.inventory import UNIT_LEVELS

MAX_AUDIO_S = 12.0  # longer sound is not embedded
NUM_CANDIDATES = 5
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
) -> ObjectivesTable:
    """Write the page; returns the table it holds. A run is called as its folder.

    baselines: see `hkd.evaluate.table.objectives_table`. manifest, alignment, labels (folder of stores), lm (folder of
    unit LMs): parts that are None or missing are left out of the page. Raises UserError where a run is not evaluated on
    the split, or the runs make no table.
    """
    import jinja2

    reports = [
        replace(read_result(run, split, tag), run=run.name) for run in runs for tag in ("", *tags_of(run, split))
    ]
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
        stores=list(facts.values()),
        lms=sorted(lms, key=lambda entry: (level_rank(entry["level"]), entry["name"])),
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
    """The complete stores of a folder, from fine to coarse levels, then by name."""
    found = []
    with suppress(UserError):  # there is none
        for name, folder in store_folders(labels).items() if labels is not None else ():
            with suppress(HkdError):
                found.append((name, LabelReader.open(folder)))
    return dict(sorted(found, key=lambda row: (level_rank(row[1].spec.level), row[1].spec.name)))


def training_facts(run_folder: Path, stores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """A run's steps, audio and wall hours, audio seconds a second, share of time spent waiting for data, levels of hard
    heads, and teachers.

    stores: label store → its facts (`top1_hit_rate`, `perplexity`). Times cover what was logged, work that a kill undid
    included; None where the run has no timing.
    """
    rows = [row for row in json_lines(run_folder / "timing.jsonl") if "wall_s" in row]
    if not rows:
        return None
    wall_s, audio_s, wait_s = (
        sum(float(row.get(name, 0.0)) for row in rows) for name in ("wall_s", "audio_s", "wait_s")
    )
    heads = list(read_json(run_folder / "student.json").get("heads", {}).values())
    data = read_json(run_folder / "identity.json").get("data", {})
    taught = dict.fromkeys([*(str(head["store"]) for head in heads if head.get("store")), *data.get("stores", {})])
    return {
        "steps": int(rows[-1]["step"]),
        "audio_hours": audio_s / 3600,
        "wall_hours": wall_s / 3600,
        "rate": audio_s / wall_s if wall_s else None,
        "waiting": wait_s / wall_s if wall_s else None,
        "hard": [str(head["level"]) for head in heads if head.get("kind") == "hard"],
        "teachers": [
            {"store": name, **{key: stores.get(name, {}).get(key) for key in ("top1_hit_rate", "perplexity")}}
            for name in taught
        ],
    }


def read_lms(folder: Path) -> list[dict[str, Any]]:
    """The perplexities in each unit LM's report.json: neural, n-gram and unigram at the same positions."""
    found = []
    for path in sorted(folder.glob("*/report.json")):
        value = read_json(path, "the report of an LM")
        for judged_on, figures in value.get("figures", {}).items():
            found.append(
                {"name": path.parent.name, "level": value["unit"], **value, "judged_on": judged_on, "figures": figures}
            )
    return found


def _store_facts(store: LabelReader, lms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of `hkd labels info`, and the perplexity on the transcripts of the n-gram that the store's LM was
    compared with."""
    facts = describe(store.path)
    wanted = (facts["teacher"].get("name"), facts["level"], "transcripts")
    own = [m["figures"]["ngram"]["perplexity"] for m in lms if (m["name"], m["level"], m["judged_on"]) == wanted]
    return {**facts, "ngram_perplexity": own[0] if own else None}


def _error_details(report: EvaluationReport) -> dict[str, Any]:
    """Speakers from worst to best, and the commonest confusions."""
    rows = report.hypotheses
    scores = score_words([row.reference for row in rows], [row.hypothesis for row in rows])
    return {
        "name": report.name,
        "speakers": by_speaker(rows, scores),
        "confusions": confusions(scores, most=MAX_CONFUSIONS),
    }


def _train_facts(manifest: Manifest | None) -> dict[str, Any] | None:
    """Utterances, hours and speakers of the train part; None where there is no manifest or no such part."""
    part = [u for u in manifest or () if u.split == "train"]
    if not part:
        return None
    speakers = {u.speaker for u in part if u.speaker is not None}
    return {"utterances": len(part), "hours": sum(u.duration or 0.0 for u in part) / 3600, "speakers": len(speakers)}


def _forest(table: ObjectivesTable, colours: Mapping[str, int]) -> Markup:
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


# Example utterances: sound, alignment, the teachers' top candidates, and the hypothesis of every run.


def examples(
    manifest: Manifest,
    *,
    reports: Sequence[EvaluationReport],
    alignment: Alignment | None,
    stores: Mapping[str, LabelReader],
    number: int = 3,
) -> list[dict[str, Any]]:
    """Some utterances, as the template takes them: those where the runs differ most.

    Utterances that all stores cover come first, short ones before long ones. Where the stores cover none of the chosen,
    one more that they cover follows, so that labels are shown. Raises UserError where sound cannot be read.
    """
    known = {u.id for u in manifest}
    scores = [
        score_words([row.reference for row in x.hypotheses], [row.hypothesis for row in x.hypotheses]) for x in reports
    ]
    spread_N = np.ptp(np.stack([s.errors_N for s in scores]), axis=0)
    ranks = [
        (
            row.seconds > MAX_AUDIO_S,
            -sum(row.id in store for store in stores.values()),
            -int(spread),
            row.seconds,
            row.id,
        )
        for row, spread in zip(reports[0].hypotheses, spread_N, strict=True)
    ]
    chosen = [name for *_, name in sorted(ranks)[:number] if name in known]
    if stores and not any(u in store for u in chosen for store in stores.values()):
        covered = (u.id for u in manifest if u.audio_filepath and all(u.id in store for store in stores.values()))
        chosen += [name for name in covered if alignment is None or name in alignment][:1]
    return [_example(manifest.by_id(name), reports, alignment, stores) for name in chosen]


def _example(
    utterance: Utterance,
    reports: Sequence[EvaluationReport],
    alignment: Alignment | None,
    stores: Mapping[str, LabelReader],
) -> dict[str, Any]:
    wave_S = read_audio(utterance)
    labels = [
        {
            "store": store.spec.name,
            "level": store.spec.level,
            "teacher": "{}, given {}".format(*(store.spec.teacher.get(key, "?") for key in ("name", "given"))),
            "positions": show(store, utterance.id, top=NUM_CANDIDATES, alignment=alignment),
        }
        for store in stores.values()
        if utterance.id in store
    ]
    rows = [(report.name, row) for report in reports for row in report.hypotheses if row.id == utterance.id]
    drawing = None
    if alignment is not None and utterance.id in alignment:
        drawing = timeline(wave_S, _tiers(alignment, utterance.id, labels))
    return {
        "id": utterance.id,
        "speaker": utterance.speaker,
        "split": utterance.split,
        "seconds": len(wave_S) / SAMPLE_RATE_HZ,
        "reference": rows[0][1].reference if rows else utterance.text,
        "audio": flac_address(wave_S) if len(wave_S) <= MAX_AUDIO_S * SAMPLE_RATE_HZ else None,
        "drawing": drawing,
        "labels": labels,
        "hypotheses": [(name, *marked(row.reference, row.hypothesis)) for name, row in rows],
    }


def level_rank(level: str) -> int:
    """Levels from fine to coarse, others last."""
    return UNIT_LEVELS.index(level) if level in UNIT_LEVELS else len(UNIT_LEVELS)


def flac_address(wave_S: NDArray[np.float32]) -> str:
    """The sound as a data: address (FLAC, 16 bit)."""
    import soundfile

    data = io.BytesIO()
    soundfile.write(data, to_int16(wave_S), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(data.getvalue()).decode()


def marked(reference: str, hypothesis: str) -> tuple[Markup, int]:
    """The hypothesis with its errors marked (<del> left out, <ins> added, <mark> instead of), and their number."""
    scores = score_words([reference], [hypothesis])
    said, heard = scores.reference[0], scores.hypothesis[0]
    forms = {
        "equal": "{1}",
        "substitute": '<mark title="instead of: {0}">{1}</mark>',
        "insert": "<ins>{1}</ins>",
        "delete": "<del>{0}</del>",
    }
    parts: list[Markup] = []
    for e in scores.edits[0]:
        wanted, got = " ".join(said[e.ref_start_idx : e.ref_end_idx]), " ".join(heard[e.hyp_start_idx : e.hyp_end_idx])
        parts.append(Markup(forms[e.type]).format(escape(wanted), escape(got)))
    return Markup(" ").join(parts), int(scores.errors_N[0])


def _tiers(alignment: Alignment, utterance_id: str, labels: Sequence[Mapping[str, Any]]) -> dict[str, list[Segment]]:
    """Words, subwords, monophones and senones, each with its first store's probability of the reference."""
    aligned = alignment[utterance_id]
    words = [aligned.words[unit] if unit >= 0 else "" for unit in aligned.word_tier.unit_U.tolist()]
    tiers = {"word": _segments(aligned.word_tier.start_U1[:-1], aligned.word_tier.start_U1[1:], words)}
    for level in reversed(UNIT_LEVELS):
        stores = (row["positions"] for row in labels if row["level"] == level)
        timed = (found for rows in stores if (found := [row for row in rows if row["start_s"] is not None]))
        if rows := next(timed, None):
            tiers[level] = [
                Segment(row["start_s"], row["end_s"], row["unit"] or NOTHING, row["p"], _candidates(row))
                for row in rows
            ]
        elif level in alignment.inventories:
            where, symbols = alignment.positions(utterance_id, level), alignment.inventories[level].symbols
            tiers[level] = _segments(where.start_U, where.stop_U, [symbols[unit] for unit in where.unit_U.tolist()])
    return tiers


def _segments(start_U: NDArray[np.int32], stop_U: NDArray[np.int32], labels: Sequence[str]) -> list[Segment]:
    times = zip((start_U * FRAME_SHIFT_S).tolist(), (stop_U * FRAME_SHIFT_S).tolist(), labels, strict=True)
    return [Segment(*row) for row in times]


def _candidates(row: Mapping[str, Any]) -> str:
    return f"{row['unit'] or NOTHING} · " + ", ".join(f"{c['unit']} {c['p']:.2f}" for c in row["candidates"])
