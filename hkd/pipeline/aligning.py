"""A project's alignment, by pocketsphinx or from another tool's files: what `hkd align` and the stage `align` of `hkd run` share.

The table [align] of hkd.toml is pocketsphinx's settings, or with `from = "kaldi"` (mfa, ctm, ctc, timit) a `ToolConfig`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hkd.align.fit import AlignReport, ImportConfig
from hkd.align.sphinx import SphinxConfig
from hkd.config import build, to_table
from hkd.errors import UserError
from hkd.manifest import Manifest
from hkd.progress import Progress, no_progress

if TYPE_CHECKING:
    from hkd.align.fit import Source

POCKETSPHINX = "pocketsphinx"
TOOLS = (POCKETSPHINX, "kaldi", "mfa", "ctm", "ctc", "timit")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolConfig:
    """Where another tool's alignment lies and how it is read. A tool takes of it what it knows."""

    path: str  # the tool's folder or file; ctc: the model, by folder or hub name
    model: str = ""  # kaldi: where final.mdl and tree lie
    lang: str = ""  # kaldi: the lang folder, for phones.txt
    words: str = ""  # kaldi: a CTM of words, where phones do not say their place in the word
    phones: str = ""  # ctm: a second CTM, of phones
    lexicon: str = ""  # a dictionary; empty: what was aligned
    subsampling: int = 0  # kaldi: frames of 10 ms a frame; 0: as the model's folder says
    min_score: float | None = None  # ctc: mean score a frame below which a transcript is said not to be what was spoken
    device: str = "auto"  # ctc
    stress: bool = True  # keep ARPAbet's stress marks
    silence: tuple[str, ...] = ()  # phones that are silence or noise besides those known by name

    @property
    def imports(self) -> ImportConfig:
        """What is accepted, and how phones are read."""
        return ImportConfig(stress=self.stress, silence_phones=self.silence)


@dataclass(frozen=True, kw_only=True, slots=True)
class Aligner:
    """Which tool, and its settings."""

    tool: str
    config: SphinxConfig | ToolConfig

    @property
    def brings_units(self) -> bool:
        """Whether the alignment's phones and senones are others than those of the English model."""
        return not isinstance(self.config, SphinxConfig) or self.config.model is not None

    def to_table(self) -> dict[str, Any]:
        """The table that `aligner_of` reads."""
        return {"from": self.tool, **to_table(self.config)}


def aligner_of(table: Mapping[str, Any], where: str) -> Aligner:
    """The table [align]. Raises UserError for an unknown tool or setting, and for a tool without a path."""
    rest = dict(table)
    tool = rest.pop("from", POCKETSPHINX)
    if tool not in TOOLS:
        raise UserError(f"{where}: from must be one of {', '.join(TOOLS)}, but is '{tool}' instead.")
    if tool == POCKETSPHINX:
        return Aligner(tool=tool, config=build(SphinxConfig, rest, where=where))
    if not rest.get("path"):
        raise UserError(f"{where}: {tool} needs a path, but there is none. Give what {tool} wrote: hkd align --from {tool} PATH.")
    return Aligner(tool=tool, config=build(ToolConfig, rest, where=where))


def align(
    manifest: Manifest, out: Path, aligner: Aligner, *, folder: Path, overwrite: bool = False, progress: Progress = no_progress
) -> AlignReport:
    """Write the alignment at `out`. `folder`: where relative paths of the settings begin. Raises as the tool's own function."""
    if isinstance(aligner.config, SphinxConfig):
        from hkd.align.sphinx import align_manifest

        model = aligner.config.model
        sphinx = replace(aligner.config, model=str(folder / model) if model else None)
        return align_manifest(manifest, out, config=sphinx, overwrite=overwrite, progress=progress)
    from hkd.align.fit import import_alignment

    source = source_of(aligner.tool, aligner.config, folder)
    return import_alignment(manifest, out, source, config=aligner.config.imports, overwrite=overwrite, progress=progress)


def source_of(tool: str, config: ToolConfig, folder: Path) -> "Source":
    """The reader of a tool's files. Raises UserError where they are not there or not that tool's."""
    from hkd.align.files import CtmSource, MfaSource, TimitSource, pronounce_by
    from hkd.align.kaldi import KaldiSource
    from hkd.units.lexicon import Lexicon

    def place(name: str) -> Path | None:
        return folder / name if name else None

    lexicon, path = place(config.lexicon), folder / config.path
    dictionary = Lexicon(lexicon, stress=config.stress) if lexicon is not None else None
    if dictionary is not None and not dictionary.phones:  # which reads it: a broken dictionary is said before all else
        raise UserError(f"{lexicon} must be a dictionary of words and their phones, but is empty.")
    if tool == "kaldi":
        return KaldiSource(
            path, model=place(config.model), lang=place(config.lang), word_ctm=place(config.words), lexicon=dictionary,
            subsampling=config.subsampling or None, config=config.imports,
        )  # fmt: skip
    if tool == "mfa":
        return MfaSource(path, dictionary=("sil", "spn", *dictionary.phones) if dictionary is not None else None)
    if tool == "timit":
        return TimitSource(path)
    if tool == "ctm":
        phones = place(config.phones)
        return CtmSource(path, phones=phones, pronounce=pronounce_by(dictionary or Lexicon()) if phones is None else None)
    from hkd.align.ctc import CtcConfig, CtcSource, TransformersCtc
    from hkd.decode.recogniser import StudentCtc, is_student

    model = str(path) if path.exists() else config.path  # else a name on the hub
    ctc = StudentCtc(path, device=config.device) if is_student(path) else TransformersCtc(model, device=config.device)
    settings = CtcConfig() if config.min_score is None else CtcConfig(min_score=config.min_score)
    return CtcSource(ctc, pronounce=pronounce_by(dictionary or Lexicon()), config=settings)


def adopt_units(alignment_path: Path, units: Path, aligner: Aligner, *, folder: Path, overwrite: bool = False) -> None:
    """Make the alignment's acoustic model and pronunciations those of a units folder; the English model's are known anyway.

    Raises UserError where the folder has inventories of another acoustic model, unless `overwrite`.
    """
    from hkd.units.level import MONOPHONE
    from hkd.units.lexicon import Lexicon
    from hkd.units.tying import PhoneTying, adopt

    config = aligner.config
    if isinstance(config, SphinxConfig):
        from hkd.align.sphinx import model_parts

        if config.model is not None:
            dictionary, tying = model_parts(str(folder / config.model))
            adopt(units, tying, dictionary.entries(within=tying.monophone_inventory.symbols), overwrite=overwrite)
        return
    from hkd.align.alignment import Alignment, pronunciations
    from hkd.align.files import folded_dictionary
    from hkd.align.kaldi import read_model

    alignment = Alignment(alignment_path)
    if MONOPHONE not in alignment.inventories:
        return
    phones = alignment.inventories[MONOPHONE]
    said = pronunciations(alignment)
    if config.lexicon:
        said |= Lexicon(folder / config.lexicon, stress=config.stress).entries(within=phones.symbols)
    if aligner.tool == "timit":
        said = {**folded_dictionary(Lexicon()), **said}
    if aligner.tool == "kaldi":
        lang = folder / config.lang if config.lang else None
        adopt(
            units,
            read_model(folder / (config.model or config.path), lang=lang, config=config.imports).tying,
            said,
            overwrite=overwrite,
        )
        return
    quiet = [phones.symbols[number] for number in alignment.silences[MONOPHONE]]
    adopt(units, PhoneTying(phones.symbols, quiet), said, overwrite=overwrite)
