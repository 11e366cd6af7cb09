"""What a pipeline's tables may say, each checked as its component checks it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hkd.align.fit import ImportConfig
from hkd.align.sphinx import SphinxConfig
from hkd.config import BESIDE, build, show_settings, to_table
from hkd.errors import UserError, check_choice, check_setting
from hkd.evaluate.decoding import EvaluateConfig
from hkd.labelling.dump import DumpConfig, check_executor
from hkd.labelling.lm import LmConfig
from hkd.labelling.lm_data import SentencesConfig
from hkd.labelling.ngram import WordNgramConfig
from hkd.labelling.tie import TieConfig
from hkd.teachers.load import TeacherOptions
from hkd.train.bank import BankConfig
from hkd.train.config import TrainConfig
from hkd.units.inventory import UNIT_LEVELS
from hkd.units.sequences import UnitsConfig
from hkd.units.text import WordsConfig

Settings = Mapping[str, Any]
WHO_LABELS = ("executor", "ray_address", "workers")  # settings of [dump.NAME] that leave no trace in the labels

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
    check_choice(f"{where}: from", tool, TOOLS)
    if tool == POCKETSPHINX:
        return Aligner(tool=tool, config=build(SphinxConfig, rest, where=where))
    if not rest.get("path"):
        remedy = f"Give what {tool} wrote: hkd align --from {tool} PATH."
        raise UserError(f"{where}: {tool} needs a path, but there is none. {remedy}")
    return Aligner(tool=tool, config=build(ToolConfig, rest, where=where))


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSettings:
    """[prepare]: a corpus as `hkd prepare` takes it, and text for the LMs."""

    corpus: str = "asterisk"  # a corpus that hkd knows (`hkd prepare --list`), or a path
    kind: str = ""  # what the path is, as with --from; empty: guessed
    root: str = ""  # where the corpus, or its archives, lie already
    download: bool = False  # fetch archives of more than 1 GB too
    parts: tuple[str, ...] = ()  # only these parts of the corpus; empty: all
    columns: dict[str, str] = field(default_factory=dict)  # of a table: text, audio, id ... → its column
    speaker: str = ""  # a regular expression that finds the speaker in an id
    base_url: str = ""  # a mirror that has the corpus' archives
    text: str = ""  # for the LMs: a text-only corpus' name, or a file of sentences


@dataclass(frozen=True, kw_only=True, slots=True)
class LmSettings:
    """[lm.NAME]: how an LM is trained."""

    sentences: str | None = None  # in a pipeline: the [sentences.NAME] that it learns from by folds
    config: LmConfig = field(default_factory=LmConfig, metadata=BESIDE)


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpSettings:
    """[dump.NAME]: which LM labels which level (`lm/NAME` is one of the pipeline's own), and the store's settings."""

    lm: str  # the teacher: a masked or causal LM by hub name or folder, lm/NAME, FILE.arpa or phone-trigram
    unit: str  # the level that is labelled: senone, monophone, character or subword
    sentences: str = ""  # in a pipeline: a [sentences.NAME] that the LM labels too, into text-shards/
    precision: str = "auto"  # auto | fp32 | bf16; auto: bf16 on a GPU
    device: str = "auto"  # auto | cpu | cuda
    executor: str = "local"  # local | ray: it leaves no trace in the labels
    ray_address: str = ""  # of a Ray cluster that runs; empty: one of its own on this machine
    workers: int = 0  # of Ray; 0: as many as there is room for
    teacher: TeacherOptions = field(default_factory=TeacherOptions)  # how a downloaded LM is asked
    store: DumpConfig = field(default_factory=DumpConfig, metadata=BESIDE)

    def __post_init__(self) -> None:
        check_choice("`unit`", self.unit, UNIT_LEVELS)
        check_executor(self.executor, ray_address=self.ray_address, workers=self.workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageSettings:
    """[averages.NAME]: the store of [dump.OF] with each distribution replaced by its unit's average over a split."""

    of: str  # the store that is averaged
    split: str = "train"  # the utterances whose mean is taken
    k: int = 0  # ids a row; 0: as in the store averaged

    def __post_init__(self) -> None:
        check_setting("`k`", self.k, "be at least 1, or 0 for as many as in the store averaged", self.k >= 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSettings:
    """[report]: the split that is scored, and what the others are compared with (default: none, where it is there)."""

    split: str = "test"  # what is scored
    baselines: tuple[str, ...] = ()  # runs that the others are compared with; empty: none, where it is there
    num_examples: int = 3  # utterances that the page shows in full


@dataclass(frozen=True, kw_only=True, slots=True)
class BankSettings(BankConfig):
    """[bank]: how `hkd bank` makes a posterior bank for training on text."""

    train: dict[str, Any] = field(default_factory=dict)  # what differs from [train]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSettings:
    """[evaluate]: how runs are scored; `lm/words.arpa` is the pipeline's own."""

    lm: str | None = None  # an LM beside the search: an ARPA file, lm/NAME, or a causal LM by hub name or folder
    config: EvaluateConfig = field(default_factory=EvaluateConfig, metadata=BESIDE)


# Table → the dataclass whose fields are its settings; `hkd config show` prints them with their explanations.
SETTINGS: dict[str, type] = {
    "prepare": PrepareSettings, "normalisation": WordsConfig, "units": UnitsConfig, "align": SphinxConfig,
    "tie": TieConfig,
    "words": WordNgramConfig, "sentences": SentencesConfig, "lm": LmSettings, "dump": DumpSettings,
    "averages": AverageSettings,
    "bank": BankSettings, "train": TrainConfig, "evaluate": EvaluateSettings, "report": ReportSettings,
}  # fmt: skip


def checked(kind: str, table: Settings, where: str) -> dict[str, Any]:
    """All settings of a table of that kind, defaults included. Raises UserError for one that does not fit."""
    if kind == "align":
        return aligner_of(table, where).to_table()
    return dict(to_table(build(SETTINGS[kind], table, where=where)))


def show_table(kind: str, name: str, table: Settings | None) -> Iterator[str]:
    """Lines of TOML: the table `name` with every setting explained. table: its values; None: the defaults."""
    if kind != "align":
        return show_settings(name, SETTINGS[kind], table)
    tool = POCKETSPHINX if table is None else table["from"]
    first = f'from = "{tool}"  # pocketsphinx, or another tool whose alignment is read: kaldi, mfa, ctm, ctc, timit'
    return show_settings(name, SphinxConfig if tool == POCKETSPHINX else ToolConfig, table, first=[first])
