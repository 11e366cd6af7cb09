"""`hkd labels`: look at label stores, check them, change their form. A store is a folder or a URL."""

from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from hkd.cli.common import Json, Overwrite, emit, progress_bar, project, say
from hkd.errors import UserError, did_you_mean

app = typer.Typer(no_args_is_help=True, help="Look at label stores, check, convert and compare them.")

Stores = Annotated[str | None, Argument(help="A store, or a folder of stores; a URL too. Default: the project's.")]


def _lines(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


@app.command()
def info(stores: Stores = None, as_json: Json = False) -> None:
    """Say what each store holds: teacher, k, positions, size, hit rates, perplexity, entropy, tail mass.

    Examples:

        hkd labels info
        hkd labels info shards/subword --json
        hkd labels info s3://bucket/shards
    """
    from hkd.labels.card import describe, rows
    from hkd.labels.store import store_folders

    facts = {name: describe(path) for name, path in store_folders(stores or project().labels).items()}
    emit(facts, as_json, lambda all_: "\n\n".join(f"{name}\n{_lines(rows(value))}" for name, value in all_.items()))


@app.command()
def show(
    utterance: Annotated[str, Argument(help="An utterance's id.")],
    labels: Annotated[str | None, Option(help="A store, or a folder of stores; a URL too. [the project's]")] = None,
    top: Annotated[int, Option(min=1, help="Candidates a position.")] = 5,
    as_json: Json = False,
) -> None:
    """Print an utterance: time, unit, the unit's probability, the teacher's top candidates as bars.

    Examples:

        hkd labels show hello-world
        hkd labels show hello-world --labels shards/senone --top 3
    """
    from hkd.align.alignment import Alignment
    from hkd.labels.card import show as show_rows
    from hkd.labels.card import text
    from hkd.labels.store import open_stores

    here = project()
    alignment = Alignment(here.alignment) if here.alignment.is_file() else None
    stores = open_stores(labels or here.labels)
    readers = {name: reader for name, reader in stores.items() if utterance in reader}
    if not readers:
        hint = did_you_mean(utterance, chain.from_iterable(reader.ids for reader in stores.values()))
        where, remedy = labels or here.labels, hint or " The ids are those of the manifest."
        raise UserError(f"UTTERANCE must be in a store below {where}, but '{utterance}' is in none.{remedy}")
    value = {name: show_rows(reader, utterance, top=top, alignment=alignment) for name, reader in readers.items()}
    emit(value, as_json, lambda all_: "\n\n".join(f"{name}\n{text(rows)}" for name, rows in all_.items()))


@app.command()
def verify(
    stores: Stores = None,
    repair: Annotated[bool, Option("--repair", help="Remove what is broken, list what to dump again.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="With --repair: only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Check stores: flipped bytes, missing, foreign and torn shards, the index. Exit 1 where something is wrong.

    Examples:

        hkd labels verify
        hkd labels verify shards/subword --repair --dry-run
    """
    from hkd.labels.share import repair as repair_store
    from hkd.labels.share import verify as verify_store
    from hkd.labels.store import store_folders

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
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines.append(f"{name}: {count if problems else 'all is well'}")
        lines += [f"  {problem['kind']}: {problem['text']}" for problem in problems]
        if repaired:
            lines += [f"  repair: {line}" for line in repaired["done"]]
            if repaired["dump_again"]:
                numbers = ", ".join(map(str, repaired["dump_again"]))
                remedy = "Run the command that wrote the store; it writes only these."
                lines.append(f"  dump again: shards {numbers}. {remedy}")
    return "\n".join(lines)


@app.command()
def convert(
    store: Annotated[str, Argument(help="The store.")],
    out: Annotated[str, Argument(help="Where the new one goes.")],
    backend: Annotated[str | None, Option(help="arrow or zarr. [as it is]")] = None,
    codec: Annotated[str | None, Option(help="grid or f16. [as it is]")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a store again in another backend (bit-identical labels) or codec (within its error bound).

    Examples:

        hkd labels convert shards/subword shards-zarr/subword --backend zarr
        hkd labels convert shards-f16/subword small/subword --codec grid
    """
    from hkd.labels.ops import convert as convert_store

    with progress_bar("convert") as progress:
        convert_store(store, out, backend=backend, codec=codec, overwrite=overwrite, progress=progress)
    say(f"wrote {out}")


@app.command()
def compare(
    a: Annotated[str, Argument(help="A store.")],
    b: Annotated[str, Argument(help="Another, of the same units; or of phones, where A holds senones.")],
    as_json: Json = False,
) -> None:
    """Say how far two teachers are apart on the same utterances (senones folded to phones): KL, hit rates.

    Examples:

        hkd labels compare shards/subword shards/subword-large
        hkd labels compare shards/senone shards/monophone
    """
    from hkd.labels.folder import store_folder
    from hkd.labels.ops import compare as compare_stores
    from hkd.units.inventory import MONOPHONE, SENONE
    from hkd.units.sequences import Units

    folds = [store_folder(store).load_spec().level for store in (a, b)] == [SENONE, MONOPHONE]
    tying = Units(project().require("units", "hkd units train")).tying if folds else None
    with progress_bar("compare") as progress:
        result = compare_stores(a, b, tying=tying, progress=progress)
    emit(result, as_json, _compared)


def _compared(value: dict[str, Any]) -> str:
    from hkd.labels.card import number

    left, right = value["a"], value["b"]

    def both(key: str, form: str, scale: float = 1.0, unit: str = "") -> str:
        return f"A {number(left[key], form, scale, unit)}   B {number(right[key], form, scale, unit)}"

    seen = f"{value['utterances']} utterances, {value['positions']} positions"
    rest = f"only in A {value['only_in_a']}, only in B {value['only_in_b']}, other units {value['other_units']}"
    rows = [
        ("compared", f"{seen} ({rest})"),
        ("teacher", f"A {left['teacher']}   B {right['teacher']}"),
        ("KL(A‖B), KL(B‖A)", f"{value['kl_ab']:.4f}, {value['kl_ba']:.4f} nat a position"),
        ("same top unit", f"{value['top1_agreement']:.1%}"),
        ("shared kept units", f"{value['topk_overlap']:.1%}"),
        ("top-1 hit rate", both("top1_hit_rate", ".1f", 100, " %")),
        ("top-k hit rate", both("topk_hit_rate", ".1f", 100, " %")),
        ("perplexity", both("perplexity", ".2f")),
        ("entropy", both("entropy", ".3f")),
        ("tail mass", both("tail_mass", ".4f")),
    ]
    return _lines(rows)


@app.command()
def merge(
    stores: Annotated[list[str], Argument(help="Stores of different utterances, same settings.")],
    out: Annotated[str, Option(help="Where the merged one goes.")],
    overwrite: Overwrite = False,
) -> None:
    """Put stores of different utterances together.

    Examples:

        hkd labels merge shards-a/subword shards-b/subword --out shards/subword
    """
    from hkd.labels.ops import merge as merge_stores

    with progress_bar("merge") as progress:
        spec = merge_stores(stores, out, overwrite=overwrite, progress=progress)
    say(f"wrote {out}: {spec.num_utterances} utterances")


@app.command()
def split(
    store: Annotated[str, Argument(help="The store.")],
    out: Annotated[str, Argument(help="Where the part goes.")],
    ids: Annotated[Path | None, Option(help="A file of ids, one a line.")] = None,
    part: Annotated[str | None, Option("--split", help="A split of the manifest: train, dev ...")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a store of some of a store's utterances: those of a file, or of a split of the project's manifest.

    Examples:

        hkd labels split shards/subword shards-dev/subword --split dev
        hkd labels split shards/subword part/subword --ids ids.txt
    """
    from hkd.files import numbered_lines
    from hkd.labels.ops import subset
    from hkd.labels.store import LabelReader

    if (ids is None) == (part is None):
        raise UserError("`hkd labels split` must get --ids or --split, and not both.")
    if ids is not None:
        wanted = [line.strip() for _, line in numbered_lines(ids, "a list of ids") if line.strip()]
    else:
        reader, asked = LabelReader.open(store), _ids_of(part or "")
        wanted = [name for name in asked if name in reader]
        if lost := len(asked) - len(wanted):
            say(f"{lost} of {len(asked)} utterances of {part} are not in {store}.")
    with progress_bar("split") as progress:
        spec = subset(store, out, wanted, overwrite=overwrite, progress=progress)
    say(f"wrote {out}: {spec.num_utterances} utterances")


@app.command()
def average(
    store: Annotated[str, Argument(help="The store.")],
    out: Annotated[str, Argument(help="Where the new one goes.")],
    part: Annotated[str | None, Option("--split", help="Average over this split of the manifest. [all]")] = None,
    k: Annotated[int | None, Option(min=1, help="Ids a position. [the store's]")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a store of the teacher's average for each unit: a teacher without context, the control.

    Examples:

        hkd labels average shards/monophone shards/monophone-average --split train
        hkd labels average shards/senone shards/senone-average --k 64
    """
    from hkd.labels.ops import average as average_store

    over = None if part is None else _ids_of(part)
    with progress_bar("average") as progress:
        spec = average_store(store, out, over=over, k=k, overwrite=overwrite, progress=progress)
    say(f"wrote {out}: {spec.num_utterances} utterances")


def _ids_of(split: str) -> list[str]:
    """The utterances of a split of the project's manifest."""
    from hkd.manifest import read

    return [u.id for u in read(project().require("manifest", "hkd prepare")).split(split)]


@app.command()
def export(
    store: Annotated[str, Argument(help="The store.")],
    parquet: Annotated[Path, Option(help="The Parquet file to write.")],
) -> None:
    """Write a store as one Parquet table, decoded, a row an utterance, for tools that know no hkd.

    In a project with an alignment the positions have their times, start_s and stop_s.

    Examples:

        hkd labels export shards/subword --parquet subword.parquet
    """
    from hkd.labels.ops import export_parquet

    times = _times(store)
    with progress_bar("export") as progress:
        count = export_parquet(store, parquet, times=times, progress=progress)
    say(f"wrote {parquet}: {count} utterances, {'with' if times else 'without'} times")


def _times(store: str) -> Callable[[str], tuple[Any, Any] | None] | None:
    """When the positions of a store's utterances are spoken, by the project's alignment; None where there is none."""
    from hkd.api import Project as Corpus

    here = project()
    if not (here.manifest.exists() and here.alignment.exists()):
        return None
    path, stores = here.units / "subword.model", {"store": store}
    subwords = path if path.exists() else None
    try:
        corpus = Corpus(manifest=here.manifest, alignment=here.alignment, stores=stores, subwords=subwords)
    except UserError as error:
        say(f"the positions get no times, since the store is not of this project: {error}")
        return None

    known = {utterance.id for utterance in corpus.manifest}

    def times(utterance_id: str) -> tuple[Any, Any] | None:
        if utterance_id not in known or not corpus.has_labels("store", utterance_id):
            return None
        found = corpus.positions(utterance_id, "store")
        return found.start_s_U, found.stop_s_U

    return times


@app.command()
def push(
    store: Annotated[Path, Argument(help="The store.")],
    url: Annotated[str, Argument(help="s3://, hf://datasets/ORG/NAME, file:// ...")],
    overwrite: Overwrite = False,
) -> None:
    """Copy a verified store to a URL; what is there already is not sent again.

    Examples:

        hkd labels push shards/subword s3://bucket/labels/subword
        hkd labels push shards/subword hf://datasets/ORG/NAME
    """
    from hkd.labels.share import push as push_store

    with progress_bar("push") as progress:
        sent = push_store(store, url, overwrite=overwrite, progress=progress)
    say(f"sent {sent:,} bytes to {url}")


@app.command()
def pull(
    url: Annotated[str, Argument(help="Where the store is.")],
    out: Annotated[Path, Argument(help="The new folder.")],
) -> None:
    """Fetch a store from a URL, check every byte, then put it in its place.

    Examples:

        hkd labels pull s3://bucket/labels/subword shards/subword
    """
    from hkd.labels.share import pull as pull_store

    with progress_bar("pull") as progress:
        spec = pull_store(url, out, progress=progress)
    say(f"wrote {out}: {spec.num_utterances} utterances")
