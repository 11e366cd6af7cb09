"""`hkd align`: when each word, phone and senone was spoken, by pocketsphinx or from other tools' files."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from hkd.cli.common import Device, Json, Overwrite, Set, emit, progress_bar, project, say, with_options

_SHOWN = 20


def align(
    path: Annotated[
        str | None, Argument(help="The manifest; with --from, the tool's folder or file, or the CTC model.")
    ] = None,
    from_: Annotated[
        str | None, Option("--from", help="pocketsphinx, kaldi, mfa, ctm, ctc, or timit. [pocketsphinx]")
    ] = None,
    manifest: Annotated[Path | None, Option(help="The manifest; by default the project's.")] = None,
    out: Annotated[Path | None, Option(help="Where to write; by default the project's alignment.")] = None,
    lexicon: Annotated[Path | None, Option(help="A dictionary (word phones); by default what was aligned.")] = None,
    stress: Annotated[
        bool | None, Option("--stress/--no-stress", help="Keep stress marks (AH0, AH1). [--stress]")
    ] = None,
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
    over = with_options(
        {},
        assignments,
        "align",
        lexicon=lexicon and str(lexicon),
        stress=stress,
        jobs=jobs,
        min_score=min_score,
        device=device,
    )
    before = here.table("align").get("from", POCKETSPHINX)
    tool = from_ or over.get("from", before)
    if path is not None and tool != POCKETSPHINX:
        over["path"] = path
    # another tool has settings of its own
    table = {**(here.table("align") if tool == before else {}), **over, "from": tool}
    aligner = aligner_of(table, "align")
    logging.getLogger("hkd.align.fit").setLevel(logging.ERROR)  # the report lists what could not be aligned
    source = (
        Path(path) if path is not None and tool == POCKETSPHINX else manifest or here.require("manifest", "hkd prepare")
    )
    target = out or here.alignment
    with progress_bar("align" if tool == POCKETSPHINX else f"align from {tool}") as progress:
        report = stages.align(here, aligner, manifest=source, out=out, overwrite=overwrite, progress=progress)
    if out is None:
        stages.adopt_units(here, aligner, overwrite=overwrite)
    emit({**asdict(report), "hours": report.seconds_of_audio / 3600}, json_, lambda value: _render(value, target))
    dictionary = Lexicon(here.folder / str(table["lexicon"])) if table.get("lexicon") else load_lexicon(here.units)
    say(coverage(dictionary, (u.text for u in read(source))))


def _render(value: dict[str, Any], target: Path) -> str:
    total = value["kept"] + len(value["failed"])
    lines = [
        f"{target}: {value['kept']} of {total} utterances ({value['kept'] / total:.1%}), {value['hours']:.3f} hours"
    ]
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
