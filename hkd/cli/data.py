"""`hkd units`: the inventories, what text becomes in them, and how labels of one level agree with another's."""

from typing import Annotated, Any

import typer

from hkd.cli.common import emit, project

units_app = typer.Typer(no_args_is_help=True, help="Unit inventories: senones, monophones, subwords.")

_Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
_Overwrite = Annotated[bool, typer.Option(help="Replace what is there and was made of something else.")]


@units_app.command()
def train(
    vocab_size: Annotated[int | None, typer.Option(help="Subwords in all; a small text gives fewer. Default 500.")] = None,
    kind: Annotated[str | None, typer.Option(help="unigram or bpe.")] = None,
    split: Annotated[str, typer.Option(help="The split whose transcripts the subwords are trained on.")] = "train",
    overwrite: _Overwrite = False,
    json_: _Json = False,
) -> None:
    """Make the inventories: the aligner's senones and monophones, and SentencePiece subwords of the transcripts.

    Examples:

        hkd units train

        hkd units train --vocab-size 1000 --kind bpe
    """
    from hkd.manifest import read
    from hkd.units.sequences import UnitsConfig, train_units

    here = project()
    config = here.section("units", UnitsConfig, {"vocab_size": vocab_size, "kind": kind})
    texts = (u.text for u in read(here.require("manifest", "hkd prepare")).split(split))
    found = train_units(texts, here.units, vocab_size=config.vocab_size, kind=config.kind, overwrite=overwrite)
    value = {level: {"units": len(inventory), "digest": inventory.digest} for level, inventory in found.items()}
    emit(value, json_, _render_units)


def _render_units(value: dict[str, Any]) -> str:
    return "\n".join(f"{level:<12}{row['units']:>7} units   digest {row['digest'][:16]}" for level, row in value.items())


@units_app.command()
def show(
    text: Annotated[str | None, typer.Argument(help="A text to turn into units; without it the inventories are listed.")] = None,
    json_: _Json = False,
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
        value = {level: {"units": len(inventory), "digest": inventory.digest} for level, inventory in inventories.items()}
        return emit(value, json_, _render_units)
    spoken = words(text)
    shown = {
        level: [inventory.symbols[unit] for unit in units.encode(spoken, level)[0].tolist()]
        for level, inventory in inventories.items()
    }

    def render(value: dict[str, list[str]]) -> str:
        return "\n".join(f"{level:<12}{' '.join(symbols)}" for level, symbols in value.items())

    return emit({"words": spoken, **shown}, json_, render)
