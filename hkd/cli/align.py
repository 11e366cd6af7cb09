"""`hkd align`: when each word, phone and senone was spoken, by pocketsphinx or from other tools' files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hkd.cli.common import emit, progress_bar, project

if TYPE_CHECKING:
    from hkd.align.foreign import ImportConfig
    from hkd.align.imports import Source

TOOLS = ("pocketsphinx", "kaldi", "mfa", "ctm", "ctc")
_SHOWN = 20


def align(
    path: Annotated[
        str | None,
        typer.Argument(
            help="A manifest (pocketsphinx; default the project's); with --from, the tool's folder or file, or the CTC model."
        ),
    ] = None,
    from_: Annotated[str, typer.Option("--from", help="pocketsphinx, kaldi, mfa, ctm, or ctc.")] = "pocketsphinx",
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
    stress: Annotated[bool, typer.Option(help="Keep ARPAbet's stress marks (AH0, AH1).")] = True,
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
    device: Annotated[str, typer.Option(help="ctc: auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace what is there and was made of something else.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
) -> None:
    """Align words, phones and senones to 10 ms frames with pocketsphinx, or take another tool's alignment.

    Utterances that cannot be aligned are listed with reasons and left out of what follows. A killed run goes on where it was.
    An alignment of another tool brings its phones and senones along: `hkd units` and `hkd lm` use them from then on.

    Examples:

        hkd align

        hkd align other/manifest.jsonl --out other/alignment.arrow --jobs 8

        hkd align --from kaldi exp/tri3_ali --lexicon data/local/dict/lexicon.txt

        hkd align --from mfa aligned/ --lexicon english_us_arpa.dict --no-stress

        hkd align --from ctm words.ctm --phones phones.ctm

        hkd align --from ctc facebook/wav2vec2-base-960h --lexicon cmudict.dict
    """
    from dataclasses import asdict

    from hkd.align.foreign import ImportConfig
    from hkd.align.sphinx import SphinxConfig, align_manifest, model_parts
    from hkd.errors import UserError
    from hkd.manifest import read
    from hkd.units.acoustic import adopt

    if from_ not in TOOLS:
        raise UserError(f"--from must be one of {', '.join(TOOLS)}, but is '{from_}' instead.")
    here = project()
    target = out or here.alignment
    if from_ == "pocketsphinx":
        source_path = Path(path) if path is not None else manifest or here.require("manifest", "hkd prepare")
        sphinx = here.section(
            "align", SphinxConfig, {"jobs": jobs, "min_score": min_score, "model": str(model) if model else None}
        )
        with progress_bar("align") as progress:
            report = align_manifest(read(source_path), target, config=sphinx, overwrite=overwrite, progress=progress)
        if sphinx.model is not None and out is None:
            dictionary, tying = model_parts(sphinx.model)
            adopt(here.units, tying, dictionary.entries(within=tying.monophone_inventory.symbols), overwrite=overwrite)
    else:
        if path is None:
            raise UserError(
                f"--from {from_} needs a path, but there is none. Give what {from_} wrote: hkd align --from {from_} PATH."
            )
        from hkd.align.imports import import_alignment

        config = ImportConfig(stress=stress, silence_phones=tuple(silence or ()))
        source = _source(
            from_, path, config=config, model=model, lang=lang, words=words, phones=phones, lexicon=lexicon, subsampling=subsampling,
            min_score=min_score, device=device,
        )  # fmt: skip
        whole = read(manifest or here.require("manifest", "hkd prepare"))
        with progress_bar(f"align from {from_}") as progress:
            report = import_alignment(whole, target, source, config=config, overwrite=overwrite, progress=progress)
        if out is None:
            _adopt(target, source, lexicon, config=config, overwrite=overwrite)
    emit({**asdict(report), "hours": report.seconds_of_audio / 3600}, json_, lambda value: _render(value, target))


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


def _source(
    tool: str,
    path: str,
    *,
    config: "ImportConfig",
    model: Path | None,
    lang: Path | None,
    words: Path | None,
    phones: Path | None,
    lexicon: Path | None,
    subsampling: int | None,
    min_score: float | None,
    device: str,
) -> "Source":
    from hkd.align.ctm import CtmSource, pronounce_by
    from hkd.align.kaldi import KaldiSource
    from hkd.align.textgrid import MfaSource
    from hkd.errors import UserError
    from hkd.units.lexicon import Lexicon

    dictionary = Lexicon(lexicon, stress=config.stress) if lexicon is not None else None
    if dictionary is not None and not dictionary.phones:  # which reads it: a broken dictionary is said before all else
        raise UserError(f"{lexicon} must be a dictionary of words and their phones, but is empty.")
    if tool == "kaldi":
        return KaldiSource(
            Path(path), model=model, lang=lang, word_ctm=words, lexicon=dictionary, subsampling=subsampling, config=config
        )
    if tool == "mfa":
        return MfaSource(Path(path), dictionary=("sil", "spn", *dictionary.phones) if dictionary is not None else None)
    if tool == "ctm":
        return CtmSource(Path(path), phones=phones, pronounce=pronounce_by(dictionary or Lexicon()) if phones is None else None)
    from hkd.align.ctc import CtcConfig, CtcSource, TransformersCtc
    from hkd.decode.posteriors import StudentCtc, is_student

    ctc = StudentCtc(Path(path), device=device) if is_student(Path(path)) else TransformersCtc(path, device=device)
    settings = CtcConfig() if min_score is None else CtcConfig(min_score=min_score)
    return CtcSource(ctc, pronounce=pronounce_by(dictionary or Lexicon()), config=settings)


def _adopt(alignment_path: Path, source: "Source", lexicon: Path | None, *, config: "ImportConfig", overwrite: bool) -> None:
    """The project's units are the alignment's from now on."""
    from hkd.align.alignment import Alignment
    from hkd.align.kaldi import KaldiSource
    from hkd.align.sequences import pronunciations
    from hkd.units.acoustic import PhoneTying, adopt
    from hkd.units.level import MONOPHONE
    from hkd.units.lexicon import Lexicon

    alignment = Alignment(alignment_path)
    if MONOPHONE not in alignment.inventories:
        return
    phones = alignment.inventories[MONOPHONE]
    quiet = [phones.symbols[number] for number in alignment.silences[MONOPHONE]]
    tying = source.model.tying if isinstance(source, KaldiSource) else PhoneTying(phones.symbols, quiet)
    said = pronunciations(alignment)
    if lexicon is not None:
        said |= Lexicon(lexicon, stress=config.stress).entries(within=phones.symbols)
    adopt(project().units, tying, said, overwrite=overwrite)
