"""`hkd train`, `hkd bank`, `hkd export`: stage two, label stores, sound and text → a student."""

import json
import logging
import shutil
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from hkd.cli.common import Device, Json, Set, emit, progress_bar, project, say, with_options
from hkd.config import merge
from hkd.errors import UserError, did_you_mean
from hkd.remote import location

_OBJECTIVES_HELP = "none, hard-heads, interpolation, auxiliary or hierarchical. [hierarchical]"


def train(
    labels: Annotated[str | None, Option(help="Folder or URL of label stores, or of one store. [shards/]")] = None,
    objective: Annotated[str | None, Option(help=_OBJECTIVES_HELP)] = None,
    run: Annotated[str | None, Option(help="Name of the run, below runs/. Default: the objective.")] = None,
    min_coverage: Annotated[float | None, Option(help="Share of the utterances that must have labels. [1]")] = None,
    assignments: Set = None,
    device: Device = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Remove the run that is there, and begin again.")] = False,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Curves for TensorBoard, in the run's folder.")] = False,
    show: Annotated[bool, Option("--show", help="Draw the student, say what labels cover; train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a student on sound and label stores; resumes where it was stopped, and leaves what is done.

    Settings come from the tables [train] and [runs.RUN] of hkd.toml; options win.

    Examples:

        hkd train --labels shards/
        hkd train --objective hard-heads --run control --set loop.max_steps=5000
        hkd train --labels shards/ --set lam=0.5 --set encoder.preset=s --show
        hkd train --labels shards/ --set loop.best_by=dev_wer --set loop.average=5
        hkd train --labels s3://bucket/shards/
        hkd train --labels shards/ --set encoder.name=facebook/wav2vec2-base --set loop.learning_rate=5e-5
        torchrun --nproc-per-node 4 -m -- hkd train --labels shards/ --run four
    """
    from hkd.loop import is_main_process
    from hkd.pipeline import stages
    from hkd.train.config import TrainConfig
    from hkd.train.data import open_data, show_data

    here = project()
    common = here.table("train")
    over = with_options({}, assignments, "train", objective=objective, min_coverage=min_coverage)
    name = run or str(merge(common, over).get("objective", TrainConfig().objective))
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name:
        raise UserError(f"--run must be a name below {here.runs}, but is '{name}' instead. Take another name.")
    table = merge(merge(common, here.table(f"runs.{name}")), over)
    place = location(labels) if labels else None
    config = stages.train_config(here, table, f"[runs.{name}]")  # refused before a run goes
    inputs = stages.train_inputs(here, place)
    if show:
        typer.echo(show_data(open_data(config, **inputs)))
        return
    folder = here.runs / name
    if overwrite and folder.exists():
        if not (folder / "identity.json").is_file():
            raise UserError(f"--overwrite must replace a run, but {folder} is none. Take another name with --run.")
        shutil.rmtree(folder)
    logging.getLogger("hkd").setLevel(logging.INFO)
    device = device or "auto"
    with progress_bar(f"train {folder.name}") as bar:
        report = stages.train(here, name, table, labels=place, device=device, tensorboard=tensorboard, progress=bar)
    if not is_main_process():
        return
    if report.was_done:
        say(f"{folder} is done: nothing to do.")
    figures = ", ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
    emit(report.to_json(), as_json, lambda _: f"{folder}: {report.parameters:,} parameters exported; {figures}")


def bank(
    out: Annotated[Path, Option(help="Folder to write.")] = Path("bank"),
    run: Annotated[str | None, Option(help="A run of hkd.toml whose settings are taken beside [train].")] = None,
    folds: Annotated[int, Option(help="Parts of the speakers: each is heard by a student of the others.")] = 5,
    k: Annotated[int, Option("-k", help="Units that are kept of each frame's posterior.")] = 16,
    labels: Annotated[
        str | None, Option(help="Label stores (folder, URL), where their heads condition. [shards/]")
    ] = None,
    assignments: Set = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write a bank of what the student hears when a phone is said, for training on text; resumes where it was stopped.

    For each fold of the speakers the student's low part learns from the others; the bank holds the posteriors of the
    heads that `condition` names.

    Examples:

        hkd bank --set condition='["senone"]'
        hkd bank --out bank/short --set condition='["senone", "monophone"]' --set epochs=4
    """
    from hkd.pipeline import stages
    from hkd.train.bank import BankConfig

    here, config = project(), BankConfig(folds=folds, k=k)
    table = with_options(merge(here.table("train"), here.table(f"runs.{run}") if run else {}), assignments, "train")
    place = location(labels) if labels else None
    logging.getLogger("hkd").setLevel(logging.INFO)
    with progress_bar("bank") as progress:
        report = stages.bank(here, out, config, table, labels=place, device=device or "auto", progress=progress)
    right = ", ".join(f"{name} {share:.1%}" for name, share in report.right.items())
    line = f"{out}: {report.segments:,} segments, {report.frames:,} frames; right: {right}"
    emit(report.to_json(), as_json, lambda _: line)


def export(
    out: Annotated[Path, Option(help="Folder to write.")],
    run: Annotated[str | None, Argument(help="A run: a name below runs/, or a folder.")] = None,
    named: Annotated[str | None, Option("--run", "--model", help="The same as RUN.")] = None,
    heads: Annotated[bool, Option("--heads", help="Keep the heads (for study; inference needs none).")] = False,
    onnx: Annotated[bool, Option("--onnx", help="Write model.onnx too: features in, logits out.")] = False,
) -> None:
    """Write a trained run's student: safetensors and JSON, without the heads that only taught it.

    Examples:

        hkd export hierarchical --out student/
        hkd export hierarchical --out student/ --onnx
        hkd export runs/hierarchical --out with-heads/ --heads
    """
    from hkd.evaluate.report import write_card
    from hkd.train.run import ENCODER, export_run

    here = project()
    if (run is None) == (named is None):
        remedy = "Give a name below runs/, or a folder."
        raise UserError(f"`hkd export` must get one run, as RUN or --run, but gets none or two. {remedy}")
    name = str(run or named)
    folder = next((path for path in (here.runs / name, Path(name)) if (path / "done.json").exists()), None)
    if folder is None:
        done = (path.parent.name for path in here.runs.glob("*/done.json"))
        remedy = did_you_mean(name, done) or " Run `hkd train` first."
        raise UserError(f"a run must be done, but {here.runs / name} is not there or not at its end.{remedy}")
    export_run(folder, out, heads=heads, onnx=onnx)
    write_card(folder, out / "README.md", needs_figures=False)
    files = json.loads((out / "student.json").read_text())["files"]
    command = f"hkd transcribe FILE.wav --model {out}"
    say(f"{out}: {', '.join(files)}, student.json and README.md, its card. Try it: `{command}`.")
    if (out / ENCODER).is_dir():
        say(f"{out / ENCODER}: its encoder once more, for transformers alone.")
