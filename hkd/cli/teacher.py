"""`hkd teacher-dump`: a language model's distributions over the transcripts, into a label store."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hkd.cli.common import emit, given, progress_bar, project, say
from hkd.config import Project, merge
from hkd.errors import HkdError, UserError
from hkd.remote import location
from hkd.teachers.load import KINDS, check_source

Text = str | None
WHO_DOES_IT = ("--executor", "--ray-address", "--workers", "--rank", "--world-size")


def teacher_dump(
    lm: Annotated[Text, typer.Option(help=f"{', '.join(kind.help for kind in KINDS.values())}.")] = None,
    unit: Annotated[
        Text, typer.Option(help="Level: senone, monophone, character or subword. [subword]", show_default=False)
    ] = None,
    name: Annotated[Text, typer.Option(help="Name of the store below the labels folder; by default the level.")] = None,
    out: Annotated[Text, typer.Option(help="The store's folder or URL (s3://...), instead of shards/NAME.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Manifest; by default the project's.")] = None,
    alignment: Annotated[
        Path | None, typer.Option(help="Alignment, for senones and monophones; by default the project's.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Label text without sound: text.jsonl, or --manifest, into text-shards/NAME.")
    ] = False,
    split: Annotated[Text, typer.Option(help="One split of the manifest; by default all.")] = None,
    k: Annotated[int | None, typer.Option("--k", "-k", help="Units kept a position. [16]")] = None,
    temperatures: Annotated[Text, typer.Option(help="Extra temperatures, as 2,3,4.")] = None,
    select: Annotated[Text, typer.Option(help="topk, or sample: k draws from the teacher. [topk]")] = None,
    mask_every: Annotated[int | None, typer.Option(help="Masked LMs: mask every m-th position together; 0 is exact. [0]")] = None,
    context: Annotated[
        Text, typer.Option(help="utterance, or tokens of a window that neighbouring utterances fill. [utterance]")
    ] = None,
    case: Annotated[Text, typer.Option(help="lower, sentence, upper or auto. [auto]")] = None,
    final_mark: Annotated[Text, typer.Option(help="Punctuation after the last word, as context only, such as '.'.")] = None,
    project_to: Annotated[
        Text,
        typer.Option(
            "--project", help="Labels for the student's pieces, for interpolation: units/subword.json.", show_default=False
        ),
    ] = None,
    look_ahead: Annotated[int | None, typer.Option(help="Projected: tokens a position that are looked behind. [4]")] = None,
    codec: Annotated[Text, typer.Option(help="grid or f16. [grid]")] = None,
    backend: Annotated[Text, typer.Option(help="arrow or zarr. [arrow]")] = None,
    utterances_per_shard: Annotated[int | None, typer.Option(help="Utterances a shard: the unit of work. [512]")] = None,
    device: Annotated[Text, typer.Option(help="auto, cpu, cuda or mps. [auto]")] = None,
    precision: Annotated[Text, typer.Option(help="auto, fp32 or bf16. [auto]")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile the model.")] = False,
    token_budget: Annotated[int | None, typer.Option(help="Tokens of a batch; by default by device.")] = None,
    executor: Annotated[
        Text, typer.Option(help="local: this process; ray: the workers of a Ray cluster. The labels are the same. [local]")
    ] = None,
    ray_address: Annotated[
        Text,
        typer.Option(
            help="Ray: auto, HOST:PORT, ray://HOST:PORT, or local: a cluster of this machine. [RAY_ADDRESS, else local]"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray: how many teachers at once. [one a GPU, without GPUs one a node]")
    ] = None,
    rank: Annotated[int, typer.Option(help="This process's number in a job array.")] = 0,
    world_size: Annotated[int, typer.Option(help="Processes of the job array.")] = 1,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="List utterances that cannot be labelled, and go on (exit 1).")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a label store that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Write what a language model predicts over your transcripts to a label store, once.

    Settings come from the table [dump.NAME] of hkd.toml; options win. Stopped at any time, the same command goes on.

    Examples:

        hkd teacher-dump --lm bert-large --unit subword

        hkd teacher-dump --lm phone-trigram --unit monophone

        hkd teacher-dump --lm lm/senone --unit senone --k 32

        hkd teacher-dump --lm ./my-bert --mask-every 7 --context 256 --name bert-wide

        hkd teacher-dump --text --lm lm/text-subword --unit subword
    """
    here = project()
    table = here.table(f"dump.{name or unit or 'subword'}")
    unit, lm = unit or table.get("unit", "subword"), lm or table.get("lm")
    if lm is None:
        raise UserError(_lm_wanted(here, unit))
    if manifest is None:
        manifest = (
            here.require("sentences", "hkd prepare --text FILE") if text else here.require("manifest", "hkd prepare CORPUS")
        )
    lm = str(here.lm / lm) if (here.lm / lm / "config.json").is_file() else lm
    check_source(lm)
    from hkd.pipeline import stages

    asked = given(
        mask_every=mask_every, context=_context(context), case=case, final_mark=final_mark, project=project_to, look_ahead=look_ahead,
        token_budget=token_budget, compile=compile_ or None,
    )  # fmt: skip
    options = given(
        lm=lm, unit=unit, name=name, split=split, k=k, temperatures=_numbers(temperatures), selection=select, codec=codec, backend=backend,
        utterances_per_shard=utterances_per_shard, keep_going=keep_going or None, device=device, precision=precision, executor=executor,
        ray_address=ray_address, workers=workers, teacher=asked,
    )  # fmt: skip
    with progress_bar(f"labels {name or unit}") as progress:
        report = stages.dump(
            here, merge(table, options), name=name or "", out=location(out) if out else None, manifest=manifest, alignment=alignment,
            is_text=text, rank=rank, world_size=world_size, command=_command(sys.argv[1:]), overwrite=overwrite, progress=progress,
        )  # fmt: skip
    emit(report.to_json(), as_json, _render)
    if report.left_out:
        for utterance, why in list(report.left_out.items())[:20]:
            say(f"left out: {utterance}: {why}")
        raise HkdError(f"{len(report.left_out)} of {report.utterances} utterances could not be labelled and have no positions.")


def _lm_wanted(here: Project, unit: str) -> str:
    trained = sorted(path.name for path in here.lm.iterdir() if (path / "config.json").is_file()) if here.lm.is_dir() else []
    if unit == "subword":
        return "--lm must name a language model, but is missing. Give --lm bert-large (a hub name, alias or folder)."
    hint = f" or --lm {trained[0]}" if trained else ""
    trigram = " or take --lm phone-trigram" if unit == "monophone" else ""
    return f"--lm must name a {unit} LM, but is missing. Train one with `hkd lm train --unit {unit}`{hint}{trigram}."


def _command(words: Sequence[str]) -> str:
    """The command as the store's card shows it: without the options that only say who does the work, which must leave no trace."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name not in WHO_DOES_IT:
            kept.append(word)
        elif not equals:
            next(rest, None)
    return shlex.join(["hkd", *kept])


def _numbers(text: Text) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--temperatures must be numbers with commas between, but is '{text}' instead.") from None


def _context(text: Text) -> int | None:
    if text is None:
        return None
    if text == "utterance":
        return 0
    if not text.isdigit():
        raise UserError(f"--context must be 'utterance' or a number of tokens, but is '{text}' instead.")
    return int(text)


def _render(report: dict[str, Any]) -> str:
    if not report["shards_done"]:
        done = f"{report['store']}: all {report['shards']} shards are there and match; nothing to do."
    else:
        share = {name: value for name, value in report["seconds"].items() if name != "total"}
        phases = ", ".join(f"{name} {value:.1f} s" for name, value in share.items())
        done = (
            f"{report['store']}: {report['positions']:,} positions of {report['utterances']:,} utterances by {report['teacher']} "
            f"in {report['seconds']['total']:.1f} s ({report['positions_per_s']:.0f} positions/s; {phases}; "
            f"{report['scored_positions']:,} scored, the others repeat)."
        )
    lines = [done]
    if report["without_units"]:
        lines.append(f"{report['without_units']} utterances have no alignment and no labels.")
    if report["shards_missing"]:
        lines.append(f"{report['shards_missing']} shards are still missing: other ranks write them.")
    if report["workers_lost"]:
        lines.append(f"{report['workers_lost']} workers ended before their shard was done; others did it again.")
    figures = report["quality"] or {}
    shown = {key: value for key, value in figures.items() if value is not None}
    if shown:
        lines.append(
            "  ".join(
                f"{key.replace('_', ' ')} {value if isinstance(value, str) else format(value, '.4g')}"
                for key, value in shown.items()
            )
        )
    if report["go_on"]:
        lines.append(f"Go on with: {report['go_on']}")
    return "\n".join(lines)
