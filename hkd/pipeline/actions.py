"""What the stages of a pipeline do: the library's functions, with their inputs and outputs in the working folder.

Each `action(folder, settings, progress) -> summary` runs in a worker process, may be killed, and goes on when called again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from hkd.config import Project, build
from hkd.evaluate.decoding import EvaluateConfig
from hkd.labelling.dump import DumpConfig
from hkd.labelling.lm import LmConfig
from hkd.labelling.ngram import WordNgramConfig
from hkd.labelling.tie import TieConfig
from hkd.pipeline.aligning import adopt_units, aligner_of
from hkd.pipeline.settings import (
    WHO_LABELS,
    PrepareSettings,
    ReportSettings,
    Settings,
    average_settings,
    dump_settings,
    evaluate_settings,
)
from hkd.progress import Progress
from hkd.train.config import TrainConfig
from hkd.units.sequences import UnitsConfig

logger = logging.getLogger(__name__)

Action = Callable[[Path, Settings, Progress], str]
Cached = TypeVar("Cached", TrainConfig, EvaluateConfig)


def _named(settings: Settings) -> tuple[str, dict[str, Any]]:
    rest = dict(settings)
    return str(rest.pop("name")), rest


def _cached(config: Cached, here: Project) -> Cached:
    """The settings with their features' cache, and what is read of text, in the working folder."""
    if isinstance(config, TrainConfig):
        text = config.text
        path, labels, bank = (str(here.folder / name) if name else "" for name in (text.path, text.labels, text.bank))
        config = replace(config, text=replace(text, path=path, labels=labels, bank=bank))
    return replace(config, features_cache=str(here.folder / config.features_cache)) if config.features_cache else config


def prepare(folder: Path, settings: Settings, progress: Progress) -> str:
    """Corpus → manifest.jsonl, and text/NAME.txt."""
    from hkd import corpora

    config, report = build(PrepareSettings, settings, where="[prepare]"), corpora.Report()
    whole = corpora.prepare(
        config.corpus, folder, kind=config.kind or None, root=Path(config.root) if config.root else None, download=config.download,
        parts=config.parts, report=report, overwrite=True, progress=progress,
    )  # fmt: skip
    for line in report.note_lines():
        logger.warning("%s", line)
    summary = f"{len(whole)} utterances, {sum(u.duration or 0.0 for u in whole) / 60:.1f} minutes"
    if config.text:
        summary += f"; {_prepare_text(config.text, folder / text_output(config.text), progress)} sentences of text"
    return summary


def text_output(text: str) -> str:
    """Where the text of [prepare] lies in the working folder."""
    return f"text/{Path(text).name.removesuffix('.gz').removesuffix('.txt')}.txt"


def _prepare_text(text: str, out: Path, progress: Progress) -> int:
    """Write the sentences; their number. Raises UserError where the file is not there."""
    from hkd import corpora
    from hkd.files import write_bytes
    from hkd.lines import numbered_lines

    if not text.endswith((".txt", ".gz")):
        return corpora.prepare_text(text, out, progress=progress)
    lines = [line for _, line in numbered_lines(Path(text), "text")]
    write_bytes(out, "".join(f"{line}\n" for line in lines).encode())
    return len(lines)


def units(folder: Path, settings: Settings, progress: Progress) -> str:
    """Train split's transcripts, and the aligner's acoustic model where it is not the English one → units/."""
    from hkd.manifest import read
    from hkd.units.sequences import train_units

    here = Project.load(folder)
    table = dict(settings)
    is_tied, _ = table.pop("is_tied", False), table.pop("normalisation", None)  # the project's rule of words is in use already
    config = build(UnitsConfig, table, where="[units]")
    aligner = aligner_of(here.table("align"), "[align]")
    if aligner.brings_units and not is_tied:  # tying has made them the project's already
        adopt_units(here.alignment, here.units, aligner, folder=here.folder, overwrite=True)
    whole = read(here.manifest)
    texts, others = (u.text for u in whole.split("train")), (u.text for u in whole if u.split != "train")
    found = train_units(texts, here.units, vocab_size=config.vocab_size, kind=config.kind, other_splits=others, overwrite=True)
    return ", ".join(f"{len(inventory):,} {level}s" for level, inventory in found.items())


def align(folder: Path, settings: Settings, progress: Progress) -> str:
    """Manifest → alignment.arrow, its senones tied anew where [tie] is there."""
    from hkd.labelling.tie import tie
    from hkd.manifest import read
    from hkd.pipeline.aligning import align as run_aligner

    here = Project.load(folder)
    table = dict(settings)
    tying, _ = table.pop("tie", None), table.pop("normalisation", None)
    aligner, manifest = aligner_of(table, "[align]"), read(here.manifest)
    report = run_aligner(manifest, here.alignment, aligner, folder=here.folder, overwrite=True, progress=progress)
    summary = (
        f"{report.kept} of {report.kept + len(report.failed)} utterances aligned, {len(report.predicted_words)} words by G2P"
    )
    if tying is None:
        return summary
    config = build(TieConfig, tying, where="[tie]")
    tied = tie(manifest, here.alignment, here.units, config=config, overwrite=True, progress=progress)
    return f"{summary}; {tied.senones} senones tied"


def lm(folder: Path, settings: Settings, progress: Progress) -> str:
    """Text → lm/NAME."""
    from hkd.align.alignment import Alignment
    from hkd.labelling.lm import train_lm
    from hkd.manifest import read
    from hkd.units.sequences import Units

    here = Project.load(folder)
    name, table = _named(settings)
    config = build(LmConfig, table, where=f"[lm.{name}]")
    report = train_lm(
        config,
        texts=here.texts,
        units=Units(here.units),
        folder=here.lm / name,
        manifest=read(here.manifest),
        alignment=Alignment(here.alignment),
        progress=progress,
    )
    judged = report.figures[report.judged_on]
    pair = f"{judged['neural']['perplexity']:.1f} against the n-gram's {judged['ngram']['perplexity']:.1f}"
    return f"perplexity {pair}: the {'n-gram' if report.teacher == 'ngram' else 'neural LM'} is the teacher"


def words(folder: Path, settings: Settings, progress: Progress) -> str:
    """Text → a word n-gram at `path`."""
    from hkd.labelling.ngram import train_word_ngram
    from hkd.manifest import read

    here = Project.load(folder)
    rest = dict(settings)
    path, _ = here.folder / str(rest.pop("path")), rest.pop("normalisation", None)
    config = build(WordNgramConfig, rest, where="[words]")
    spoken = read(here.manifest).split("train") if config.transcripts else ()
    count = train_word_ngram(here.texts, path, config=config, more=(u.text for u in spoken), progress=progress)
    return f"{config.order}-gram of {count:,} sentences"


def dump(folder: Path, settings: Settings, progress: Progress) -> str:
    """Teacher + transcripts → shards/NAME."""
    from hkd.labelling.dump import DumpJob, execute
    from hkd.units.level import SPELLED
    from hkd.units.sequences import inventory_path
    from hkd.units.subword import model_file

    here = Project.load(folder)
    name, table = _named(settings)
    who = {key: value for key, value in here.table(f"dump.{name}").items() if key in WHO_LABELS}
    config = dump_settings({**table, **who}, f"[dump.{name}]")
    own = here.folder / config.lm
    job = DumpJob(
        manifest=here.manifest,
        out=here.labels / name,
        lm=str(own) if own.exists() else config.lm,
        unit=config.unit,
        device=config.device,
        precision=config.precision,
        teacher=config.teacher.within(here.folder),
        store=build(DumpConfig, {**asdict(config.store), "name": name}, where=f"[dump.{name}]"),
        inventory=inventory_path(here.units, config.unit),
        alignment=here.alignment if config.unit not in SPELLED else None,
        subwords=here.units / model_file(config.unit) if config.unit in SPELLED else None,
        command=f"hkd run (stage dump-{name})",
    )
    report = execute(job, executor=config.executor, ray_address=config.ray_address, workers=config.workers, progress=progress)
    return f"{report.positions:,} positions by {report.teacher}, {report.positions_per_s:,.0f} positions/s"


def average(folder: Path, settings: Settings, progress: Progress) -> str:
    """shards/OF → shards/NAME: the control of a teacher without context."""
    from hkd.labels.ops import average as average_store
    from hkd.manifest import read

    here = Project.load(folder)
    name, table = _named(settings)
    config = average_settings(table, f"[averages.{name}]")
    over = [u.id for u in read(here.manifest).split(config.split)]
    command = f"hkd run (stage average-{name})"
    spec = average_store(
        here.labels / config.of, here.labels / name, over=over, k=config.k or None, command=command, progress=progress
    )
    return f"{spec.num_utterances:,} utterances, each unit as {spec.teacher['name']}"


def train(folder: Path, settings: Settings, progress: Progress) -> str:
    """Features + label stores → runs/NAME."""
    from hkd.train.run import train as train_student

    here = Project.load(folder)
    name, table = _named(settings)
    config = _cached(build(TrainConfig, table, where=f"[runs.{name}]"), here)
    report = train_student(
        config,
        here.runs / name,
        manifest=here.manifest,
        alignment=here.alignment,
        units=here.units,
        labels=here.labels,
        progress=progress,
    )
    return f"{report.steps} steps, {report.parameters:,} parameters exported"


def evaluate(folder: Path, settings: Settings, progress: Progress) -> str:
    """runs/NAME + audio → its figures on a split."""
    from hkd.evaluate.report import percent
    from hkd.evaluate.run import evaluate as evaluate_run

    here = Project.load(folder)
    name, table = _named(settings)
    split, tag = table.pop("split"), table.pop("tag", "")
    config, lm = evaluate_settings(table, "[evaluate]")
    config = _cached(config, here)
    if lm is not None and (here.folder / lm).exists():
        lm = str(here.folder / lm)
    report = evaluate_run(
        here.runs / name,
        manifest=here.manifest,
        split=split,
        alignment=here.alignment,
        labels=here.labels,
        units=here.units,
        lm=lm,
        tag=tag,
        config=config,
        progress=progress,
    )
    return f"WER {percent(report.errors['wer'].rate)} % on {split}"


def report(folder: Path, settings: Settings, progress: Progress) -> str:
    """All runs → a page, and its tables as Markdown and as text."""
    from hkd.evaluate.report import write_report
    from hkd.files import write_bytes

    here = Project.load(folder)
    table = dict(settings)
    runs: Sequence[str] = table.pop("runs")
    title, page = str(table.pop("title")), folder / str(table.pop("page"))
    config = build(ReportSettings, table, where="[report]")
    result = write_report(
        [here.runs / name for name in runs],
        page,
        split=config.split,
        baselines=config.baselines,
        num_examples=config.num_examples,
        manifest=here.manifest,
        alignment=here.alignment,
        labels=here.labels,
        lm=here.lm,
        title=title,
        progress=progress,
    )
    write_bytes(page.with_suffix(".md"), (result.markdown() + "\n").encode())
    write_bytes(page.with_suffix(".txt"), (result.text() + "\n").encode())
    return f"{len(runs)} runs in {page.name}"
