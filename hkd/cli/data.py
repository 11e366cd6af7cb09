"""`hkd units`: the inventories, and what text becomes in them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from hkd.cli.common import Json, Overwrite, Set, emit, given, progress_bar, project, with_options
from hkd.config import build

units_app = typer.Typer(no_args_is_help=True, help="Unit inventories: senones, monophones, characters, subwords.")

_SHOWN = 20


@units_app.command()
def train(
    vocab_size: Annotated[int | None, Option(help="Subwords in all; a small text gives fewer. Default 500.")] = None,
    kind: Annotated[str | None, Option(help="unigram or bpe; char: the student's own subwords are characters.")] = None,
    split: Annotated[str, Option(help="The split whose transcripts the subwords are trained on.")] = "train",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Make the inventories: the aligner's senones and monophones, the transcripts' subwords and characters.

    Examples:

        hkd units train
        hkd units train --vocab-size 1000 --kind bpe
    """
    from hkd.pipeline import stages

    here = project()
    table = {**here.table("units"), **given(vocab_size=vocab_size, kind=kind)}
    _show(stages.units(here, table, split=split, overwrite=overwrite), json_)


def _show(inventories: dict[str, Any], json_: bool) -> None:
    def render(value: dict[str, Any]) -> str:
        return "\n".join(
            f"{level:<12}{row['units']:>7} units   digest {row['digest'][:16]}" for level, row in value.items()
        )

    emit({level: {"units": len(found), "digest": found.digest} for level, found in inventories.items()}, json_, render)


@units_app.command()
def show(
    text: Annotated[
        str | None, Argument(help="A text to turn into units; without it the inventories are listed.")
    ] = None,
    json_: Json = False,
) -> None:
    """Show the inventories, or what a text becomes at each level.

    Examples:

        hkd units show
        hkd units show "Thank you for calling."
    """
    from hkd.units.sequences import Units
    from hkd.units.text import words

    here = project()
    here.require("units", "hkd units train")
    units = Units(here.units)
    inventories = {level: units.inventory(level) for level in units.levels}
    if text is None:
        return _show(inventories, json_)
    spoken = words(text)
    shown = {
        level: [inventory.symbols[unit] for unit in units.encode(spoken, level)[0].tolist()]
        for level, inventory in inventories.items()
    }

    def render(value: dict[str, list[str]]) -> str:
        return "\n".join(f"{level:<12}{' '.join(symbols)}" for level, symbols in value.items())

    return emit({"words": spoken, **shown}, json_, render)


@units_app.command()
def lexicon(
    text: Annotated[list[Path] | None, Option(help="Texts, a sentence a line; by default the transcripts.")] = None,
    dictionary: Annotated[Path | None, Option(help="A dictionary instead of the project's (word phones).")] = None,
    json_: Json = False,
) -> None:
    """Say which words the project's dictionary has, which get a predicted pronunciation, and which have none.

    Examples:

        hkd units lexicon
        hkd units lexicon --text corpus.txt.gz --json
    """
    from hkd.lines import numbered_lines
    from hkd.manifest import read_lines
    from hkd.units.lexicon import Lexicon, lexicon_report
    from hkd.units.tying import load_lexicon

    here = project()
    lines = (line for path in text or () for _, line in numbered_lines(path, "a text"))
    texts = lines if text else (u.text for u in read_lines(here.require("manifest", "hkd prepare")))
    report = lexicon_report(Lexicon(dictionary) if dictionary is not None else load_lexicon(here.units), texts)

    def render(value: dict[str, Any]) -> str:
        some = [f"  {word}: {phones}" for word, phones in list(value["predicted"].items())[:_SHOWN]]
        none = [f"  {word} ({count} times)" for word, count in list(value["unknown"].items())[:_SHOWN]]
        return "\n".join(
            [
                f"{value['words']} words ({value['running_words']} in running text): {value['listed']} in the "
                f"dictionary",
                f"{len(value['predicted'])} get a predicted pronunciation", *some,
                f"{len(value['unknown'])} have none, in {value['unknown_texts']} texts, which phone and senone LMs "
                "leave out", *none,
            ]
        )  # fmt: skip

    emit(asdict(report), json_, render)


@units_app.command()
def tie(
    num_senones: Annotated[int | None, Option(help="Senones in all, silence's included. [2000]")] = None,
    assignments: Set = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Tie the states of an alignment's phones: it gets senones, and text becomes senones too.

    Examples:

        hkd align --from mfa aligned/ --no-stress && hkd units tie --num-senones 2000
    """
    from hkd.labelling.tie import TieConfig
    from hkd.pipeline import stages

    here = project()
    table = with_options(here.table("tie"), assignments, "tie", num_senones=num_senones)
    asked = build(TieConfig, table, where="[tie]")
    with progress_bar("tie") as progress:
        report = stages.tie(here, table, overwrite=overwrite, progress=progress)

    def render(value: dict[str, Any]) -> str:
        lines = [
            f"{value['senones']} senones of {value['phones']} phones, tied on {value['hours']:g} hours of the train "
            f"part; "
            f"{value['utterances']} utterances have them now"
        ]
        if value["senones"] < asked.num_senones:
            lines.append(
                f"Fewer than {asked.num_senones}: each must have {asked.min_frames} frames of 10 ms (min_frames)."
            )
        return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in value["failed"].items())])

    emit(asdict(report), json_, render)
