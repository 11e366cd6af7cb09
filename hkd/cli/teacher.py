"""`hkd teacher-dump`: a language model's distributions over the transcripts, into a label store."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from hkd.cli.common import Device, Json, Overwrite, Set, emit, given, progress_bar, project, say, with_options
from hkd.config import Project
from hkd.errors import HkdError, UserError
from hkd.remote import location
from hkd.teachers.load import KINDS, check_source

Text = str | None
WHO_DOES_IT = ("--executor", "--ray-address", "--workers", "--rank", "--world-size")


def teacher_dump(
    lm: Annotated[Text, Option(help=f"{', '.join(kind.help for kind in KINDS.values())}.")] = None,
    unit: Annotated[Text, Option(help="Level: senone, monophone, character or subword. [subword]")] = None,
    name: Annotated[Text, Option(help="Name of the store below the labels folder; by default the level.")] = None,
    out: Annotated[Text, Option(help="The store's folder or URL (s3://...), instead of shards/NAME.")] = None,
    manifest: Annotated[Path | None, Option(help="Manifest; by default the project's.")] = None,
    alignment: Annotated[Path | None, Option(help="Alignment; by default the project's.")] = None,
    text: Annotated[bool, Option("--text", help="Label text without sound, into text-shards/NAME.")] = False,
    split: Annotated[Text, Option(help="One split of the manifest; by default all.")] = None,
    k: Annotated[int | None, Option("--k", "-k", help="Units kept a position. [16]")] = None,
    case: Annotated[Text, Option(help="lower, sentence, upper or auto. [auto]")] = None,
    codec: Annotated[Text, Option(help="grid or f16. [grid]")] = None,
    utterances_per_shard: Annotated[int | None, Option(help="Utterances a shard: the unit of work. [512]")] = None,
    executor: Annotated[Text, Option(help="local, or ray: the workers of a Ray cluster. [local]")] = None,
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
    emit(report.to_json(), as_json, _render)
    if report.left_out:
        for utterance, why in list(report.left_out.items())[:20]:
            say(f"left out: {utterance}: {why}")
        raise HkdError(
            f"{len(report.left_out)} of {report.utterances} utterances could not be labelled and have no positions."
        )


def _lm_wanted(here: Project, unit: str) -> str:
    trained = (
        sorted(path.name for path in here.lm.iterdir() if (path / "config.json").is_file()) if here.lm.is_dir() else []
    )
    if unit == "subword":
        return "--lm must name a language model, but is missing. Give --lm bert-large (a hub name, alias or folder)."
    hint = f" or --lm {trained[0]}" if trained else ""
    trigram = " or take --lm phone-trigram" if unit == "monophone" else ""
    return f"--lm must name a {unit} LM, but is missing. Train one with `hkd lm train --unit {unit}`{hint}{trigram}."


def _command(words: Sequence[str]) -> str:
    """The command as the store's card shows it: without the options that only say who does the work, which must leave
    no trace."""
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


def _render(report: dict[str, Any]) -> str:
    if not report["shards_done"]:
        done = f"{report['store']}: all {report['shards']} shards are there and match; nothing to do."
    else:
        done = (
            f"{report['store']}: {report['positions']:,} positions of {report['utterances']:,} utterances by "
            f"{report['teacher']} "
            f"in {report['seconds']['total']:.1f} s ({report['positions_per_s']:.0f} positions/s)."
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
            f"{quality['top1_hit_rate']:.1%} of "
            f"the positions and among the kept ones at {quality['topk_hit_rate']:.1%}; {quality['tail_mass']:.1%} of "
            f"the probability lies "
            f"outside these. More: hkd labels info {report['store']}"
        )
    if report["go_on"]:
        lines.append(f"Go on with: {report['go_on']}")
    return "\n".join(lines)
