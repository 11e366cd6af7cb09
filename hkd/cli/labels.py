"""`hkd labels`: look at label stores, check them, change their form."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hkd.cli.common import emit, progress_bar, project, say

app = typer.Typer(no_args_is_help=True, help="Look at label stores, check, convert and compare them.")

Stores = Annotated[
    Path | None, typer.Argument(help="A store, or a folder of stores. Default: the project's.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove a label store that is at OUT.")]


def _lines(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


@app.command()
def info(stores: Stores = None, as_json: Json = False) -> None:
    """Say what each store holds: teacher, k, positions, size, hit rates, perplexity, entropy, tail mass.

    Examples:

        hkd labels info

        hkd labels info shards/subword --json
    """
    from hkd.labels.card import describe, rows
    from hkd.labels.folder import load_spec
    from hkd.labels.store import store_folders

    facts = {name: describe(path, load_spec(path)) for name, path in store_folders(stores or project().labels).items()}
    emit(facts, as_json, lambda all_: "\n\n".join(f"{name}\n{_lines(rows(value))}" for name, value in all_.items()))


@app.command()
def show(
    utterance: Annotated[str, typer.Argument(help="An utterance's id.", show_default=False)],
    labels: Annotated[Path | None, typer.Option(help="A store, or a folder of stores.", show_default="the project's")] = None,
    top: Annotated[int, typer.Option(min=1, help="Candidates a position.")] = 5,
    as_json: Json = False,
) -> None:
    """Print an utterance: time, unit, the unit's probability, the teacher's top candidates as bars.

    Examples:

        hkd labels show hello-world

        hkd labels show hello-world --labels shards/senone --top 3
    """
    from hkd.align.alignment import Alignment
    from hkd.errors import UserError
    from hkd.labels.show import show as show_rows
    from hkd.labels.show import text
    from hkd.labels.store import open_stores

    here = project()
    alignment = Alignment(here.alignment) if here.alignment.is_file() else None
    readers = {name: reader for name, reader in open_stores(labels or here.labels).items() if utterance in reader}
    if not readers:
        raise UserError(f"UTTERANCE must be in a store below {labels or here.labels}, but '{utterance}' is in none.")
    value = {name: show_rows(reader, utterance, top=top, alignment=alignment) for name, reader in readers.items()}
    emit(value, as_json, lambda all_: "\n\n".join(f"{name}\n{text(rows)}" for name, rows in all_.items()))


@app.command()
def verify(
    stores: Stores = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is broken, rebuild the index, list what to dump again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --repair: only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Check stores: flipped bytes, missing, foreign and torn shards, the index. Exit 1 where something is wrong.

    Examples:

        hkd labels verify

        hkd labels verify shards/subword --repair --dry-run
    """
    from dataclasses import asdict

    from hkd.labels.store import store_folders
    from hkd.labels.verify import repair as repair_store
    from hkd.labels.verify import verify as verify_store

    result: dict[str, Any] = {}
    bad = False
    for name, path in store_folders(stores or project().labels).items():
        with progress_bar(f"verify {name}") as progress:
            problems = verify_store(path, progress=progress)
        result[name] = {"problems": [asdict(problem) for problem in problems]}
        if problems and repair:
            result[name]["repair"] = asdict(repair_store(path, problems, dry_run=dry_run))
        bad = bad or (bool(problems) and (dry_run or not repair or bool(result[name]["repair"]["dump_again"])))
    emit(result, as_json, _verified)
    if bad:
        raise typer.Exit(1)


def _verified(result: dict[str, Any]) -> str:
    lines = []
    for name, value in result.items():
        problems, repaired = value["problems"], value.get("repair")
        lines.append(f"{name}: {'all is well' if not problems else f'{len(problems)} problems'}")
        lines += [f"  {problem['kind']}: {problem['text']}" for problem in problems]
        if repaired:
            lines += [f"  repair: {line}" for line in repaired["done"]]
            if repaired["dump_again"]:
                numbers = ", ".join(str(number) for number in repaired["dump_again"])
                lines.append(f"  dump again: shards {numbers}. Run the command that wrote the store; it writes only these.")
    return "\n".join(lines)


@app.command()
def convert(
    store: Annotated[Path, typer.Argument(help="The store.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Where the new one goes.", show_default=False)],
    backend: Annotated[str | None, typer.Option(help="arrow or zarr.", show_default="as it is")] = None,
    codec: Annotated[str | None, typer.Option(help="grid or f16.", show_default="as it is")] = None,
    compression: Annotated[str | None, typer.Option(help="zstd or none (f16 alone).", show_default="as it is")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a store again in another backend (bit-identical labels) or codec (within its error bound).

    Examples:

        hkd labels convert shards/subword shards-zarr/subword --backend zarr

        hkd labels convert shards/subword fast/subword --compression none
    """
    from hkd.labels.convert import convert as convert_store

    with progress_bar("convert") as progress:
        convert_store(store, out, backend=backend, codec=codec, compression=compression, overwrite=overwrite, progress=progress)
    say(f"wrote {out}")
