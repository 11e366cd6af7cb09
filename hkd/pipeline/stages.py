"""What the stages do: one function a stage, which its command and `hkd run` call.

Each takes the project (`here`) and its table of settings, may be killed, and goes on when called again. Relative paths
of settings begin at the project's folder. The `run_...` below them are what `hkd run` does in a worker process:
`(folder, settings, progress) -> summary`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypedDict, Unpack

from hkd import corpora
from hkd.align.alignment import Alignment, pronunciations
from hkd.align.ctc import CtcSource, TransformersCtc
from hkd.align.files import CtmSource, MfaSource, TimitSource, folded_dictionary, pronounce_by
from hkd.align.fit import AlignReport, Source, import_alignment
from hkd.align.kaldi import KaldiSource, read_model
from hkd.align.sphinx import align_manifest, model_parts
from hkd.config import ProjectSettings, build
from hkd.decode.recogniser import StudentCtc, is_student
from hkd.errors import Progress, UserError, no_progress
from hkd.evaluate.decoding import EvaluateConfig
from hkd.evaluate.score import EvaluationReport
from hkd.evaluate.table import ObjectivesTable
from hkd.files import write_bytes
from hkd.labelling.dump import DumpJob, DumpReport, execute
from hkd.labelling.lm import LmReport, train_lm
from hkd.labelling.lm_data import SentencesConfig, prepare_sentences, read_lines
from hkd.labelling.ngram import WordNgramConfig, train_word_ngram
from hkd.labelling.tie import TieConfig, TieReport
from hkd.labelling.tie import tie as tie_states
from hkd.labels.ops import average
from hkd.manifest import Manifest, read
from hkd.pipeline.settings import (
    WHO_LABELS,
    Aligner,
    AverageSettings,
    BankSettings,
    DumpSettings,
    EvaluateSettings,
    LmSettings,
    PrepareSettings,
    ReportSettings,
    Settings,
    ToolConfig,
    aligner_of,
)
from hkd.train.bank import BankConfig, BankReport, make_bank
from hkd.train.config import TrainConfig
from hkd.train.run import TrainReport
from hkd.train.run import train as train_student
from hkd.units.inventory import MONOPHONE, SPELLED, UnitInventory
from hkd.units.lexicon import Lexicon
from hkd.units.sequences import Units, UnitsConfig, inventory_path, model_file, train_units
from hkd.units.tying import PhoneTying, Tying, adopt

logger = logging.getLogger(__name__)


class StageOptions(TypedDict, total=False):
    """What most stages take besides: whether they may replace what lies there, and what is called as they go on."""

    overwrite: bool
    progress: Progress


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _at(here: ProjectSettings, name: str) -> str:
    """The path that a setting says, which begins at the project's folder; a URL, and nothing, as they are."""
    return name if not name or "://" in name or here.folder == Path() else str(here.folder / name)


def _within(here: ProjectSettings, name: str) -> str:
    """What a setting names: a file or folder of the project where it is there, else the name itself (of the hub)."""
    return _at(here, name) if Path(_at(here, name)).exists() else name


def prepare(
    folder: Path, config: PrepareSettings, *, report: corpora.Report, progress: Progress, overwrite: bool = False
) -> Manifest:
    """A corpus → manifest.jsonl. report: counts what is left out."""
    options = corpora.Options(
        root=Path(config.root) if config.root else None, base_url=config.base_url or None, download=config.download,
        parts=config.parts, columns=config.columns, report=report, progress=progress,
    )  # fmt: skip
    kind, speaker = config.kind or None, config.speaker or None
    return corpora.prepare(config.corpus, folder, options, kind=kind, speaker=speaker, overwrite=overwrite)


def units(
    here: ProjectSettings, settings: Settings, *, split: str = "train", overwrite: bool = False
) -> dict[str, UnitInventory]:
    """A split's transcripts → units/, beside the senones and monophones of the acoustic model that is there."""
    config = build(UnitsConfig, settings, where="[units]")
    whole = read(here.require("manifest", "hkd prepare"))
    texts, others = (u.text for u in whole.split(split)), (u.text for u in whole if u.split != split)
    size, kind = config.vocab_size, config.kind
    return train_units(texts, here.units, vocab_size=size, kind=kind, other_splits=others, overwrite=overwrite)


def align(
    here: ProjectSettings, aligner: Aligner, *, manifest: Path | None = None, out: Path | None = None,
    **how: Unpack[StageOptions],
) -> AlignReport:  # fmt: skip
    """Sound and transcripts, or what another tool wrote, → the alignment. Raises as the tool's own function."""
    whole = read(manifest or here.require("manifest", "hkd prepare"))
    if isinstance(aligner.config, ToolConfig):
        source = source_of(aligner.tool, aligner.config, here.folder)
        return import_alignment(whole, out or here.alignment, source, config=aligner.config.imports, **how)
    model = aligner.config.model
    config = replace(aligner.config, model=str(here.folder / model) if model else None)
    return align_manifest(whole, out or here.alignment, config=config, **how)


def source_of(tool: str, config: ToolConfig, folder: Path) -> Source:
    """The reader of a tool's files. Raises UserError where they are not there or not that tool's."""

    def place(name: str) -> Path | None:
        return folder / name if name else None

    lexicon, path = place(config.lexicon), folder / config.path
    dictionary = Lexicon(lexicon, stress=config.stress) if lexicon is not None else None
    if dictionary is not None and not dictionary.phones:  # which reads it: a broken dictionary is said before all else
        raise UserError(f"{lexicon} must be a dictionary of words and their phones, but is empty.")
    if tool == "kaldi":
        return KaldiSource(
            path, model=place(config.model), lang=place(config.lang), word_ctm=place(config.words), lexicon=dictionary,
            subsampling=config.subsampling or None, config=config.imports,
        )  # fmt: skip
    if tool == "mfa":
        return MfaSource(path, dictionary=("sil", "spn", *dictionary.phones) if dictionary is not None else None)
    if tool == "timit":
        return TimitSource(path)
    pronounce = pronounce_by(dictionary or Lexicon())
    if tool == "ctm":
        phones = place(config.phones)
        return CtmSource(path, phones=phones, pronounce=pronounce if phones is None else None)
    model = str(path) if path.exists() else config.path  # else a name on the hub
    ctc = StudentCtc(path, device=config.device) if is_student(path) else TransformersCtc(model, device=config.device)
    return CtcSource(ctc, pronounce=pronounce, min_score=config.min_score)


def adopt_units(here: ProjectSettings, aligner: Aligner, *, overwrite: bool = False) -> None:
    """Make the alignment's acoustic model and pronunciations those of units/; the English model's are known anyway.

    Raises UserError where the folder has inventories of another acoustic model, unless `overwrite`.
    """
    config, folder = aligner.config, here.folder
    tying: Tying
    if not isinstance(config, ToolConfig):
        if config.model is not None:
            dictionary, tying = model_parts(str(folder / config.model))
            adopt(here.units, tying, dictionary.entries(within=tying.monophone_inventory.symbols), overwrite=overwrite)
        return
    alignment = Alignment(here.alignment)
    if MONOPHONE not in alignment.inventories:
        return
    phones = alignment.inventories[MONOPHONE]
    said = pronunciations(alignment)
    if config.lexicon:
        said |= Lexicon(folder / config.lexicon, stress=config.stress).entries(within=phones.symbols)
    if aligner.tool == "timit":
        said = {**folded_dictionary(Lexicon()), **said}
    if aligner.tool == "kaldi":
        lang = folder / config.lang if config.lang else None
        _, tying = read_model(folder / (config.model or config.path), lang=lang, config=config.imports)
    else:
        tying = PhoneTying(phones.symbols, [phones.symbols[number] for number in alignment.silences[MONOPHONE]])
    adopt(here.units, tying, said, overwrite=overwrite)


def tie(here: ProjectSettings, settings: Settings, **how: Unpack[StageOptions]) -> TieReport:
    """An alignment's phones → senones of our own, in the alignment and in units/."""
    config, alignment = build(TieConfig, settings, where="[tie]"), here.require("alignment", "hkd align")
    whole = read(here.require("manifest", "hkd prepare"))
    return tie_states(whole, alignment, here.units, config=config, **how)


def sentences(
    here: ProjectSettings, out: Path, settings: Settings, *, texts: Sequence[Path] = (),
    report: corpora.Report | None = None, **how: Unpack[StageOptions],
) -> Manifest:  # fmt: skip
    """Text → a manifest of sentences without sound. texts: default text/*.txt. report: counts what is left out."""
    return prepare_sentences(
        texts or here.texts, out, units=Units(here.units),
        transcripts=read(here.manifest) if here.manifest.exists() else None,
        config=build(SentencesConfig, settings, where="[sentences]"), report=report, **how,
    )  # fmt: skip


def lm(
    here: ProjectSettings, name: str, settings: Settings, *, texts: Sequence[Path] = (), manifest: Path | None = None,
    device: str = "auto", **how: Unpack[StageOptions],
) -> LmReport:  # fmt: skip
    """Text → lm/NAME. manifest: another than the project's, of text, whose sentences may lie in text/ too."""
    table = build(LmSettings, settings, where=f"[lm.{name}]")
    manifest = manifest or (here.folder / sentences_output(table.sentences) if table.sentences else None)
    path = _if_there(here.manifest) if manifest is None else manifest
    return train_lm(
        table.config, texts=texts or (here.texts if manifest is None else ()), folder=here.lm / name,
        units=Units(here.require("units", "hkd units train")), manifest=read(path) if path else None,
        alignment=Alignment(here.alignment) if manifest is None and here.alignment.exists() else None,
        device=device, **how,
    )  # fmt: skip


def words(
    here: ProjectSettings, out: Path, settings: Settings, *, progress: Progress, texts: Sequence[Path] = ()
) -> int:
    """Text → a word n-gram; the number of its sentences."""
    config = build(WordNgramConfig, settings, where="[words]")
    spoken = read(here.require("manifest", "hkd prepare")).split("train") if config.transcripts else ()
    return train_word_ngram(texts or here.texts, out, config=config, more=(u.text for u in spoken), progress=progress)


def dump(
    here: ProjectSettings, settings: Settings, *, name: str = "", out: Path | str | None = None,
    manifest: Path | None = None, alignment: Path | None = None, is_text: bool = False, rank: int = 0,
    world_size: int = 1, command: str, **how: Unpack[StageOptions],
) -> DumpReport:  # fmt: skip
    """Teacher + transcripts → shards/NAME. is_text: text without sound → text-shards/NAME. command: for the card."""
    config = build(DumpSettings, settings, where=f"[dump.{name or settings.get('unit')}]")
    unit = config.unit
    name = name or config.store.name or unit
    if manifest is None and is_text:
        of = here.folder / sentences_output(config.sentences) if config.sentences else None
        manifest = of or here.require("sentences", "hkd prepare --text FILE")
    is_aligned = not (is_text or unit in SPELLED)
    job = DumpJob(
        manifest=manifest or here.require("manifest", "hkd prepare CORPUS"),
        out=out or here.path("sentence_labels" if is_text else "labels") / name,
        lm=_within(here, config.lm),
        unit=unit,
        device=config.device,
        precision=config.precision,
        teacher=config.teacher.within(here.folder),
        store=replace(config.store, name=name),
        inventory=_if_there(inventory_path(here.units, unit)),
        alignment=alignment or here.require("alignment", "hkd align") if is_aligned else None,
        subwords=_if_there(here.units / model_file(unit)) if unit in SPELLED else None,
        units=here.require("units", "hkd units train") if is_text else None,
        command=command,
    )
    who: dict[str, Any] = {name: getattr(config, name) for name in WHO_LABELS}
    return execute(job, **who, rank=rank, world_size=world_size, **how)


def train_config(here: ProjectSettings, settings: Settings, where: str) -> TrainConfig:
    """Settings of [train]."""
    config = build(TrainConfig, settings, where=where)
    path, labels, bank = (_at(here, name) for name in (config.text.path, config.text.labels, config.text.bank))
    text = replace(config.text, path=path, labels=labels, bank=bank)
    return replace(config, text=text, features_cache=_at(here, config.features_cache))


def train_inputs(here: ProjectSettings, labels: Path | str | None = None) -> dict[str, Any]:
    """What training reads, by the names of the arguments of `hkd.train.run.train`."""
    return {
        "manifest": here.require("manifest", "hkd prepare"),
        "units": here.require("units", "hkd units train"),
        "alignment": _if_there(here.alignment),
        "labels": labels or here.labels,
    }


def bank(
    here: ProjectSettings, out: Path, config: BankConfig, settings: Settings, *, labels: Path | str | None = None,
    device: str = "auto", progress: Progress = no_progress,
) -> BankReport:  # fmt: skip
    """Speech → a posterior bank, for training on text."""
    config_of_train, inputs = train_config(here, settings, "[train]"), train_inputs(here, labels)
    return make_bank(config_of_train, out, bank=config, device=device, progress=progress, **inputs)


def train(
    here: ProjectSettings, name: str, settings: Settings, *, labels: Path | str | None = None, device: str = "auto",
    tensorboard: bool = False, progress: Progress = no_progress,
) -> TrainReport:  # fmt: skip
    """Features + label stores → runs/NAME."""
    config, inputs = train_config(here, settings, f"[runs.{name}]"), train_inputs(here, labels)
    return train_student(config, here.runs / name, device=device, tensorboard=tensorboard, progress=progress, **inputs)


def evaluate_config(here: ProjectSettings, settings: Settings) -> tuple[EvaluateConfig, str | None]:
    """How to decode and score, and the LM beside the search."""
    table = build(EvaluateSettings, settings, where="[evaluate]")
    config = replace(table.config, features_cache=_at(here, table.config.features_cache))
    return config, None if table.lm is None else _within(here, table.lm)


def evaluate(
    here: ProjectSettings, run: Path, settings: Settings, *, split: str, tag: str = "", splice: str = "",
    progress: Progress = no_progress,
) -> EvaluationReport:  # fmt: skip
    """A run + audio → its figures on a split. splice: of the words cut out and joined again, spliced or shuffled."""
    from hkd.evaluate.run import evaluate as evaluate_run

    config, lm = evaluate_config(here, settings)
    return evaluate_run(
        run, manifest=here.require("manifest", "hkd prepare"), split=split, lm=lm, tag=tag, config=config,
        splice=splice, progress=progress,
        alignment=_if_there(here.alignment), labels=_if_there(here.labels), units=_if_there(here.units),
    )  # fmt: skip


def report(
    here: ProjectSettings, runs: Sequence[Path], page: Path, config: ReportSettings, *, title: str = "",
    progress: Progress = no_progress,
) -> ObjectivesTable:  # fmt: skip
    """Runs → a page."""
    from hkd.evaluate.report import write_report

    return write_report(
        runs, page, split=config.split, baselines=config.baselines, num_examples=config.num_examples, title=title,
        manifest=_if_there(here.manifest), alignment=_if_there(here.alignment), labels=_if_there(here.labels),
        lm=_if_there(here.lm), progress=progress,
    )  # fmt: skip


# What `hkd run` does --------------------------------------------------------------------------------------------------


def _stage(work: Callable[..., str]) -> Callable[[Path, Settings, Progress], str]:
    """A function of the project, the progress and its settings by name, as the runner calls a stage."""

    @wraps(work)
    def action(folder: Path, settings: Settings, progress: Progress) -> str:
        return work(ProjectSettings.load(folder), progress, **settings)

    return action


@_stage
def run_prepare(here: ProjectSettings, progress: Progress, /, **table: Any) -> str:
    """Corpus → manifest.jsonl, and text/NAME.txt."""
    config, told = build(PrepareSettings, table, where="[prepare]"), corpora.Report()
    whole = prepare(here.folder, config, report=told, overwrite=True, progress=progress)
    for line in told.note_lines():
        logger.warning("%s", line)
    summary = f"{len(whole)} utterances, {sum(u.duration or 0.0 for u in whole) / 60:.1f} minutes"
    if config.text:
        summary += f"; {_prepare_text(config.text, here.folder / text_output(config.text), progress)} sentences of text"
    return summary


def text_output(text: str) -> str:
    """Where the text of [prepare] lies in the working folder."""
    return f"text/{Path(text).name.removesuffix('.gz').removesuffix('.txt')}.txt"


def _prepare_text(text: str, out: Path, progress: Progress) -> int:
    """Write the sentences; their number. Raises UserError where the file is not there."""
    if not text.endswith((".txt", ".gz")):
        return corpora.prepare_text(text, out, progress=progress)
    lines = list(read_lines([Path(text)]))
    write_bytes(out, "".join(f"{line}\n" for line in lines).encode())
    return len(lines)


@_stage
def run_units(
    here: ProjectSettings, progress: Progress, /, *, is_tied: bool = False, normalisation: Any = None, **table: Any
) -> str:
    """[units], with the aligner's acoustic model where it is not the English one, unless tying has put it there."""
    aligner = aligner_of(here.table("align"), "[align]")
    if aligner.brings_units and not is_tied:
        adopt_units(here, aligner, overwrite=True)
    found = units(here, table, overwrite=True)
    return ", ".join(f"{len(inventory):,} {level}s" for level, inventory in found.items())


@_stage
def run_align(here: ProjectSettings, progress: Progress, /, *, normalisation: Any = None, **table: Any) -> str:
    """[align], and [tie] where it is there."""
    tying = table.pop("tie", None)
    done = align(here, aligner_of(table, "[align]"), overwrite=True, progress=progress)
    total, predicted = done.kept + len(done.failed), len(done.predicted_words)
    summary = f"{done.kept} of {total} utterances aligned, {predicted} words by G2P"
    if tying is not None:
        summary += f"; {tie(here, tying, overwrite=True, progress=progress).senones} senones tied"
    return summary


@_stage
def run_lm(here: ProjectSettings, progress: Progress, /, *, name: str, **table: Any) -> str:
    """[lm.NAME]."""
    done = lm(here, name, table, progress=progress)
    judged = done.figures[done.judged_on]
    names = {"ngram": "n-gram", **({"neural": "neural LM"} if done.is_neural else {})}
    pair = ", ".join(f"{name} {judged[kind]['perplexity']:.1f}" for kind, name in names.items())
    return f"perplexity: {pair}; the {names[done.teacher]} is the teacher"


@_stage
def run_words(
    here: ProjectSettings, progress: Progress, /, *, path: str, normalisation: Any = None, **table: Any
) -> str:
    """[words] or [ngrams.NAME]."""
    return f"an n-gram of {words(here, here.folder / path, table, progress=progress):,} sentences"


def sentences_output(name: str) -> str:
    """Where [sentences.NAME] lies in the working folder."""
    return f"sentences/{name}.jsonl"


@_stage
def run_sentences(here: ProjectSettings, progress: Progress, /, *, name: str, **table: Any) -> str:
    """[sentences.NAME]."""
    whole = sentences(here, here.folder / sentences_output(name), table, overwrite=True, progress=progress)
    return f"{len(whole):,} sentences"


@_stage
def run_bank(here: ProjectSettings, progress: Progress, /, **table: Any) -> str:
    """[bank]."""
    config = build(BankSettings, table, where="[bank]")
    done = bank(here, here.folder / "bank", config, config.train, progress=progress)
    right = ", ".join(f"{name} {share:.1%}" for name, share in done.right.items())
    return f"{done.segments:,} segments; right: {right}"


@_stage
def run_dump(here: ProjectSettings, progress: Progress, /, *, name: str, is_text: bool = False, **table: Any) -> str:
    """[dump.NAME]; the executor's settings stand in hkd.toml alone. is_text: of its sentences."""
    who = {key: value for key, value in here.table(f"dump.{name}").items() if key in WHO_LABELS}
    command = f"hkd run (stage dump-{name})"
    done = dump(here, {**table, **who}, name=name, is_text=is_text, command=command, progress=progress)
    return f"{done.positions:,} positions by {done.teacher}, {done.positions_per_s:,.0f} positions/s"


@_stage
def run_average(here: ProjectSettings, progress: Progress, /, *, name: str, **table: Any) -> str:
    """[averages.NAME]: the control of a teacher without context."""
    config = build(AverageSettings, table, where=f"[averages.{name}]")
    over, command = [u.id for u in read(here.manifest).split(config.split)], f"hkd run (stage average-{name})"
    k, text = config.k or None, here.path("sentence_labels")
    spec = average(here.labels / config.of, here.labels / name, over=over, k=k, command=command, progress=progress)
    if (text / config.of).exists():
        average(text / config.of, text / name, k=k, command=command, progress=progress)
    return f"{spec.num_utterances:,} utterances, each unit as {spec.teacher['name']}"


@_stage
def run_train(here: ProjectSettings, progress: Progress, /, *, name: str, **table: Any) -> str:
    """[runs.NAME]."""
    done = train(here, name, table, progress=progress)
    return f"{done.steps} steps, {done.parameters:,} parameters exported"


@_stage
def run_evaluate(
    here: ProjectSettings, progress: Progress, /, *, name: str, split: str, tag: str = "", **table: Any
) -> str:
    """[evaluate] or [searches.TAG], of a run."""
    from hkd.evaluate.report import percent

    done = evaluate(here, here.runs / name, table, split=split, tag=tag, progress=progress)
    return f"WER {percent(done.errors['wer'].rate)} % on {split}"


@_stage
def run_report(
    here: ProjectSettings, progress: Progress, /, *, runs: list[str], title: str, page: str, **table: Any
) -> str:
    """[report]: all runs → a page, and its tables as Markdown and as text."""
    config, path = build(ReportSettings, table, where="[report]"), here.folder / page
    found = report(here, [here.runs / name for name in runs], path, config, title=title, progress=progress)
    write_bytes(path.with_suffix(".md"), (found.markdown() + "\n").encode())
    write_bytes(path.with_suffix(".txt"), (found.text() + "\n").encode())
    return f"{len(runs)} runs in {path.name}"
