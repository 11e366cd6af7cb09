"""`hkd align`: when each word, phone and senone was spoken, by pocketsphinx or from other tools' files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hkd.cli.common import emit, progress_bar, project, say

_SHOWN = 20


def align(
    path: Annotated[
        str | None,
        typer.Argument(
            help="A manifest (pocketsphinx; default the project's); with --from, the tool's folder or file, or the CTC model."
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="pocketsphinx, kaldi, mfa, ctm, ctc, or timit. [pocketsphinx]", show_default=False),
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="The manifest; by default the project's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default the project's alignment.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="pocketsphinx: an acoustic model's folder; kaldi: where final.mdl and tree lie.")
    ] = None,
    lang: Annotated[Path | None, typer.Option(help="kaldi: the lang folder, for phones.txt.")] = None,
    words: Annotated[
        Path | None, typer.Option(help="kaldi: a CTM of words, where phones do not say their place in the word.")
    ] = None,
    phones: Annotated[Path | None, typer.Option(help="ctm: a second CTM, of phones.")] = None,
    lexicon: Annotated[
        Path | None,
        typer.Option(help="A dictionary (word phones): MFA's, Kaldi's lexicon.txt, CMU's. Default: what was aligned."),
    ] = None,
    stress: Annotated[
        bool | None, typer.Option("--stress/--no-stress", help="Keep ARPAbet's stress marks (AH0, AH1). [--stress]")
    ] = None,
    silence: Annotated[
        list[str] | None, typer.Option(help="A phone that is silence or noise, besides SIL, SPN, NSN; repeatable.")
    ] = None,
    subsampling: Annotated[
        int | None, typer.Option(help="kaldi: frames of 10 ms a frame; default as the model's folder says.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="pocketsphinx: processes; 0: one a core.")] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Mean score a frame below which a transcript counts as not what was spoken.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="ctc: auto, cpu or cuda. [auto]")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there and was made of something else.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
) -> None:
    """Align words, phones and senones to 10 ms frames with pocketsphinx, or take another tool's alignment.

    Utterances that cannot be aligned are listed with reasons and left out of what follows. A killed run goes on where it was.
    An alignment of another tool brings its phones and senones along: `hkd units` and `hkd lm` use them from then on.
    Settings come from the table [align] of hkd.toml; options win.

    Examples:

        hkd align

        hkd align other/manifest.jsonl --out other/alignment.arrow --jobs 8

        hkd align --from kaldi exp/tri3_ali --lexicon data/local/dict/lexicon.txt

        hkd align --from mfa aligned/ --lexicon english_us_arpa.dict --no-stress

        hkd align --from ctm words.ctm --phones phones.ctm

        hkd align --from ctc facebook/wav2vec2-base-960h --lexicon cmudict.dict

        hkd align --from timit /corpora/TIMIT
    """
    from dataclasses import asdict

    from hkd.manifest import read
    from hkd.pipeline import stages
    from hkd.pipeline.settings import POCKETSPHINX, aligner_of
    from hkd.units.lexicon import Lexicon, coverage
    from hkd.units.tying import load_lexicon

    here = project()
    table = here.table("align")
    tool = from_ or table.get("from", POCKETSPHINX)
    if tool != table.get("from", POCKETSPHINX):
        table = {}  # another tool's settings
    given: dict[str, Any] = {
        "from": tool, "path": None if tool == POCKETSPHINX else path, "model": model, "lang": lang, "words": words, "phones": phones,
        "lexicon": lexicon, "stress": stress, "silence": silence, "subsampling": subsampling, "jobs": jobs, "min_score": min_score,
        "device": device,
    }  # fmt: skip
    told = {name: str(value) if isinstance(value, Path) else value for name, value in given.items() if value is not None}
    aligner = aligner_of({**table, **told}, "align")
    source = Path(path) if path is not None and tool == POCKETSPHINX else manifest or here.require("manifest", "hkd prepare")
    target = out or here.alignment
    with progress_bar("align" if tool == POCKETSPHINX else f"align from {tool}") as progress:
        report = stages.align(here, aligner, manifest=source, out=out, overwrite=overwrite, progress=progress)
    if out is None:
        stages.adopt_units(here, aligner, overwrite=overwrite)
    emit({**asdict(report), "hours": report.seconds_of_audio / 3600}, json_, lambda value: _render(value, target))
    given_lexicon = told.get("lexicon") or table.get("lexicon")
    dictionary = Lexicon(here.folder / str(given_lexicon)) if given_lexicon else load_lexicon(here.units)
    say(coverage(dictionary, (u.text for u in read(source))))


def _render(value: dict[str, Any], target: Path) -> str:
    total = value["kept"] + len(value["failed"])
    lines = [f"{target}: {value['kept']} of {total} utterances ({value['kept'] / total:.1%}), {value['hours']:.3f} hours"]
    if value["real_time_factor"]:
        lines[0] += f", real-time factor {value['real_time_factor']:.3f} (one core)"
    if value["predicted_words"]:
        lines.append(f"{len(value['predicted_words'])} words are in no dictionary and got a predicted pronunciation")
    lines += [f"note: {note}" for note in value["notes"]]
    if value["unused"]:
        some = ", ".join(value["unused"][:3])
        lines.append(f"{len(value['unused'])} that were aligned belong to no utterance of the manifest: {some}")
    lines += [f"  {name}: {reason}" for name, reason in list(value["failed"].items())[:_SHOWN]]
    if len(value["failed"]) > _SHOWN:
        lines.append(f"  and {len(value['failed']) - _SHOWN} more (--json lists all)")
    return "\n".join(lines)
