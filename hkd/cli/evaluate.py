"""`hkd evaluate`, `hkd transcribe`, `hkd likelihoods`, `hkd report`: what students recognise."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from hkd.cli.common import Device, Json, Set, emit, given, progress_bar, project, say, with_options
from hkd.config import ProjectSettings
from hkd.errors import HkdError, UserError, did_you_mean, some
from hkd.files import write_bytes

if TYPE_CHECKING:
    from hkd.evaluate.score import EvaluationReport

RUNS_HELP = "Runs: names below the runs folder, or folders. Default: all that are trained."
LM_HELP = (
    "Beside beam search (always with a hybrid student): an ARPA file over words, a folder of `hkd lm train`, or a "
    "causal LM's folder or hub name."
)
GAP_HELP = "Read the words cut out and joined again, in their order and in another."
Split = Annotated[str, Option(help="Part of the manifest.")]
Decoder = Annotated[str | None, Option(help="greedy or beam.")]
Lm = Annotated[str | None, Option(help=LM_HELP)]


def run_folders(names: list[str] | None, runs: Path) -> list[Path]:
    """Names or folders → run folders; without names all below `runs` that have an exported student."""
    if not names:
        found = sorted(path.parent.parent for path in runs.glob("*/model/student.json"))
        if not found:
            raise UserError(f"there must be a trained run below {runs}, but there is none. Run `hkd train` first.")
        return found
    folders = []
    for name in names:
        folder = next((path for path in (Path(name), runs / name) if path.is_dir()), None)
        if folder is None:
            known = (path.name for path in runs.iterdir()) if runs.is_dir() else ()
            remedy = did_you_mean(name, known) or " Run `hkd train` first."
            raise UserError(f"a run must be a folder or a name below {runs}, but is '{name}' instead.{remedy}")
        folders.append(folder)
    return folders


def evaluate(
    runs: Annotated[list[str] | None, Argument(metavar="RUN", help=RUNS_HELP)] = None,
    named: Annotated[list[str] | None, Option("--run", help="The same as RUN; may be repeated.")] = None,
    split: Split = "test",
    decoder: Decoder = None,
    lm: Lm = None,
    tune: Annotated[bool, Option("--tune", help="Try weights and bonuses on the split, not test; print all.")] = False,
    shuffle_gap: Annotated[bool, Option("--shuffle-gap", help=GAP_HELP)] = False,
    assignments: Set = None,
    tag: Annotated[str, Option(help="Names another way to decode: its figures lie beside the usual ones.")] = "",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Score runs on a split: WER, CER, PER with intervals, frame accuracy a level, speed. Finished ones are left.

    Examples:

        hkd evaluate
        hkd evaluate none hierarchical --split dev
        hkd evaluate runs/none --json
        hkd evaluate none --split dev --lm words.arpa --tune
        hkd evaluate none hierarchical --shuffle-gap
        hkd evaluate none --decoder beam --lm words.arpa --set search.lm_weight=0.6 --tag fusion
        hkd evaluate none --decoder beam --set n_best=10 --tag beam
        hkd evaluate hybrid --lm words.arpa --set search.hybrid.acoustic_scale=0.15
    """
    from hkd.evaluate.table import objectives_table
    from hkd.pipeline import stages

    here = project()
    here.require("manifest", "hkd prepare")
    table = _evaluate_table(here, assignments, lm=lm, device=device, search=given(decoder=decoder))
    folders = run_folders([*(runs or ()), *(named or ())], here.runs)
    if tune:
        _tune(here, folders, table, split, as_json)
        return

    def evaluated(folder: Path, splice: str = "") -> "EvaluationReport":
        with progress_bar(f"evaluate {folder.name}") as progress:
            return stages.evaluate(here, folder, table, split=split, tag=tag, splice=splice, progress=progress)

    if shuffle_gap:
        from hkd.evaluate.decoding import SHUFFLED, SPLICED

        _shuffle_gap({f: [evaluated(f, order) for order in (SPLICED, SHUFFLED)] for f in folders}, as_json)
        return
    reports = [evaluated(folder) for folder in folders]
    found = objectives_table(reports)
    emit([report.to_json() | {"rtf": report.rtf} for report in reports], as_json, lambda _: found.text())


def _evaluate_table(here: ProjectSettings, assignments: list[str] | None, **options: Any) -> dict[str, Any]:
    return with_options(here.table("evaluate"), assignments, "evaluate", **options)


def _shuffle_gap(found: "dict[Path, list[EvaluationReport]]", as_json: bool) -> None:
    """Print how many points more of the words are wrong in another order."""
    from hkd.evaluate.decoding import SHUFFLED, SPLICED

    rows, lines = {}, [f"{'run':<24}{'spliced':>10}{'shuffled':>10}{'gap':>8}   WER %"]
    for folder, pair in found.items():
        row = {report.inputs["splice"]["order"]: report.errors["wer"].rate for report in pair}
        spliced, shuffled = 100 * row[SPLICED], 100 * row[SHUFFLED]
        lines.append(f"{folder.name:<24}{spliced:>10.1f}{shuffled:>10.1f}{shuffled - spliced:>+8.1f}")
        rows[folder.name] = row
    emit(rows, as_json, lambda _: "\n".join(lines))


def _tune(here: ProjectSettings, folders: list[Path], table: dict[str, Any], split: str, as_json: bool) -> None:
    """Print the tries of each run, and the best one's values as options."""
    from hkd.evaluate.decoding import as_settings
    from hkd.evaluate.decoding import tune as tune_run
    from hkd.pipeline import stages

    config, lm = stages.evaluate_config(here, table)
    if lm is None:
        raise UserError("--tune needs an LM to weigh, but there is none. Give --lm.")
    for folder in folders:
        with progress_bar(f"tune {folder.name}") as progress:
            tries = tune_run(folder, manifest=here.manifest, lm=lm, split=split, config=config, progress=progress)
        best = as_settings(tries[0].values)
        emit({"run": folder.name, "tries": [asdict(t) for t in tries], "best": best}, as_json, tries_text)


def tries_text(value: dict[str, Any]) -> str:
    """The tries of a run as aligned columns, and how to decode by the best."""
    names = list(value["tries"][0]["values"])
    lines = [f"{value['run']:<16} {'  '.join(names)}  WER %"]
    for t in value["tries"]:
        numbers = "  ".join(f"{number:>{len(name)}g}" for name, number in t["values"].items())
        lines.append(f"{'':<16} {numbers}  {100 * t['wer']:>5.2f}")
    return "\n".join([*lines, "Best: " + " ".join(f"--set {setting}" for setting in value["best"])])


def likelihoods(
    run: Annotated[str, Argument(help="A hybrid run: its folder, or its name below runs/.")],
    out: Annotated[Path, Option(help="Folder for likelihoods.ark and likelihoods.scp.")],
    split: Split = "test",
    prior_scale: Annotated[float, Option(help="Weight of the senones' log-priors, which are taken off.")] = 1.0,
    device: Device = None,
) -> None:
    """Write a hybrid student's log-likelihoods as Kaldi's tables, for decoding with Kaldi's own graphs.

    Examples:

        hkd likelihoods hybrid --split test --out likelihoods
    """
    from hkd.evaluate.decoding import write_likelihoods

    here = project()
    manifest = here.require("manifest", "hkd prepare")
    [folder] = run_folders([run], here.runs)
    device = device or "auto"
    with progress_bar(f"likelihoods {folder.name}") as bar:
        count = write_likelihoods(
            folder, out, manifest=manifest, split=split, prior_scale=prior_scale, device=device, progress=bar
        )
    say(f"{count} utterances in {out}.")


def transcribe(
    files: Annotated[list[Path], Argument(metavar="FILE", help="Sound files, and folders of them.")],
    model: Annotated[
        Path | None, Option("--run", "--model", help="A run, or an exported student. [the only run]")
    ] = None,
    decoder: Decoder = None,
    lm: Lm = None,
    assignments: Set = None,
    device: Device = None,
    as_json: Annotated[bool, Option("--json", help="More: pieces with their times, units, duration.")] = False,
) -> None:
    """Print what is said in sound files, searched by the table [evaluate] of hkd.toml, as `hkd evaluate` does.

    A file that cannot be read is named and left out; the command then ends with exit code 1.

    Examples:

        hkd transcribe hello.wav --run hierarchical
        hkd transcribe *.flac --run student/ --json
        hkd transcribe hello.wav --run none --decoder beam --lm words.arpa --set search.lm_weight=0.6
        hkd transcribe hello.wav --run hybrid --lm words.arpa --set search.hybrid.acoustic_scale=0.15
    """
    from hkd.corpora.collect import Report
    from hkd.decode.recogniser import Recogniser, sound_files
    from hkd.evaluate.score import CTC_REMEDY, GRAPH_REMEDY
    from hkd.pipeline import stages

    here = project()
    table = _evaluate_table(here, assignments, lm=lm, device=device, search=given(decoder=decoder))
    config, lm = stages.evaluate_config(here, table)
    report = Report()
    paths = sound_files(files, report)
    for line in report.lines():
        say(line)
    recogniser = Recogniser(model_folder(model, here.runs), device=config.device, search=config.search, lm=lm)
    line = "{text}" if len(paths) == 1 else "{file}: {text}"
    failed, silent = [], []
    for path in paths:
        try:
            result: Any = recogniser.transcribe(path)
        except HkdError as error:
            if len(paths) == 1:
                raise
            say(f"{path}: {error}")
            failed.append(path)
        else:
            emit(result, as_json, lambda value: line.format(**value))
            silent += [] if result["text"] else [path]
    if silent:
        remedy = GRAPH_REMEDY if recogniser.is_hybrid else CTC_REMEDY
        say(f"No word is recognised in {some(silent, 10)}. If that is so of all speech: {remedy}")
    if failed:
        raise HkdError(f"{len(failed)} of {len(paths)} files could not be transcribed: {some(failed, 10)}.")


def model_folder(model: Path | None, runs: Path) -> Path:
    """The exported student: a run's `model/`, the folder itself, or without a word the only run's."""
    if model is None:
        found = run_folders(None, runs)
        if len(found) > 1:
            raise UserError(f"--run must be given where there are several runs: {', '.join(f.name for f in found)}.")
        return found[0] / "model"
    for folder in (model / "model", model, runs / model / "model"):
        if (folder / "student.json").exists():
            return folder
    raise UserError(f"--run must be a run or an exported student, but {model} is neither. Run `hkd train` first.")


def report(
    runs: Annotated[list[str] | None, Argument(metavar="RUN", help=RUNS_HELP)] = None,
    named: Annotated[list[str] | None, Option("--run", help="The same as RUN; may be repeated.")] = None,
    out: Annotated[Path, Option(help="The page.")] = Path("report.html"),
    split: Split = "test",
    baseline: Annotated[list[str] | None, Option(help="What others are compared with; may be repeated. [none]")] = None,
    markdown: Annotated[Path | None, Option(help="Write the table as Markdown, too.")] = None,
    card: Annotated[Path | None, Option(help="Write the model card of one run, and nothing else.")] = None,
) -> None:
    """Make one self-contained HTML page of runs: table, curves, label stores, examples. Prints the table.

    Examples:

        hkd report
        hkd report none hard-heads hierarchical --baseline none --baseline hard-heads --markdown table.md
        hkd report hierarchical --card student/README.md
    """
    from hkd.pipeline import stages
    from hkd.pipeline.settings import ReportSettings

    here = project()
    folders = run_folders([*(runs or ()), *(named or ())], here.runs)
    if card is not None:
        from hkd.evaluate.report import write_card

        if len(folders) != 1:
            raise UserError(f"--card must be of one run, but {len(folders)} are given. Name one.")
        write_card(folders[0], card)
        say(f"{card} is written.")
        return
    with progress_bar("report") as progress:
        config = ReportSettings(split=split, baselines=tuple(baseline or ()))
        table = stages.report(here, folders, out, config, progress=progress)
    if markdown is not None:
        write_bytes(markdown, (table.markdown() + "\n").encode())
    typer.echo(table.text())
    say(f"{out} is written.")
