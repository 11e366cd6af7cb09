"""`hkd align`, `hkd units`: from a manifest to what teachers and students start from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hkd.cli.common import emit, progress_bar, project

units_app = typer.Typer(no_args_is_help=True, help="Unit inventories: senones, monophones, subwords.")

_Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
_Overwrite = Annotated[bool, typer.Option(help="Replace what is there and was made of something else.")]
_SHOWN = 20


def align(
    manifest: Annotated[Path | None, typer.Argument(help="The manifest; by default the project's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default the project's alignment.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes; 0: one a core.")] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Mean score a frame below which a transcript counts as not what was spoken.")
    ] = None,
    overwrite: _Overwrite = False,
    json_: _Json = False,
) -> None:
    """Align words, phones and senones to 10 ms frames with pocketsphinx's English model.

    Utterances that cannot be aligned are listed with reasons and left out of what follows. A killed run goes on where it was.

    Examples:

        hkd align

        hkd align other/manifest.jsonl --out other/alignment.arrow --jobs 8
    """
    from dataclasses import asdict

    from hkd.align.sphinx import SphinxConfig, align_manifest
    from hkd.manifest import read

    here = project()
    path = manifest or here.require("manifest", "hkd prepare")
    target = out or here.alignment
    config = here.section("align", SphinxConfig, {"jobs": jobs, "min_score": min_score})
    with progress_bar("align") as progress:
        report = align_manifest(read(path), target, config=config, overwrite=overwrite, progress=progress)

    def render(value: dict[str, Any]) -> str:
        total = value["kept"] + len(value["failed"])
        lines = [f"{target}: {value['kept']} of {total} utterances ({value['kept'] / total:.1%}), {value['hours']:.3f} hours"]
        if value["real_time_factor"]:
            lines[0] += f", real-time factor {value['real_time_factor']:.3f} (one core)"
        if value["predicted_words"]:
            lines.append(f"{len(value['predicted_words'])} words are in no dictionary and got a predicted pronunciation")
        lines += [f"  {name}: {reason}" for name, reason in list(value["failed"].items())[:_SHOWN]]
        if len(value["failed"]) > _SHOWN:
            lines.append(f"  and {len(value['failed']) - _SHOWN} more (--json lists all)")
        return "\n".join(lines)

    emit({**asdict(report), "hours": report.seconds_of_audio / 3600}, json_, render)


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
    from hkd.units.level import LEVELS
    from hkd.units.sequences import Units
    from hkd.units.text import words

    here = project()
    here.require("units", "hkd units train")
    units = Units(here.units)
    inventories = {level: units.inventory(level) for level in LEVELS}
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
