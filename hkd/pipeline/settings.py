"""What a pipeline's tables may say, each checked as its component checks it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hkd.config import build
from hkd.errors import UserError
from hkd.evaluate.decoding import EvaluateConfig
from hkd.labelling.dump import DumpConfig, check_executor
from hkd.labelling.lm import LmConfig
from hkd.labelling.ngram import WordNgramConfig
from hkd.labelling.tie import TieConfig
from hkd.pipeline.aligning import aligner_of
from hkd.teachers.options import TeacherOptions
from hkd.train.config import TrainConfig
from hkd.train.objectives import objective_of
from hkd.units.sequences import UnitsConfig
from hkd.units.text import WordsConfig

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSettings:
    """[prepare]: a corpus (name or path) as `hkd prepare` takes it, and text for the LMs: a text-only corpus' name, or a file of sentences."""

    corpus: str = "asterisk"
    kind: str = ""  # --from; empty: guessed
    root: str = ""
    download: bool = False
    parts: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpSettings:
    """[dump.NAME]: which LM labels which level (`lm/NAME` is one of the pipeline's own), and the store's settings."""

    lm: str
    unit: str
    precision: str = "auto"
    device: str = "auto"
    executor: str = "local"  # who does the work (`hkd.labelling.dump`): it leaves no trace in the labels
    ray_address: str = ""
    workers: int = 0
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    store: DumpConfig = field(default_factory=DumpConfig)

    def __post_init__(self) -> None:
        check_executor(self.executor, ray_address=self.ray_address, workers=self.workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageSettings:
    """[averages.NAME]: the store of [dump.OF] with each distribution replaced by its unit's average over a split, k ids a row (0: as there)."""

    of: str
    split: str = "train"
    k: int = 0

    def __post_init__(self) -> None:
        if self.k < 0:
            raise UserError(f"`k` must be at least 1, or 0 for as many as in the store averaged, but is {self.k} instead.")


WHO_LABELS = ("executor", "ray_address", "workers")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSettings:
    """[report]: the split that is scored, and what the others are compared with (default: none, where it is there)."""

    split: str = "test"
    baselines: tuple[str, ...] = ()
    num_examples: int = 3


def dump_settings(table: Settings, where: str) -> DumpSettings:
    """A [dump.NAME] table: the store's own settings (k, codec ...) stand beside `lm` and `unit`."""
    own = {f.name for f in fields(DumpSettings)} - {"store"}
    store = {key: value for key, value in table.items() if key not in own}
    missing = {"lm", "unit"} - set(table)
    if missing:
        raise UserError(f"{where}: {' and '.join(sorted(missing))} must be given, but is missing.")
    return build(DumpSettings, {**{k: v for k, v in table.items() if k in own}, "store": store}, where=where)


def average_settings(table: Settings, where: str) -> AverageSettings:
    """An [averages.NAME] table."""
    if "of" not in table:
        raise UserError(f"{where}: of must be given, the NAME of a [dump.NAME], but is missing.")
    return build(AverageSettings, table, where=where)


def evaluate_settings(table: Settings, where: str) -> tuple[EvaluateConfig, str | None]:
    """An [evaluate] table: how to score, and `lm`, what stands beside the search (`lm/words.arpa` is the pipeline's own)."""
    rest = dict(table)
    lm = rest.pop("lm", None)
    if lm is not None and not isinstance(lm, str):
        raise UserError(f"{where}: lm must be a path or a name, but is {lm!r} instead.")
    return build(EvaluateConfig, rest, where=where), lm


CHECKS: dict[str, Callable[[Settings, str], Any]] = {
    "prepare": lambda table, where: build(PrepareSettings, table, where=where),
    "units": lambda table, where: build(UnitsConfig, table, where=where),
    "align": lambda table, where: aligner_of(table, where).to_table(),
    "tie": lambda table, where: build(TieConfig, table, where=where),
    "lm": lambda table, where: build(LmConfig, table, where=where),
    "dump": dump_settings,
    "averages": average_settings,
    "train": lambda table, where: build(TrainConfig, table, where=where),
    "words": lambda table, where: build(WordNgramConfig, table, where=where),
    "evaluate": lambda table, where: evaluate_settings(table, where)[0],
    "searches": lambda table, where: evaluate_settings({k: v for k, v in table.items() if k != "runs"}, where)[0],
    "normalisation": lambda table, where: build(WordsConfig, table, where=where),
    "report": lambda table, where: build(ReportSettings, table, where=where),
}


def stores_of(settings: Settings, stores: Mapping[str, DumpSettings]) -> list[str]:
    """The label stores that a run reads: those it names, or those of its levels, or all; none where its objective needs none."""
    config = build(TrainConfig, settings, where="[runs]")
    if objective_of(config).choose is None:
        return []
    if config.stores:
        return list(config.stores)
    return [name for name, store in stores.items() if not config.levels or store.unit in config.levels]
