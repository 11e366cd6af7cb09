"""`hkd prepare`, `hkd align`, `hkd units`, `hkd manifest`: from a corpus to what teachers and students start from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hkd.cli.common import emit, progress_bar, project, say

units_app = typer.Typer(no_args_is_help=True, help="Unit inventories: senones, monophones, subwords.")
manifest_app = typer.Typer(no_args_is_help=True, help="The manifest: check its audio, split it.")

_Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
_Overwrite = Annotated[bool, typer.Option(help="Replace what is there and was made of something else.")]
_SHOWN = 20


def _splits(utterances: Any) -> dict[str, dict[str, float]]:
    """Per split: utterances, hours, speakers."""
    found: dict[str, dict[str, Any]] = {}
    for u in utterances:
        row = found.setdefault(u.split or "(none)", {"utterances": 0, "hours": 0.0, "speakers": set()})
        row["utterances"] += 1
        row["hours"] += (u.duration or 0.0) / 3600
        row["speakers"].add(u.speaker)
    return {name: {**row, "hours": round(row["hours"], 4), "speakers": len(row["speakers"])} for name, row in found.items()}


def _render_splits(value: dict[str, Any]) -> str:
    lines = [f"{'split':<10}{'utterances':>12}{'hours':>10}{'speakers':>10}"]
    for name, row in value["splits"].items():
        lines.append(f"{name:<10}{row['utterances']:>12}{row['hours']:>10.3f}{row['speakers']:>10}")
    return "\n".join(lines)


def _list_corpora(as_json: bool) -> None:
    from hkd.corpora import known_corpora

    rows = [{"name": c.name, "kind": c.kind, "title": c.title, "licence": c.licence, "source": c.source} for c in known_corpora()]

    def render(value: list[dict[str, str]]) -> str:
        return "\n".join(f"{row['name']:<18}{row['kind']:<8}{row['title']} ({row['licence'].split(';')[0]})" for row in value)

    emit(rows, as_json, render)


def prepare(
    corpus: Annotated[
        str | None, typer.Argument(help="A known corpus, a folder (audio + .txt, or Kaldi's), a .tsv or a .jsonl.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="The project's folder.")] = Path(),
    cache: Annotated[
        Path | None, typer.Option(envvar="HKD_CACHE", help="Where downloads are kept; default ~/.cache/hkd.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="A mirror that has the corpus' archives.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the known corpora and stop.")] = False,
    overwrite: _Overwrite = False,
    json_: _Json = False,
) -> None:
    """Set up a project: corpus → manifest.jsonl (with splits) and hkd.toml.

    Text-only corpora become text/NAME.txt, for `hkd lm train --text`.

    Examples:

        hkd prepare --list

        hkd prepare asterisk && hkd units train && hkd align

        hkd prepare ~/my-recordings --folder my-project
    """
    from hkd import corpora
    from hkd.config import PATHS, PROJECT_FILE, to_toml
    from hkd.corpora.registry import TEXT
    from hkd.errors import UserError
    from hkd.files import write_bytes

    if list_:
        return _list_corpora(json_)
    if corpus is None:
        raise UserError("CORPUS must be given, but is missing. `hkd prepare --list` says which are known; a folder does too.")
    if corpus in TEXT and not Path(corpus).exists():
        out = folder / "text" / f"{corpus}.txt"
        with progress_bar(f"prepare {corpus}") as progress:
            number = corpora.prepare_text(corpus, out, cache=cache, progress=progress)
        return emit(
            {"text": str(out), "sentences": number}, json_, lambda value: f"{value['text']}: {value['sentences']} sentences"
        )
    with progress_bar(f"prepare {Path(corpus).name}") as progress:
        whole = corpora.prepare(corpus, folder, cache=cache, base_url=base_url, overwrite=overwrite, progress=progress)
    settings = folder / PROJECT_FILE
    if not settings.exists():
        write_bytes(settings, to_toml({"prepare": {"corpus": corpus}}).encode())
    emit({"manifest": str(folder / PATHS["manifest"]), "splits": _splits(whole)}, json_, _render_splits)
    say("Next: hkd units train && hkd align")
    return None


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


@manifest_app.command()
def check(
    manifest: Annotated[Path | None, typer.Argument(help="The manifest; by default the project's.")] = None,
    json_: _Json = False,
) -> None:
    """Read every utterance's audio and list what is missing, empty, truncated, silent or wrongly declared. Exit 1 if anything is.

    Examples:

        hkd manifest check

        hkd manifest check other.jsonl --json
    """
    from hkd.audio import check_audio
    from hkd.manifest import numbered_lines, read

    path = manifest or project().require("manifest", "hkd prepare")
    whole = read(path)
    lines = [number for number, _ in numbered_lines(path)]
    with progress_bar("check") as progress:
        problems = check_audio(whole, lines=lines, progress=progress)
    rows = [{"line": p.line, "id": p.id, "reason": p.reason} for p in problems]

    def render(value: dict[str, Any]) -> str:
        found = [f"{path}:{row['line']}: utterance '{row['id']}': {row['reason']}" for row in value["problems"]]
        return "\n".join([*found, f"{value['utterances']} utterances, {len(found)} with problems"])

    emit({"utterances": len(whole), "splits": _splits(whole), "problems": rows}, json_, render)
    if problems:
        raise typer.Exit(1)


@manifest_app.command()
def split(
    manifest: Annotated[Path | None, typer.Argument(help="The manifest; by default the project's. Rewritten in place.")] = None,
    train_share: Annotated[float, typer.Option("--train", help="Share of the groups that become train.")] = 0.8,
    dev_share: Annotated[float, typer.Option("--dev", help="Share that becomes dev.")] = 0.1,
    test_share: Annotated[float, typer.Option("--test", help="Share that becomes test.")] = 0.1,
    by: Annotated[str, typer.Option(help="What stays together: speaker, recording or text.")] = "speaker",
    json_: _Json = False,
) -> None:
    """Set the field `split` by a rule that depends on nothing but the names of speakers, recordings or texts.

    Examples:

        hkd manifest split --by speaker

        hkd manifest split other.jsonl --by text --train 0.9 --dev 0.1 --test 0
    """
    from hkd.corpora import GROUPS
    from hkd.errors import UserError
    from hkd.manifest import assign_splits, read, write

    path = manifest or project().require("manifest", "hkd prepare")
    if by not in GROUPS:
        raise UserError(f"--by must be one of {', '.join(GROUPS)}, but is '{by}' instead.")
    shares = {"train": train_share, "dev": dev_share, "test": test_share}
    whole = assign_splits(read(path), {name: share for name, share in shares.items() if share > 0}, by=GROUPS[by])
    write(path, whole)
    emit({"manifest": str(path), "splits": _splits(whole)}, json_, _render_splits)
