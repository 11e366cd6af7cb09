"""`hkd demo`, `hkd run`, `hkd config`: pipelines."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from hkd.cli.common import Json, Overwrite, Set, bars, emit, project, say
from hkd.config import merge, parse_overrides
from hkd.files import assignment, shipped

_CONFIG_HELP = "Print the settings that a folder's hkd.toml and the defaults give."
config_app = typer.Typer(no_args_is_help=True, help=_CONFIG_HELP)
_DEMO_HELP = "asterisk (from Debian's packages), mini_librispeech, or a folder of yours."
_ONLY_HELP = "Only this stage (or pattern) and what it needs; may be repeated."

Work = Annotated[Path | None, Option("--work", help="Working folder (default: runs/NAME).")]
Jobs = Annotated[int | None, Option("--jobs", min=1, help="Stages side by side (default: the pipeline's own).")]


def demo(
    corpus: Annotated[str, Option(help=_DEMO_HELP)] = "asterisk",
    work: Work = None,
    assignments: Set = None,
    jobs: Jobs = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The whole thing on real speech, from nothing, on a laptop's CPU: alignment, LMs, label stores, students, report.

    Examples:

        hkd demo
        hkd demo --corpus mini_librispeech
        hkd demo --corpus my-speech/ --work runs/mine
    """
    given = Path(corpus)
    source = str(given.absolute()) if given.exists() else corpus
    folder = work or Path("runs") / ("demo" if corpus == "asterisk" else f"demo-{given.name}")
    command = shlex.join(["hkd", "demo", "--corpus", corpus, "--work", str(folder), *_again(assignments)])
    settings = [*(assignments or []), f"prepare.{assignment('corpus', source)}"]
    _run(shipped("pipelines") / "demo", folder, settings, jobs, as_json, overwrite=overwrite, command=command)
    say("\n".join([*heard(folder), "", *NEXT]))


NEXT = (
    "Next, with your own speech (a folder of audio files, each with its text beside it):",
    "  hkd prepare my-speech --folder my-project && cd my-project",
    "  hkd units train && hkd align",
    "  hkd teacher-dump --lm phone-trigram --unit monophone && hkd train --labels shards/ --set main=senone",
)


def heard(work: Path, split: str = "test") -> list[str]:
    """What the best student of a finished pipeline writes of two utterances, beside what was said."""
    from hkd.evaluate.score import result_paths

    figures, texts = {}, {}
    for run in (work / "runs").iterdir():
        scores, texts[run.name], _ = result_paths(run, split)
        if scores.exists():
            figures[run.name] = json.loads(scores.read_text(encoding="utf-8"))
    if not figures:
        return []
    best = min(figures, key=lambda name: (figures[name]["errors"]["wer"]["rate"], name))
    rows = [json.loads(line) for line in texts[best].read_text(encoding="utf-8").splitlines()]
    longest = sorted(rows, key=lambda row: (-len(row["reference"].split()), row["id"]))
    middle = longest[len(longest) // 3 : len(longest) // 3 + 2]
    lines = [f"What {best} writes, of two prompts that it has not heard:"]
    for row in middle:
        lines += [f"  said:  {row['reference']}", f"  heard: {row['hypothesis'] or '(nothing)'}"]
    return lines


def run(
    pipeline: Annotated[Path, Argument(help="A pipeline's folder (with pipeline.toml) or its TOML file.")],
    work: Work = None,
    only: Annotated[list[str] | None, Option("--only", metavar="STAGE", help=_ONLY_HELP)] = None,
    assignments: Set = None,
    jobs: Jobs = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """A pipeline: its stages in order, those that are up to date skipped, interrupted ones continued.

    Examples:

        hkd run pipelines/demo
        hkd run pipelines/demo --work runs/short --set train.loop.max_steps=100
        hkd run pipelines/demo --only 'dump-*' --only evaluate-none
    """
    folder = work or Path("runs") / (pipeline.name if pipeline.is_dir() else pipeline.stem)
    chosen = [word for name in only or [] for word in ("--only", name)]
    command = shlex.join(["hkd", "run", str(pipeline), "--work", str(folder), *chosen, *_again(assignments)])
    _run(pipeline, folder, assignments or [], jobs, as_json, overwrite=overwrite, command=command, only=only or [])


@config_app.command("show")
def show(
    sections: Annotated[
        list[str] | None, Argument(help="Commands or tables of hkd.toml, such as train; by default all.")
    ] = None,
    assignments: Set = None,
) -> None:
    """Print the settings of this folder as TOML, defaults included, each with its explanation.

    Examples:

        hkd config show
        hkd config show lm
        hkd config show train --set train.loop.max_steps=100
    """
    from hkd.pipeline.recipe import show_tables

    tables = merge(project().tables, parse_overrides(assignments or []))
    emit(show_tables(tables, sections or None), False, str)


def _again(assignments: list[str] | None) -> list[str]:
    return [word for assignment in assignments or [] for word in ("--set", assignment)]


def _run(
    pipeline: Path, work: Path, assignments: list[str], jobs: int | None, as_json: bool, *, overwrite: bool,
    command: str, only: Sequence[str] = (),
) -> None:  # fmt: skip
    from hkd.pipeline.recipe import load_recipe, stages_of, write_project
    from hkd.pipeline.runner import check_stages, needed, run_stages

    recipe = load_recipe(pipeline, parse_overrides(assignments))
    stages = needed(stages_of(recipe), only or ["*"])
    check_stages(work, stages, overwrite=overwrite, command=command)
    write_project(recipe, work)
    say(f"{recipe.title} → {work}")
    with bars() as watcher:
        done = run_stages(work, stages, jobs=jobs or recipe.jobs, watcher=watcher, overwrite=overwrite, command=command)
    if not done.ran:
        say(f"All {len(done.skipped)} stages are up to date.")
    else:
        say(f"{len(done.ran)} stages run, {len(done.skipped)} up to date, {done.seconds:.0f} s.")
    report = work / f"{recipe.report}.html" if recipe.report in stages else None
    value = {"work": str(work), **asdict(done), "seconds": round(done.seconds, 1), "report": report and str(report)}
    found = report.with_suffix(".txt").read_text(encoding="utf-8").rstrip() if report else ""
    emit(value, as_json, lambda _: f"{found}\n\nReport: {report}" if report else f"Label stores: {work / 'shards'}")
