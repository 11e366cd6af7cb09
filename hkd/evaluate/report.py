"""What people read of runs: one HTML page that needs nothing else, with the objectives' table; a student's model card.

- The page has no scripts and sends no request to anywhere: style, drawings and sound are inside. A part that is missing
  (label stores, alignment, LMs, curves) leaves its section out, never the page.
- The card is Markdown with the front matter that the Hugging Face Hub reads: the student's facts, its error rates, what
  it learnt from, and how to use it. It is a function of the run's folder: its bytes are the same wherever it is made.
"""

import base64
import io
import json
import logging
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from hkd import __version__
from hkd.align.alignment import Alignment
from hkd.audio import read_audio, to_int16
from hkd.decode.ctc import SearchConfig
from hkd.errors import HkdError, Progress, UserError, no_progress
from hkd.evaluate.charts import NUM_COLOURS, Segment, forest, json_lines, line_chart, panels, read_curves, timeline
from hkd.evaluate.score import (
    METRICS,
    NOTHING,
    EvaluationReport,
    Scores,
    by_speaker,
    confusions,
    read_json,
    read_result,
    score_words,
    tags_of,
)
from hkd.evaluate.table import MIN_SPEAKERS, ObjectivesTable, objectives_table
from hkd.files import flatten, write_bytes
from hkd.labels.card import describe, show
from hkd.labels.store import LabelReader, store_folders
from hkd.manifest import Manifest, Utterance
from hkd.manifest import read as read_manifest
from hkd.student.config import SpeechEncoderConfig
from hkd.student.export import StudentMeta, load_student
from hkd.student.model import StudentModel
from hkd.timebase import FRAME_SHIFT_S, SAMPLE_RATE_HZ
from hkd.units.inventory import SENONE, UNIT_LEVELS

logger = logging.getLogger(__name__)
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
    """Write the page; returns the table it holds. A run is called as its folder. baselines: see `objectives_table`.
    manifest, alignment, labels (folder of stores), lm (folder of unit LMs): parts that are None or missing are left
    out. Raises UserError where a run is not evaluated on the split, or the runs make no table."""
    import jinja2

    tagged = [(run, tag) for run in runs for tag in ("", *tags_of(run, split))]
    reports = [replace(read_result(run, split, tag), run=run.name) for run, tag in tagged]
    progress(1, 4)
    table = objectives_table(reports, baselines=baselines)
    order = [name for row in table.rows for name in row.runs]
    reports.sort(key=lambda report: order.index(report.name))
    colours = {name: number for number, name in enumerate(order)}
    utterances = read_manifest(manifest) if manifest is not None else None
    aligned = Alignment(alignment) if alignment is not None else None
    stores = _open_stores(labels)
    progress(2, 4)
    parts: dict[str, Any] = {"reports": reports, "alignment": aligned, "stores": stores, "number": num_examples}
    shown = examples(utterances, **parts) if utterances is not None else []
    progress(3, 4)
    lms = read_lms(lm) if lm is not None else []
    facts = {name: _store_facts(store, lms) for name, store in stores.items()}
    trained = {run.name: found for run in runs if (found := training_facts(run, facts)) is not None}
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
        trained=trained,
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
            try:
                found.append((name, LabelReader.open(folder)))
            except HkdError as error:
                logger.warning("label store %s is left out of the page: %s", name, error)
    return dict(sorted(found, key=lambda row: (level_rank(row[1].spec.level), row[1].spec.name)))


def training_facts(run_folder: Path, stores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """A run's steps, audio and wall hours, audio seconds a second, share of time spent waiting for data, levels of hard
    heads, and teachers; None where it has no timing. Times cover what was logged, work that a kill undid included.
    stores: label store → its facts (`top1_hit_rate`, `perplexity`)."""
    rows = [row for row in json_lines(run_folder / "timing.jsonl") if "wall_s" in row]
    if not rows:
        return None
    names = ("wall_s", "audio_s", "wait_s")
    wall_s, audio_s, wait_s = (sum(float(row.get(name, 0.0)) for row in rows) for name in names)
    heads = list(read_json(run_folder / "student.json").get("heads", {}).values())
    data = read_json(run_folder / "identity.json").get("data", {})
    taught = dict.fromkeys([*(str(head["store"]) for head in heads if head.get("store")), *data.get("stores", {})])
    said = {name: {key: stores.get(name, {}).get(key) for key in ("top1_hit_rate", "perplexity")} for name in taught}
    return {
        "steps": int(rows[-1]["step"]),
        "audio_hours": audio_s / 3600,
        "wall_hours": wall_s / 3600,
        "rate": audio_s / wall_s if wall_s else None,
        "waiting": wait_s / wall_s if wall_s else None,
        "hard": [str(head["level"]) for head in heads if head.get("kind") == "hard"],
        "teachers": [{"store": name, **facts} for name, facts in said.items()],
    }


def read_lms(folder: Path) -> list[dict[str, Any]]:
    """The perplexities in each unit LM's report.json: neural, n-gram and unigram at the same positions."""
    found = []
    for path in sorted(folder.glob("*/report.json")):
        value = read_json(path, "the report of an LM")
        for judged_on, figures in value.get("figures", {}).items():
            named = {"name": path.parent.name, "level": value["unit"]}
            found.append({**named, **value, "judged_on": judged_on, "figures": figures})
    return found


def _store_facts(store: LabelReader, lms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of `hkd labels info`, and the transcripts' perplexity by the n-gram that the LM was compared with."""
    facts = describe(store.path)
    facts["teacher"] = {**dict.fromkeys(("name", "kind", "given"), "?"), **facts["teacher"]}
    wanted = (facts["teacher"].get("name"), facts["level"], "transcripts")
    own = [m["figures"]["ngram"]["perplexity"] for m in lms if (m["name"], m["level"], m["judged_on"]) == wanted]
    return {**facts, "ngram_perplexity": own[0] if own else None}


def _error_details(report: EvaluationReport) -> dict[str, Any]:
    """Speakers from worst to best, and the commonest confusions."""
    scores = _word_scores(report)
    worst = confusions(scores, most=MAX_CONFUSIONS)
    return {"name": report.name, "speakers": by_speaker(report.hypotheses, scores), "confusions": worst}


def _word_scores(report: EvaluationReport) -> Scores:
    return score_words([row.reference for row in report.hypotheses], [row.hypothesis for row in report.hypotheses])


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
    return f"{60 * hours:.1f} minutes" if hours < 2 else f"{hours:.1f} hours"


def examples(
    manifest: Manifest,
    *,
    reports: Sequence[EvaluationReport],
    alignment: Alignment | None,
    stores: Mapping[str, LabelReader],
    number: int = 3,
) -> list[dict[str, Any]]:
    """Some utterances, as the template takes them: those that most stores cover, then where the runs differ most, then
    short ones; long ones last. Where the stores cover none of the chosen, one more that they cover follows, so that
    labels are shown. Raises UserError where sound cannot be read."""
    known = {u.id for u in manifest}
    spread_N = np.ptp(np.stack([_word_scores(report).errors_N for report in reports]), axis=0)
    ranks = []
    for row, spread in zip(reports[0].hypotheses, spread_N, strict=True):
        covered_by = sum(row.id in store for store in stores.values())
        ranks.append((row.seconds > MAX_AUDIO_S, -covered_by, -int(spread), row.seconds, row.id))
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
    aligned = alignment if alignment is not None and utterance.id in alignment else None
    return {
        "id": utterance.id,
        "speaker": utterance.speaker,
        "split": utterance.split,
        "seconds": len(wave_S) / SAMPLE_RATE_HZ,
        "reference": rows[0][1].reference if rows else utterance.text,
        "audio": flac_address(wave_S) if len(wave_S) <= MAX_AUDIO_S * SAMPLE_RATE_HZ else None,
        "drawing": timeline(wave_S, _tiers(aligned, utterance.id, labels)) if aligned is not None else None,
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
            tiers[level] = [_labelled(row) for row in rows]
        elif level in alignment.inventories:
            where, symbols = alignment.positions(utterance_id, level), alignment.inventories[level].symbols
            tiers[level] = _segments(where.start_U, where.stop_U, [symbols[unit] for unit in where.unit_U.tolist()])
    return tiers


def _segments(start_U: NDArray[np.int32], stop_U: NDArray[np.int32], labels: Sequence[str]) -> list[Segment]:
    times = zip((start_U * FRAME_SHIFT_S).tolist(), (stop_U * FRAME_SHIFT_S).tolist(), labels, strict=True)
    return [Segment(*row) for row in times]


def _labelled(row: Mapping[str, Any]) -> Segment:
    unit = row["unit"] or NOTHING
    hover = f"{unit} · " + ", ".join(f"{c['unit']} {c['p']:.2f}" for c in row["candidates"])
    return Segment(row["start_s"], row["end_s"], unit, row["p"], hover)


SPLITS = ("dev", "test")


def model_card(run_folder: Path, *, needs_figures: bool = True) -> str:
    """The card's text. Raises UserError for a run without exported student, or with `needs_figures` not evaluated."""
    student, meta = load_student(run_folder / "model")
    reports = [read_result(run_folder, split) for split in SPLITS if (run_folder / f"eval-{split}.json").exists()]
    if not reports and needs_figures:
        remedy = f"Run `hkd evaluate {run_folder.name}` first."
        raise UserError(f"a model card needs figures, but {run_folder} is not evaluated. {remedy}")
    identity, coverage = (read_json(run_folder / f"{name}.json") for name in ("identity", "coverage"))
    is_hybrid = meta.config.main == SENONE
    given, lm, digest, searched = "words.arpa" if is_hybrid else None, None, None, list[str]()
    if reports:
        lm, digest = reports[-1].decoder.get("lm"), reports[-1].inputs["lm"]
        searched = _search_settings(reports[-1], is_hybrid=is_hybrid)
    if lm:
        given = digest if Path(str(digest)).name == lm else lm  # a hub's name is its own
    lm_option = [f"--lm {shlex.quote(given)}"] if given else []
    units = f"{len(meta.inventory)} {meta.inventory.level} units (inventory {meta.inventory.digest[:12]})"
    about = meta.extra.get("objective_help", "a run of its own kind")
    least = min((int(report.data["words"]) for report in reports), default=0)
    later = f"Not evaluated yet: `hkd evaluate {run_folder.name}`, then export again."
    given_settings = (f"--set search.{setting}" for setting in searched)
    facts = {
        "objective": f"{meta.extra.get('objective', run_folder.name)}: {about}",
        "encoder": _encoder(meta),
        "main output": f"{units}, searched in a graph with a lexicon" if is_hybrid else f"CTC over {units}",
        **({"language model beside it": f"{lm} (`{digest}`)"} if lm else {}),
        "parameters": _parameters(student),
        "features": f"{_features(meta.features)}{meta.features['sample_rate_hz']} Hz",
        "steps": str(identity.get("loop", {}).get("max_steps") or "not recorded"),
        "seed": str(meta.extra.get("seed")),
    }
    return _TEXT.format(
        name=run_folder.name,
        facts=_table(("", ""), facts.items()),
        learnt=_learnt(identity.get("data", {}), coverage),
        figures=_figures(reports) if reports else later,
        needs=_HYBRID_NEEDS if is_hybrid else _CTC_NEEDS + (_LM_BESIDE if lm else ""),
        shell=" ".join(["hkd transcribe FILE.wav --model FOLDER", *lm_option, *given_settings]),
        python=_python(given, searched),
        text="Only words of the n-gram come out" if is_hybrid else "Text comes out in lower case",
        limits=f", and the smallest of them has {least:,} words" if reports else "",
    )


def write_card(run_folder: Path, out: Path, *, needs_figures: bool = True) -> None:
    write_bytes(out, model_card(run_folder, needs_figures=needs_figures).encode())


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _encoder(meta: StudentMeta) -> str:
    encoder = meta.config.encoder
    layers = f"{encoder.num_layers} layers, width {encoder.d_model}"
    if isinstance(encoder, SpeechEncoderConfig):
        return f"{encoder.name} ({encoder.architecture}), {layers}"
    below = f", on {encoder.upstream} (frozen)" if encoder.upstream else ""
    return f"Conformer, {layers}, {encoder.num_heads} attention heads{below}"


def _parameters(student: StudentModel) -> str:
    trained, frozen = student.num_parameters(), student.config.encoder.front_end.num_parameters
    below = f", {frozen:,} of them frozen" if frozen else ""
    return f"{trained + frozen:,}{below}; the layers that only taught it are left out"


def _features(features: Mapping[str, Any]) -> str:
    kinds = {"wave": "", "upstream": f"{2 * features['num_bins']} values every 20 ms, "}
    return kinds.get(features["kind"], f"{features['num_bins']} log-mel bins, ")


def _search_settings(report: EvaluationReport, *, is_hybrid: bool) -> list[str]:
    """The settings of the search that are not the default and count for this student: `hybrid.acoustic_scale=0.15`."""
    if not is_hybrid and report.decoder["name"] == "greedy":
        return []
    usual = flatten(asdict(SearchConfig()))
    return [
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in flatten(report.inputs["settings"]["search"]).items()
        if usual.get(name, value) != value and name.startswith("hybrid.") == is_hybrid
    ]


def _python(lm: str | None, settings: Sequence[str]) -> str:
    imports, lines = ["from hkd.decode.recogniser import Recogniser"], []
    arguments = '"FOLDER"' + (f", lm={json.dumps(lm)}" if lm else "")
    if settings:
        imports += ["from hkd.config import build, parse_overrides", "from hkd.decode.ctc import SearchConfig"]
        lines = [f'search = build(SearchConfig, parse_overrides({json.dumps(settings)}), where="search")']
        arguments += ", search=search"
    lines.append(f'print(Recogniser({arguments}).transcribe("FILE.wav")["text"])')
    return "\n".join([*sorted(imports), "", *lines])


def _decoding(reports: Sequence[EvaluationReport]) -> str:
    """The decoder's settings; split by split where they differ."""
    said: dict[str, str] = {}
    for report in reports:
        facts = ", ".join(f"{name} {value}" for name, value in report.decoder.items() if name != "name")
        said[report.split] = report.decoder["name"] + (f" ({facts})" if facts else "")
    one, *others = dict.fromkeys(said.values())
    return "; ".join(f"{split}: {text}" for split, text in said.items()) if others else one


def _learnt(data: Mapping[str, Any], coverage: Mapping[str, Any]) -> str:
    """Digests of what it was trained on, and the label stores that taught it."""
    rows = [("utterances", f"{coverage['utterances']:,}")] if isinstance(coverage.get("utterances"), int) else []
    rows += [(name, f"`{value}`") for name, value in data.items() if isinstance(value, str)]
    rows += [(f"label store {name}", f"`{value}`") for name, value in data.get("stores", {}).items()]
    return _table(("", "digest (SHA-256)"), rows) if rows else "Not recorded."


def _figures(reports: Sequence[EvaluationReport]) -> str:
    rows, levels, sizes = [], set(), ("utterances", "words", "speakers")
    for report in reports:
        rates = []
        for metric in METRICS:
            rate = report.errors[metric]
            few = rate.by_speaker is None or rate.by_speaker.blocks < MIN_SPEAKERS
            interval = rate.by_utterance if few else rate.by_speaker
            said = "–" if math.isnan(rate.rate) else f"{100 * rate.rate:.2f}"
            if interval:
                said += f" ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
                levels.add(f"{100 * interval.level:g} %")
            rates.append(said)
        rows.append((report.split, *(f"{report.data[name]:.0f}" for name in sizes), *rates))
    of_level = f" ({', '.join(sorted(levels))})" if levels else ""
    table = _table(("split", *sizes, *(f"{metric.upper()} %{of_level}" for metric in METRICS)), rows)
    rule = reports[0].inputs["normalisation"]
    how = _HOW.format(decoder=_decoding(reports), min_speakers=MIN_SPEAKERS, normalisation=rule)
    return f"{table}\n\n{how}"


_CTC_NEEDS = "No language model is needed to run it"
_LM_BESIDE = "; the figures below are with one beside the search"
_HYBRID_NEEDS = "It runs beside a word n-gram (ARPA), which its senones need to become words"
_HOW = """Decoding: {decoder}. Words normalised by {normalisation}; phones by the lexicon, English ones folded to 39; intervals by bootstrap \
over speakers, or over utterances where there are fewer than {min_speakers} speakers."""  # noqa: E501

_TEXT = """---
library_name: hkd
pipeline_tag: automatic-speech-recognition
tags:
- automatic-speech-recognition
- knowledge-distillation
- hkd
---
# {name}

A small speech recogniser, trained with hkd (hierarchical knowledge distillation of language models into acoustic models). {needs}.

{facts}

## Use

```
{shell}
```

```python
{python}
```

Any sound file that libsndfile reads; stereo is mixed down, other sample rates are resampled to 16 kHz.

## How well it recognises

{figures}

## Limits

The figures hold for speech like that of the splits above{limits}: other speakers, rooms and words will be recognised less well. {text},
without punctuation, in the language of the training transcripts, and for noise or another language, too.

## Learnt from

{learnt}
"""  # noqa: E501
