"""`hkd lm`: unit language models."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from hkd.cli.common import Device, Json, Overwrite, Set, emit, given, progress_bar, project, say, with_options

app = typer.Typer(no_args_is_help=True, help="Language models over senones, monophones, characters or subwords.")


@app.command()
def train(
    unit: Annotated[str, Option(help="Level: senone, monophone, character or subword.")],
    text: Annotated[
        list[Path] | None, Option(help="Text, plain or .gz, a sentence a line; may be repeated. [text/]")
    ] = None,
    transcripts: Annotated[str | None, Option(help="none, or cross-fit: no LM labels what it has seen.")] = None,
    manifest: Annotated[Path | None, Option(help="Another manifest than the project's, of text.")] = None,
    name: Annotated[str | None, Option(help="The LM's name below lm/; by default the level.")] = None,
    steps: Annotated[int | None, Option(help="Training steps.")] = None,
    assignments: Set = None,
    device: Device = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Train a unit LM and hold it against a Kneser-Ney n-gram of the same data; the better one is the teacher.

    Settings that are not given come from the table [lm.NAME] of hkd.toml, or [lm.UNIT] where there is none, the text
    from the folder text/. A killed run goes on where it was.

    Examples:

        hkd lm train --unit monophone --text corpus.txt.gz
        hkd lm train --unit senone --text corpus.txt --transcripts cross-fit --set folds=4
        hkd lm train --unit subword --manifest text.jsonl --transcripts cross-fit --name text-subword
    """
    from hkd.labelling.lm import render
    from hkd.pipeline import stages

    here, name = project(), name or unit
    table = here.table(f"lm.{name}") or here.table(f"lm.{unit}")
    loop = given(max_steps=steps)
    table = with_options(table, assignments, f"lm.{name}", unit=unit, transcripts=transcripts, loop=loop)
    logging.getLogger("hkd").setLevel(logging.INFO)  # the n-gram's perplexity is said long before the end
    with progress_bar(f"lm {unit}") as progress:
        report = stages.lm(
            here,
            name,
            table,
            texts=text or (),
            manifest=manifest,
            device=device or "auto",
            overwrite=overwrite,
            progress=progress,
        )
    say(f"{here.lm / name} is done.")
    emit(asdict(report), json_, render)


@app.command()
def words(
    out: Annotated[Path | None, Option(help="The ARPA file; by default words.arpa in the folder of the LMs.")] = None,
    text: Annotated[
        list[Path] | None, Option(help="Text, plain or .gz, a sentence a line; may be repeated. [text/]")
    ] = None,
    order: Annotated[int | None, Option(help="Of the n-gram. [3]")] = None,
    assignments: Set = None,
) -> None:
    """Estimate a word n-gram (Kneser-Ney, ARPA): for beam search, and for the search graph of a hybrid student.

    Examples:

        hkd lm words
        hkd lm words --text corpus.txt.gz --order 4 --out words.arpa
    """
    from hkd.labelling.ngram import WORDS
    from hkd.pipeline import stages

    here = project()
    path = out or here.lm / WORDS
    table = with_options(here.table("words"), assignments, "words", order=order)
    with progress_bar("word n-gram") as progress:
        count = stages.words(here, path, table, texts=text or (), progress=progress)
    say(f"{path}: {count:,} sentences.")


@app.command()
def score(
    name: Annotated[str, Argument(help="An LM's name below lm/, or its folder.")],
    json_: Json = False,
) -> None:
    """Print how a trained LM compares with its n-gram and the unigram, and which of them is the teacher.

    Examples:

        hkd lm score senone
        hkd lm score lm/senone --json
    """
    from hkd.labelling.lm import LmReport, render
    from hkd.teachers.unit_lm import REPORT

    folder = Path(name) if (Path(name) / REPORT).exists() else project().lm / name
    emit(asdict(LmReport.load(folder / REPORT)), json_, render)
