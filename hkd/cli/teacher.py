"""Stage one: `hkd align` (when each word, phone and senone was spoken), `hkd lm` (unit language models), and
`hkd teacher-dump` (a language model's distributions over the transcripts, into a label store).
"""

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from hkd.cli.common import Device, Json, Overwrite, Set, emit, given, progress_bar, project, say, with_options
from hkd.config import ProjectSettings
from hkd.errors import HkdError, UserError, some
from hkd.remote import location
from hkd.teachers.load import KINDS, check_source

LmTexts = Annotated[
    list[Path] | None, Option("--text", help="Text, plain or .gz, a sentence a line; may be repeated. [text/]")
]
WHO_DOES_IT = ("--executor", "--ray-address", "--workers", "--rank", "--world-size")


def teacher_dump(
    lm: Annotated[str | None, Option(help=f"{', '.join(kind.help for kind in KINDS.values())}.")] = None,
    unit: Annotated[str | None, Option(help="Level: senone, monophone, character or subword. [subword]")] = None,
    name: Annotated[str | None, Option(help="Name of the store below the labels folder; by default the level.")] = None,
    out: Annotated[str | None, Option(help="The store's folder or URL (s3://...), instead of shards/NAME.")] = None,
    manifest: Annotated[Path | None, Option(help="Manifest; by default the project's.")] = None,
    alignment: Annotated[Path | None, Option(help="Alignment; by default the project's.")] = None,
    text: Annotated[bool, Option("--text", help="Label text without sound, into text-shards/NAME.")] = False,
    split: Annotated[str | None, Option(help="One split of the manifest; by default all.")] = None,
    k: Annotated[int | None, Option("--k", "-k", help="Units kept a position. [16]")] = None,
    case: Annotated[str | None, Option(help="lower, sentence, upper or auto. [auto]")] = None,
    codec: Annotated[str | None, Option(help="grid or f16. [grid]")] = None,
    utterances_per_shard: Annotated[int | None, Option(help="Utterances a shard: the unit of work. [512]")] = None,
    executor: Annotated[str | None, Option(help="local, or ray: the workers of a Ray cluster. [local]")] = None,
    workers: Annotated[int | None, Option(help="Ray: how many teachers at once. [by GPUs]")] = None,
    rank: Annotated[int, Option(help="This process's number in a job array.")] = 0,
    world_size: Annotated[int, Option(help="Processes of the job array.")] = 1,
    assignments: Set = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write what a language model predicts over your transcripts to a label store, once.

    Settings come from the table [dump.NAME] of hkd.toml; options win. Stopped at any time, the same command goes on.

    Examples:

        hkd teacher-dump --lm bert-large --unit subword
        hkd teacher-dump --lm phone-trigram --unit monophone
        hkd teacher-dump --lm lm/senone --unit senone --k 32
        hkd teacher-dump --lm ./my-bert --name bert-wide --set teacher.mask_every=7 --set teacher.context=256
        hkd teacher-dump --text --lm lm/text-subword --unit subword
    """
    here = project()
    table = here.table(f"dump.{name or unit or 'subword'}")
    unit, lm = unit or table.get("unit", "subword"), lm or table.get("lm")
    if lm is None:
        raise UserError(_lm_wanted(here, unit))
    if manifest is None and not text:  # said before the slow imports; which text it is, the stage knows
        manifest = here.require("manifest", "hkd prepare CORPUS")
    lm = str(here.lm / lm) if (here.lm / lm / "config.json").is_file() else lm
    check_source(lm)
    from hkd.pipeline import stages

    table = with_options(
        table, assignments, f"dump.{name or unit}", lm=lm, unit=unit, name=name, split=split, k=k, codec=codec,
        device=device,
        utterances_per_shard=utterances_per_shard, executor=executor, workers=workers, teacher=given(case=case),
    )  # fmt: skip
    with progress_bar(f"labels {name or unit}") as progress:
        report = stages.dump(
            here, table, name=name or "", out=location(out) if out else None, manifest=manifest, alignment=alignment,
            is_text=text, rank=rank, world_size=world_size, command=_command(sys.argv[1:]), overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    emit(report.to_json(), as_json, _render_dump)
    if report.left_out:
        for utterance, why in list(report.left_out.items())[:20]:
            say(f"left out: {utterance}: {why}")
        lost = f"{len(report.left_out)} of {report.utterances} utterances"
        raise HkdError(f"{lost} could not be labelled and have no positions.")


def _lm_wanted(here: ProjectSettings, unit: str) -> str:
    trained = sorted(path.parent.name for path in here.lm.glob("*/config.json") if path.is_file())
    if unit == "subword":
        return "--lm must name a language model, but is missing. Give --lm bert-large (a hub name, alias or folder)."
    hint = f" or --lm {trained[0]}" if trained else ""
    trigram = " or take --lm phone-trigram" if unit == "monophone" else ""
    return f"--lm must name a {unit} LM, but is missing. Train one with `hkd lm train --unit {unit}`{hint}{trigram}."


def _command(words: Sequence[str]) -> str:
    """The command as the store's card shows it: without the options that say who does the work and leave no trace."""
    from hkd.pipeline.settings import WHO_LABELS

    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        is_pair = not equals and name in ("--set", *WHO_DOES_IT)
        value = next(rest, "") if is_pair else value
        setting = value.partition("=")[0].rpartition(".")[2] if name == "--set" else ""
        if name not in WHO_DOES_IT and setting not in WHO_LABELS:
            kept += [word, value] if is_pair else [word]
    return shlex.join(["hkd", *kept])


def _render_dump(report: dict[str, Any]) -> str:
    if not report["shards_done"]:
        done = f"{report['store']}: all {report['shards']} shards are there and match; nothing to do."
    else:
        done = (
            f"{report['store']}: {report['positions']:,} positions of {report['utterances']:,} utterances by "
            f"{report['teacher']} in {report['seconds']['total']:.1f} s ({report['positions_per_s']:.0f} positions/s)."
        )
        if report["scored_positions"] < report["positions"]:
            done += f" {report['scored_positions']:,} were scored; the others repeat their sentences."
    lines = [done]
    if report["shards_missing"]:
        lines.append(f"{report['shards_missing']} shards are still missing: other ranks write them.")
    if report["workers_lost"]:
        lines.append(f"{report['workers_lost']} workers ended before their shard was done; others did it again.")
    quality = report["quality"] or {}
    if quality.get("perplexity") is not None:
        unigram = quality.get("unigram_perplexity")
        beside = f" (of a unigram: {unigram:.4g})" if unigram is not None else ""
        lines.append(
            f"Quality: perplexity {quality['perplexity']:.4g}{beside}; the spoken unit is the likeliest at "
            f"{quality['top1_hit_rate']:.1%} of the positions and among the kept ones at "
            f"{quality['topk_hit_rate']:.1%}; {quality['tail_mass']:.1%} of the probability lies outside these. "
            f"More: hkd labels info {report['store']}"
        )
    if report["go_on"]:
        lines.append(f"Go on with: {report['go_on']}")
    return "\n".join(lines)


lm_app = typer.Typer(no_args_is_help=True, help="Language models over senones, monophones, characters or subwords.")


@lm_app.command()
def train(
    unit: Annotated[str, Option(help="Level: senone, monophone, character or subword.")],
    text: LmTexts = None,
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
            here, name, table, texts=text or (), manifest=manifest, device=device or "auto", overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    say(f"{here.lm / name} is done.")
    emit(asdict(report), json_, render)


@lm_app.command()
def words(
    out: Annotated[Path | None, Option(help="The ARPA file; by default words.arpa in the folder of the LMs.")] = None,
    text: LmTexts = None,
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


@lm_app.command()
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


_SHOWN = 20


def align(
    path: Annotated[
        str | None, Argument(help="The manifest; with --from, the tool's folder or file, or CTC model.")
    ] = None,
    from_: Annotated[
        str | None, Option("--from", help="pocketsphinx, kaldi, mfa, ctm, ctc, timit. [pocketsphinx]")
    ] = None,
    manifest: Annotated[Path | None, Option(help="The manifest; by default the project's.")] = None,
    out: Annotated[Path | None, Option(help="Where to write; by default the project's alignment.")] = None,
    lexicon: Annotated[Path | None, Option(help="A dictionary (word phones); by default what was aligned.")] = None,
    stress: Annotated[bool | None, Option("--stress/--no-stress", help="Keep stress marks (AH0). [--stress]")] = None,
    jobs: Annotated[int | None, Option(help="pocketsphinx: processes; 0: one a core.")] = None,
    min_score: Annotated[float | None, Option(help="Mean score a frame that a transcript must have.")] = None,
    assignments: Set = None,
    device: Device = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Align words, phones and senones to 10 ms frames with pocketsphinx, or take another tool's alignment.

    Utterances that cannot be aligned are listed with reasons and left out of what follows. A killed run goes on where
    it was. An alignment of another tool brings its phones and senones along: `hkd units` and `hkd lm` use them from
    then on. Settings come from the table [align] of hkd.toml; options win.

    Examples:

        hkd align
        hkd align other/manifest.jsonl --out other/alignment.arrow --jobs 8
        hkd align --from kaldi exp/tri3_ali --lexicon data/local/dict/lexicon.txt
        hkd align --from mfa aligned/ --lexicon english_us_arpa.dict --no-stress
        hkd align --from ctm words.ctm --set phones=phones.ctm
        hkd align --from ctc facebook/wav2vec2-base-960h --lexicon cmudict.dict
        hkd align --from timit /corpora/TIMIT
    """
    from hkd.manifest import read
    from hkd.pipeline import stages
    from hkd.pipeline.settings import POCKETSPHINX, aligner_of
    from hkd.units.lexicon import Lexicon, coverage
    from hkd.units.tying import load_lexicon

    here = project()
    options = {"stress": stress, "jobs": jobs, "min_score": min_score, "device": device}
    over = with_options({}, assignments, "align", lexicon=lexicon and str(lexicon), **options)
    before = here.table("align").get("from", POCKETSPHINX)
    tool = from_ or over.get("from", before)
    if path is not None and tool != POCKETSPHINX:
        over["path"] = path
    # another tool has settings of its own
    table = {**(here.table("align") if tool == before else {}), **over, "from": tool}
    aligner = aligner_of(table, "align")
    logging.getLogger("hkd.align.fit").setLevel(logging.ERROR)  # the report lists what could not be aligned
    given_path = Path(path) if path is not None and tool == POCKETSPHINX else manifest
    source = given_path or here.require("manifest", "hkd prepare")
    target = out or here.alignment
    with progress_bar("align" if tool == POCKETSPHINX else f"align from {tool}") as progress:
        report = stages.align(here, aligner, manifest=source, out=out, overwrite=overwrite, progress=progress)
    if out is None:
        stages.adopt_units(here, aligner, overwrite=overwrite)
    value = {**asdict(report), "hours": report.seconds_of_audio / 3600}
    emit(value, json_, lambda value: _render_alignment(value, target))
    dictionary = Lexicon(here.folder / str(table["lexicon"])) if table.get("lexicon") else load_lexicon(here.units)
    say(coverage(dictionary, (u.text for u in read(source))))


def _render_alignment(value: dict[str, Any], target: Path) -> str:
    total = value["kept"] + len(value["failed"])
    share = f"{value['kept']} of {total} utterances ({value['kept'] / total:.1%})"
    lines = [f"{target}: {share}, {value['hours']:.3f} hours"]
    if value["real_time_factor"]:
        lines[0] += f", real-time factor {value['real_time_factor']:.3f} (one core)"
    if value["predicted_words"]:
        lines.append(f"{len(value['predicted_words'])} words are in no dictionary and got a predicted pronunciation")
    lines += [f"note: {note}" for note in value["notes"]]
    if value["unused"]:
        lines.append(
            f"{len(value['unused'])} that were aligned belong to no utterance of the manifest: {some(value['unused'])}"
        )
    lines += [f"  {name}: {reason}" for name, reason in list(value["failed"].items())[:_SHOWN]]
    if len(value["failed"]) > _SHOWN:
        lines.append(f"  and {len(value['failed']) - _SHOWN} more (--json lists all)")
    return "\n".join(lines)
