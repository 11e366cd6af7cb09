"""`hkd prepare`, `hkd manifest`: from a corpus, or from other tools' data, to the manifest, and back to other tools.
`hkd units`: the inventories, and what text becomes in them.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from hkd.cli.common import Json, Overwrite, Set, emit, given, progress_bar, project, say, with_options
from hkd.config import PATHS, PROJECT_FILE, ProjectSettings, build
from hkd.errors import UserError, check_choice
from hkd.files import to_toml, write_bytes

_MANIFEST_HELP = "The manifest: check its audio, split it, write it for other tools."
manifest_app = typer.Typer(no_args_is_help=True, help=_MANIFEST_HELP)


def _splits(utterances: Any) -> dict[str, dict[str, float]]:
    """Per split: utterances, hours, speakers."""
    found: dict[str, dict[str, Any]] = {}
    for u in utterances:
        row = found.setdefault(u.split or "(none)", {"utterances": 0, "hours": 0.0, "speakers": set()})
        row["utterances"] += 1
        row["hours"] += (u.duration or 0.0) / 3600
        row["speakers"] |= {u.speaker} - {None}
    for row in found.values():
        row |= {"hours": round(row["hours"], 4), "speakers": len(row["speakers"])}
    return found


def _render_splits(value: dict[str, Any]) -> str:
    lines = [f"{'split':<10}{'utterances':>12}{'hours':>10}{'speakers':>10}"]
    for name, row in value["splits"].items():
        lines.append(f"{name:<10}{row['utterances']:>12}{row['hours']:>10.3f}{row['speakers']:>10}")
    return "\n".join(lines)


def _columns(given: list[str]) -> dict[str, str]:
    """What → column, of WHAT=NAME. Raises UserError."""
    for pair in given:
        if not all(pair.partition("=")):
            raise UserError(f"--column must be WHAT=NAME, but is '{pair}' instead.")
    return {what: name for what, _, name in (pair.partition("=") for pair in given)}


def _list_corpora(as_json: bool) -> None:
    from hkd.corpora import known_corpora

    names = ("name", "kind", "title", "licence", "source")
    rows = [{name: getattr(card, name) for name in names} for card in known_corpora()]

    def line(row: dict[str, str]) -> str:
        licence = row["licence"].split(";")[0].split(" (")[0]
        return f"{row['name']:<18}{row['kind']:<8}{row['title']} ({licence})"

    emit(rows, as_json, lambda rows: "\n".join(map(line, rows)))


def _prepare_text(
    texts: list[Path], out: Path | None, settings: dict[str, Any], folder: Path, *, overwrite: bool, json_: bool
) -> None:
    from hkd import corpora
    from hkd.pipeline import stages
    from hkd.units.text import text_notes

    here = ProjectSettings.load(folder)
    report, path = corpora.Report(), out or here.path("sentences")
    with progress_bar(f"prepare {path.name}") as bar:
        whole = stages.sentences(here, path, settings, texts=texts, report=report, overwrite=overwrite, progress=bar)
    value = {"manifest": str(path), "sentences": len(whole), **report.to_json()}
    emit(value, json_, lambda value: f"{value['manifest']}: {value['sentences']} sentences, {value['outcome']}")
    for note in (*(f"{line}." for line in report.note_lines()), *text_notes(u.text for u in whole)):
        say(f"Note: {note}")
    command = f"hkd lm train --unit subword --manifest {path} --transcripts cross-fit --name text"
    say(f"Next: {command}, then hkd teacher-dump --text")


def prepare(
    corpus: Annotated[
        str | None, Argument(help="A known corpus (--list), a path, or a name that --from knows.")
    ] = None,
    folder: Annotated[Path, Option(help="The project's folder.")] = Path(),
    from_: Annotated[
        str | None, Option("--from", help="folder, kaldi, nemo, lhotse, hf or hkd; by default guessed.")
    ] = None,
    root: Annotated[
        Path | None, Option(help="The folder where the known corpus, or its archives, lie already.")
    ] = None,
    download: Annotated[bool, Option("--download", help="Fetch archives of more than 1 GB too.")] = False,
    part: Annotated[list[str] | None, Option(help="Only this part of the corpus; may be repeated.")] = None,
    column: Annotated[
        list[str] | None, Option(metavar="WHAT=NAME", help="Which column has text, audio, id; repeatable.")
    ] = None,
    speaker: Annotated[
        str | None, Option(metavar="PATTERN", help="Finds the speaker in an id, such as '^[^_]+'.")
    ] = None,
    text: Annotated[
        list[Path] | None, Option("--text", help="Instead of a corpus: lines of text; may be repeated.")
    ] = None,
    out: Annotated[Path | None, Option(help="With --text: the manifest; default text.jsonl in the project.")] = None,
    skip_bad: Annotated[bool, Option("--skip-bad", help="Leave out what is unusable; left-out.tsv lists it.")] = False,
    list_: Annotated[bool, Option("--list", help="List the known corpora and stop.")] = False,
    assignments: Set = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Set up a project: corpus → manifest.jsonl (with splits) and hkd.toml.

    Text-only corpora become text/NAME.txt, for `hkd lm train --text`. Corpora that are not known by name: their lhotse
    recipe (`hkd prepare vctk --from lhotse --root DIR`). --text makes a manifest of text without sound, for
    `hkd teacher-dump --text`.

    Examples:

        hkd prepare --list
        hkd prepare asterisk && hkd units train && hkd align
        hkd prepare librispeech --part train-clean-100 --part dev-clean --part test-clean --download
        hkd prepare ~/my-recordings --folder my-project
        hkd prepare data/train --from kaldi
        hkd prepare google/fleurs:cy_gb --from hf --column text=raw_transcription --skip-bad
        hkd prepare --text sentences.txt
        hkd prepare --text sentences.txt --out shuffled.jsonl --set shuffle=true
    """
    from hkd import corpora
    from hkd.pipeline import stages
    from hkd.pipeline.settings import PrepareSettings
    from hkd.units.lexicon import coverage
    from hkd.units.text import text_notes
    from hkd.units.tying import load_lexicon

    if list_:
        return _list_corpora(json_)
    if text:
        if corpus is not None:
            remedy = "Prepare the corpus first, then the text."
            raise UserError(f"CORPUS must be left out with --text, but is '{corpus}'. {remedy}")
        of_text = with_options({}, assignments, "sentences")
        return _prepare_text(text, out, of_text, folder, overwrite=overwrite, json_=json_)
    table = with_options(
        {}, assignments, "prepare", corpus=corpus, root=root and str(root), download=download, parts=part,
        columns=_columns(column or []),
        speaker=speaker,
    )  # fmt: skip
    config = build(PrepareSettings, table, where="[prepare]")
    if out is not None:
        raise UserError("--out must go with --text, but there is none. Leave it out.")
    if corpus is None:
        known = "`hkd prepare --list` says which are known; a folder does too."
        raise UserError(f"CORPUS must be given, but is missing. {known}")
    if corpus in corpora.text_corpora() and from_ is None and not Path(corpus).exists():
        out = folder / "text" / f"{corpus}.txt"
        with progress_bar(f"prepare {corpus}") as progress:
            number = corpora.prepare_text(corpus, out, progress=progress)
        return emit({"text": str(out), "sentences": number}, json_, lambda _: f"{out}: {number} sentences")
    here = ProjectSettings.load(folder)
    kind = corpora.kind_of(corpus, from_)
    report = corpora.Report(skip_bad=skip_bad)
    config = replace(config, kind=kind or "")
    with progress_bar(f"prepare {Path(corpus).name}") as progress:
        whole = stages.prepare(folder, config, report=report, overwrite=overwrite, progress=progress)
    settings = folder / PROJECT_FILE
    if not settings.exists():
        write_bytes(settings, to_toml({"prepare": {"corpus": corpus}}).encode())
    path = folder / PATHS["manifest"]
    emit({"manifest": str(path), "kind": kind, "splits": _splits(whole), **report.to_json()}, json_, _render_splits)
    for line in report.note_lines():
        say(f"Note: {line}.")
    if report.outcome:
        say(f"{path} is {report.outcome}.")
    if kind is not None and from_ is None:
        say(f"Read as {corpora.KINDS[kind].title} (--from {kind}).")
    for note in (*text_notes(u.text for u in whole), coverage(load_lexicon(here.units), (u.text for u in whole))):
        say(f"Note: {note}")
    say("Next: hkd units train && hkd align")
    return None


@manifest_app.command()
def check(
    manifest: Annotated[Path | None, Argument(help="The manifest; by default the project's.")] = None,
    json_: Json = False,
) -> None:
    """Read all audio and list what is missing, empty, truncated, silent or wrongly declared; exit 1 if anything is.

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
        problems = check_audio(whole, progress=progress)
    rows = [{"line": lines[place], "id": whole[place].id, "reason": reason} for place, reason in problems.items()]

    def render(value: dict[str, Any]) -> str:
        found = [f"{path}:{row['line']}: utterance '{row['id']}': {row['reason']}" for row in value["problems"]]
        return "\n".join([*found, f"{value['utterances']} utterances, {len(found)} with problems"])

    emit({"utterances": len(whole), "splits": _splits(whole), "problems": rows}, json_, render)
    if problems:
        raise typer.Exit(1)


@manifest_app.command()
def split(
    manifest: Annotated[
        Path | None, Argument(help="The manifest; by default the project's. Rewritten in place.")
    ] = None,
    train_share: Annotated[float, Option("--train", help="Share of the groups that become train.")] = 0.8,
    dev_share: Annotated[float, Option("--dev", help="Share that becomes dev.")] = 0.1,
    test_share: Annotated[float, Option("--test", help="Share that becomes test.")] = 0.1,
    by: Annotated[str, Option(help="What stays together: speaker, recording or text.")] = "speaker",
    json_: Json = False,
) -> None:
    """Set the field `split` by a rule that depends on nothing but the names of speakers, recordings or texts.

    Examples:

        hkd manifest split --by speaker
        hkd manifest split other.jsonl --by text --train 0.9 --dev 0.1 --test 0
    """
    from hkd.corpora import GROUPS
    from hkd.manifest import assign_splits, read, write

    path = manifest or project().require("manifest", "hkd prepare")
    check_choice("--by", by, GROUPS)
    shares = {"train": train_share, "dev": dev_share, "test": test_share}
    whole = assign_splits(read(path), {name: share for name, share in shares.items() if share > 0}, by=GROUPS[by])
    write(path, whole)
    emit({"manifest": str(path), "splits": _splits(whole)}, json_, _render_splits)


@manifest_app.command()
def export(
    out: Annotated[Path, Argument(help="The folder to write to.")],
    to: Annotated[str, Option(help="nemo, lhotse or kaldi.")],
    manifest: Annotated[Path | None, Option(help="The manifest; by default the project's.")] = None,
    split: Annotated[str | None, Option(help="Only this split.")] = None,
    json_: Json = False,
) -> None:
    """Write the manifest for NeMo, lhotse (recordings, supervisions, cuts) or Kaldi, a set of files a split.

    Examples:

        hkd manifest export kaldi-data --to kaldi
        hkd manifest export nemo --to nemo --split train
    """
    from hkd import corpora
    from hkd.manifest import read

    whole = read(manifest or project().require("manifest", "hkd prepare")).split(split)
    with progress_bar(f"export to {to}") as progress:
        written = corpora.export(whole, to, out, progress=progress)
    files = [str(path) for path in written]
    emit({"utterances": len(whole), "files": files}, json_, lambda _: "\n".join(files))


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
    lines = [f"{level:<12}{len(it):>7} units   digest {it.digest[:16]}" for level, it in inventories.items()]
    rows = {level: {"units": len(found), "digest": found.digest} for level, found in inventories.items()}
    emit(rows, json_, lambda _: "\n".join(lines))


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
    shown = {"words": words(text)}
    for level, inventory in inventories.items():
        shown[level] = [inventory.symbols[unit] for unit in units.encode(shown["words"], level)[0].tolist()]
    return emit(shown, json_, lambda _: "\n".join(f"{name:<12}{' '.join(found)}" for name, found in shown.items()))


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
    from hkd.labelling.lm_data import read_lines as lines_of
    from hkd.manifest import read_lines
    from hkd.units.lexicon import Lexicon, lexicon_report
    from hkd.units.tying import load_lexicon

    here = project()
    texts = lines_of(text) if text else (u.text for u in read_lines(here.require("manifest", "hkd prepare")))
    report = lexicon_report(Lexicon(dictionary) if dictionary is not None else load_lexicon(here.units), texts)

    def render(value: dict[str, Any]) -> str:
        some = [f"  {word}: {phones}" for word, phones in list(value["predicted"].items())[:_SHOWN]]
        none = [f"  {word} ({count} times)" for word, count in list(value["unknown"].items())[:_SHOWN]]
        of = f"({value['running_words']} in running text): {value['listed']} in the dictionary"
        silent = f"in {value['unknown_texts']} texts, which phone and senone LMs leave out"
        lines = [f"{value['words']} words {of}", f"{len(value['predicted'])} get a predicted pronunciation", *some]
        return "\n".join([*lines, f"{len(value['unknown'])} have none, {silent}", *none])

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
        tied = f"tied on {value['hours']:g} hours of the train part"
        now = f"{value['utterances']} utterances have them now"
        lines = [f"{value['senones']} senones of {value['phones']} phones, {tied}; {now}"]
        if value["senones"] < asked.num_senones:
            least = f"each must have {asked.min_frames} frames of 10 ms (min_frames)"
            lines.append(f"Fewer than {asked.num_senones}: {least}.")
        return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in value["failed"].items())])

    emit(asdict(report), json_, render)
