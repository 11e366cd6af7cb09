"""train_lm: a unit LM from text (and transcripts, by cross-fitting only), held against the n-gram of the same data.

- Resumable and deterministic: each step leaves whole files and is skipped where they are there; killed at any moment
  and started again it ends with the same bytes. What is in the making lies in `work/` below the LM's folder.
- A finished LM of the same settings and data is left as it is; one of other settings or data is refused.
- Cross-fitting: the utterances' texts are dealt into folds, fold i is trained on the text and the other folds, so that
  each utterance is labelled and judged by the LM that has not seen it. Only the split `train` takes part, if any.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hkd.align.alignment import Alignment
from hkd.errors import Progress, UserError, check_choice, check_setting, no_progress
from hkd.files import check_same, differences, digest_of_file, digest_of_json, write_bytes, write_json
from hkd.labelling import lm_data
from hkd.labelling.lm_data import ConcatSentences, Encoder, LmTask, Sentences, Sequence_U, TokenCache
from hkd.labelling.ngram import NGRAM_UNITS, Figures, figures, sample, summed, train_ngram, unigram, unigram_figures
from hkd.loop import LoopConfig, fit
from hkd.manifest import Manifest
from hkd.teachers import unit_lm as files
from hkd.teachers.base import GIVEN
from hkd.teachers.cloze import DIRECTIONS, SenoneCounts, SenoneMap, UnitLmSizes, make_unit_lm
from hkd.teachers.unit_lm import load_part, read_json
from hkd.units.inventory import SENONE, SPELLED, SUBWORD, UNIT_LEVELS
from hkd.units.sequences import Units
from hkd.units.text import normalisation, text_digest, words

logger = logging.getLogger(__name__)
NEURAL_UNITS = 20_000_000  # with less, minutes of training did not beat the n-gram at any level (docs/log.md)
_NAMES = {"neural": "neural LM", "ngram": "n-gram", "unigram": "unigram"}
_CONDITION = {
    "outside-position": "p(unit | the units before and after it)",
    "outside-phone": "p(senone | the phones before and after its own, the number of its state)",
    "left": "p(unit | the units before it)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LmLoopConfig(LoopConfig):
    """The trainer's settings, with a unit LM's defaults."""

    max_steps: int = 1500
    learning_rate: float = 4e-3
    warmup_steps: int = 50
    log_every: int = 50
    save_every: int = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class LmConfig:
    """What is trained on what, and how it is judged."""

    unit: str = "monophone"  # senone | monophone | character | subword
    direction: str = "cloze"  # cloze (both sides) | causal (left to right)
    given: str = "auto"  # auto: outside-phone for senones, else outside-position; left for causal
    transcripts: str = "none"  # none | cross-fit: each utterance is labelled by an LM that has not seen it
    folds: int = 2  # of cross-fitting
    sizes: UnitLmSizes = field(default_factory=UnitLmSizes)  # how large the LM is
    loop: LmLoopConfig = field(default_factory=LmLoopConfig)  # how long, how fast, how often
    batch_sentences: int = 16  # at equal time many small updates beat few large ones
    max_units: int = 300  # of a training sequence; longer sentences are cut between words
    held_out: float = 0.02  # share of the text's sentences that is never trained on
    max_scored_positions: int = 10_000  # of the comparison
    ngram_order: int = 0  # 0: 3 for subwords and causal senones, else 5
    neural: bool | None = None  # a neural LM beside the n-gram; default: where there are 20 million units to learn from

    def __post_init__(self) -> None:
        choices = {"unit": UNIT_LEVELS, "direction": DIRECTIONS, "given": ("auto", *GIVEN)}
        for name, allowed in (*choices.items(), ("transcripts", ("none", "cross-fit"))):
            check_choice(f"`{name}`", getattr(self, name), allowed)
        for name, least in {"folds": 2, "batch_sentences": 1, "max_units": 2, "max_scored_positions": 1}.items():
            check_setting(f"`{name}`", getattr(self, name), f"be at least {least}", getattr(self, name) >= least)
        check_setting("`held_out`", self.held_out, "be a share between 0 and 1", 0 < self.held_out < 1)
        order = self.ngram_order
        check_setting("`ngram_order`", order, "be 2 to 5, or 0 for the level's own", order in (0, 2, 3, 4, 5))
        given, is_causal = self.resolved_given, self.direction == "causal"
        own = f"'{self.given}' with {self.direction}"
        check_setting("`given`", own, "be 'left' with causal and only there", is_causal == (given == "left"))
        rule = f"be 'outside-position' for {self.unit}s"
        check_setting("`given`", f"'{given}'", rule, given != "outside-phone" or self.unit == SENONE)

    @property
    def resolved_given(self) -> str:
        """What a position is conditioned on, `auto` resolved."""
        two_sided = "outside-phone" if self.unit == SENONE else "outside-position"
        default = "left" if self.direction == "causal" else two_sided
        return default if self.given == "auto" else self.given

    @property
    def resolved_order(self) -> int:
        is_short = self.unit == SUBWORD or (self.unit == SENONE and self.resolved_given != "outside-phone")
        return self.ngram_order or (3 if is_short else 5)


@dataclass(frozen=True, kw_only=True, slots=True)
class LmReport:
    """report.json. `figures`: by set of sentences and kind (neural, ngram, unigram) {perplexity, top1}; `positions`."""

    unit: str
    direction: str
    given: str
    teacher: str  # neural | ngram: which has the lower perplexity on `judged_on`; ngram where no neural LM was trained
    judged_on: str  # transcripts (what it will label; never trained on by the LM that labels it) | text (held out)
    figures: dict[str, dict[str, Any]]
    ngram_order: int
    transcripts: str
    folds: int
    sentences: list[int]  # trained on, a fold
    units: list[int]
    text: dict[str, int] = field(default_factory=dict)  # lines, left_out (equal to a transcript), unpronounceable
    steps: int = 0
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def is_neural(self) -> bool:
        """Whether a neural LM was trained beside the n-gram."""
        return "neural" in self.figures[self.judged_on]

    @classmethod
    def load(cls, path: Path) -> "LmReport":
        """Read report.json. Raises UserError where it is missing or none."""
        value = read_json(path)
        try:
            return cls(**{f.name: value[f.name] for f in fields(cls)})
        except KeyError as error:
            raise UserError(f"{path} must be the report of a unit LM, but lacks {error}. Train the LM again.") from None


def render(value: dict[str, Any]) -> str:
    """A report's JSON as text: one table a set of sentences, then the verdict."""
    lines = [f"{value['unit']} LM: {_CONDITION[value['given']]}", _learnt_from(value)]
    for name, table in value["figures"].items():
        title = "held-out text" if name == "text" else "the transcripts, each judged by an LM that has not read it"
        lines += ["", f"{title} ({table['positions']:,} positions)", f"  {'':<15}{'perplexity':>11}{'top-1':>8}"]
        for kind in (kind for kind in _NAMES if kind in table):
            label = _NAMES[kind]
            label = f"{value['ngram_order']}-gram" if kind == "ngram" else label
            label += ", state" if kind == "unigram" and value["given"] == "outside-phone" else ""
            lines.append(f"  {label:<15}{table[kind]['perplexity']:>11.2f}{table[kind]['top1']:>8.1%}")
    judged = value["figures"][value["judged_on"]]
    pair = " against ".join(f"{judged[kind]['perplexity']:.2f}" for kind in ("neural", "ngram") if kind in judged)
    winner, remedy = f"The {_NAMES[value['teacher']]} is the teacher", "--set neural=true trains one beside it."
    if "neural" not in judged:
        lines += ["", f"{winner}: on so little text a neural LM is worse. {remedy}"]
    elif value["teacher"] == "neural":
        lines += ["", f"{winner}: it beats the n-gram ({pair} on the {value['judged_on']})."]
    else:
        lines += ["", f"{winner}: this text and training are too small for the neural LM to beat it ({pair})."]
    if judged[value["teacher"]]["perplexity"] > judged["unigram"]["perplexity"]:
        lines.append("WARNING: the teacher is worse than the unigram; its text does not fit.")
    return "\n".join(lines)


def _learnt_from(value: Mapping[str, Any]) -> str:
    """How many LMs there are, and of what each has learnt."""
    units = " and ".join(f"{n:,}" for n in value["units"])
    steps = f"; {value['steps']:,} steps of the neural LM" if value["steps"] else ""
    if value["transcripts"] != "cross-fit":
        return f"learnt from text, no transcripts: {units} units{steps}"
    text = "all text and " if value["text"].get("lines") else ""
    return f"{value['folds']} LMs: each has read {text}the transcripts that it will not label ({units} units{steps})"


def identity_of(
    config: LmConfig, *, texts: Sequence[Path], units: Units, manifest: Manifest | None, alignment: Alignment | None
) -> dict[str, Any]:
    """All that the result depends on. Raises UserError where there is nothing to train on."""
    if not texts and config.transcripts == "none":
        remedy = "Give --text FILE, or --transcripts cross-fit."
        raise UserError(f"an LM needs something to train on, but there is none. {remedy}")
    if config.transcripts == "cross-fit" and manifest is None:
        raise UserError("cross-fitting needs the manifest, but there is none. Run `hkd prepare` first.")
    for path in texts:
        if not path.is_file():
            raise UserError(f"text must be a file, but {path} is none. Give a text file, one sentence a line.")
    return {
        "config": {name: value for name, value in asdict(config).items() if name != "neural"},  # it only adds one
        "texts": [digest_of_file(path) for path in texts],
        "inventory": units.inventory(config.unit).digest,
        "manifest": None if manifest is None else manifest.digest,
        "alignment": None if alignment is None or config.unit in SPELLED else alignment.digest,
        "normalisation": normalisation(),
        **({"folds_by": "text"} if config.transcripts == "cross-fit" else {}),  # earlier versions: by the id
    }


def finished(folder: Path, identity: Mapping[str, Any], *, overwrite: bool) -> LmReport | None:
    """The report of a finished LM of this identity. Refuses, or with overwrite removes, an LM of another one."""
    if not folder.exists() or all(path.name.endswith(".tmp") for path in folder.iterdir()):
        return None  # also where it was killed before its first file
    old = read_json(folder / files.CONFIG) if (folder / files.CONFIG).exists() else {}
    if "hkd_lm" not in old:
        raise UserError(f"{folder} must be free or hold a unit LM, but holds something else. Give another --name.")
    if overwrite and differences(old["identity"], identity):
        shutil.rmtree(folder)
        return None
    rule = f"{folder} must be of the same settings and data"
    check_same(rule, old["identity"], identity, "Give another --name, or --overwrite.")
    if not (folder / files.REPORT).exists():
        return None
    shutil.rmtree(folder / "work", ignore_errors=True)
    return LmReport.load(folder / files.REPORT)


def train_lm(
    config: LmConfig,
    *,
    texts: Sequence[Path],
    units: Units,
    folder: Path,
    manifest: Manifest | None = None,
    alignment: Alignment | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> LmReport:
    """Train the n-gram, the neural LM where it is asked for or the text is large, and compare them; gives the report.

    manifest: with transcripts "cross-fit" its texts train the LM; else they are only left out of the text and judged
    upon, as they were spoken by the alignment. Raises UserError for nothing to train on, or a folder of another LM.
    """
    identity = identity_of(config, texts=texts, units=units, manifest=manifest, alignment=alignment)
    report = finished(folder, identity, overwrite=overwrite)
    if report is not None and (report.is_neural or not config.neural):
        return report
    training = _Training(config, units=units, folder=folder, identity=identity, device=device, progress=progress)
    return training.run(texts, manifest, alignment)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fold:
    """One LM to train: where, on what, and what it is judged upon."""

    folder: Path
    work: Path
    corpus: ConcatSentences
    judged: dict[str, Sentences]


class _Training:
    """The steps of train_lm, in order; each leaves whole files."""

    def __init__(
        self, config: LmConfig, *, units: Units, folder: Path, identity: dict[str, Any], device: str, progress: Progress
    ) -> None:
        self.config, self.units, self.folder, self.identity = config, units, folder, identity
        self.device, self.progress = device, progress
        self.inventory = units.inventory(config.unit)
        tying = units.tying if config.unit == SENONE else None
        self.senones = None
        if tying is not None and config.resolved_given == "outside-phone":
            phone_V, state_V = (np.asarray(a, np.int64) for a in (tying.phone_of_senone_V, tying.state_of_senone_V))
            self.senones = SenoneMap(phone_of_V=phone_V, state_of_V=state_V)
        self.encoder = Encoder(units, config.unit, senones=self.senones, max_units=config.max_units)

    def run(self, texts: Sequence[Path], manifest: Manifest | None, alignment: Alignment | None) -> LmReport:
        """Data → for each fold n-gram and LM → comparison → report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._begin()
        train, held = self._text(texts, manifest)
        folds = self._folds(train, held, manifest, alignment)
        for number, fold in enumerate(folds):
            if not len(fold.corpus):
                raise UserError("an LM needs sentences to train on, but none is left. Give more text.")
            self._count(fold, number, len(folds))
        most, seed = max(1, self.config.max_scored_positions // len(folds)), self.config.loop.seed
        judged = {}
        for name in folds[0].judged:
            parts = [sample(fold.judged[name], max_positions=most, seed=seed) for fold in folds]
            if any(parts):
                judged[name] = parts
        if not judged:
            remedy = "Give more text, or raise `held_out`."
            raise UserError(f"an LM needs held-out sentences to be judged on, but there is none. {remedy}")
        ngram = self._measured(folds, judged, "ngram")
        enough = min(fold.corpus.num_units for fold in folds) >= NEURAL_UNITS
        is_neural = enough if self.config.neural is None else self.config.neural
        for name, row in ngram.items():
            rest = "; the neural LM, which is trained next, has to beat it" if is_neural else ""
            logger.info("the n-gram has perplexity %.2f on the %s%s", row["perplexity"], name, rest)
        measured = {"ngram": ngram}
        if is_neural:
            for number, fold in enumerate(folds):
                self._fit(fold, number, len(folds))
            measured = {"neural": self._measured(folds, judged, "neural"), **measured}
        measured["unigram"] = self._measured(folds, judged, "unigram")
        table: dict[str, dict[str, Any]] = {}
        for name, parts in judged.items():
            table[name] = {kind: rows[name] for kind, rows in measured.items()}
            table[name]["positions"] = sum(len(unit_U) for part in parts for unit_U in part)
        report = self._report(folds, train, table)
        read = files.TEXT_READ
        shutil.copyfile(self.folder / "work" / "cache" / "text-train" / read, self.folder / read)
        write_json(self.folder / files.REPORT, asdict(report))
        for path in self.folder.rglob(".*.tmp"):  # of runs that were killed while they wrote
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        return report

    def _begin(self) -> None:
        config = self.config
        self.header = {
            "hkd_lm": files.FORMAT,
            "level": config.unit,
            "direction": config.direction,
            "given": config.resolved_given,
            "inventory": self.inventory.digest,
            "sizes": asdict(config.sizes),
            "transcripts": config.transcripts,
            "folds": config.folds if config.transcripts == "cross-fit" else 1,
            "ngram_order": config.resolved_order,
            "identity_digest": digest_of_json(self.identity),
            "identity": self.identity,
        }
        write_json(self.folder / files.CONFIG, self.header)  # first: from here on the folder is known as ours
        self.inventory.save(self.folder / files.INVENTORY)

    def _text(self, texts: Sequence[Path], manifest: Manifest | None) -> tuple[TokenCache, TokenCache]:
        transcripts = frozenset(" ".join(words(u.text)) for u in manifest or ())
        return lm_data.cache_text(
            texts,
            self.folder / "work" / "cache",
            encode=self.encoder.text,
            held_out=self.config.held_out,
            transcripts=transcripts,
            progress=lambda done, total, **facts: self.progress(0.1 * done / max(total, 1), 1.0, stage="text"),
        )

    def _folds(
        self, train: TokenCache, held: TokenCache, manifest: Manifest | None, alignment: Alignment | None
    ) -> list[_Fold]:
        """Without cross-fitting one fold, judged on all transcripts; with it `folds`, each judged on its own."""
        work = self.folder / "work"
        judged: dict[str, Sentences] = {"text": held}
        spoken: dict[str, list[Sequence_U]] = {}
        if manifest is not None:
            manifest = manifest.where(lambda u: u.split == "train") or manifest
            spoken = {u.id: self.encoder.utterance(u, alignment) for u in manifest}
        if self.config.transcripts == "none":
            if spoken:
                judged["transcripts"] = [piece for pieces in spoken.values() for piece in pieces]
            return [_Fold(folder=self.folder, work=work / "fold-0", corpus=ConcatSentences([train]), judged=judged)]
        assert manifest is not None
        by_text = lm_data.folds_of(manifest, self.config.folds)
        write_json(self.folder / files.FOLDS, {text.hex(): fold for text, fold in by_text.items()})
        fold_of = {u.id: by_text[text_digest(words(u.text))] for u in manifest}
        folds = []
        for number in range(self.config.folds):
            own = [piece for name, pieces in spoken.items() if fold_of[name] == number for piece in pieces]
            others = [piece for name, pieces in spoken.items() if fold_of[name] != number for piece in pieces]
            part = {"transcripts": own, **({"text": judged["text"]} if judged["text"] else {})}
            name, corpus = f"fold-{number}", ConcatSentences([train, others])
            folds.append(_Fold(folder=self.folder / name, work=work / name, corpus=corpus, judged=part))
        return folds

    def _count(self, fold: _Fold, number: int, folds: int) -> None:
        fold.folder.mkdir(parents=True, exist_ok=True)
        senones, ngram = self.senones, fold.folder / files.NGRAM
        if senones is not None and not (fold.folder / files.SENONES).exists():
            SenoneCounts.count(senones, fold.corpus).save(fold.folder / files.SENONES)
        if not ngram.exists():
            self.progress(0.1 + 0.1 * number / folds, 1.0, stage="n-gram")
            part = fold.corpus.part(NGRAM_UNITS)
            sentences = part if senones is None else (senones.split(unit_U)[0] for unit_U in part)
            train_ngram(sentences, ngram, order=self.config.resolved_order, work=fold.work)

    def _fit(self, fold: _Fold, number: int, folds: int) -> None:
        if (fold.folder / files.MODEL).exists():
            return
        config, seed, num_units = self.config, self.config.loop.seed, len(self.inventory)
        model = make_unit_lm(
            config.sizes, num_units=num_units, direction=config.direction, senones=self.senones, seed=seed
        )
        task = LmTask(model, fold.corpus, batch_sentences=config.batch_sentences, seed=seed)

        def show(done: float, total: float, **facts: float | str) -> None:
            self.progress(0.2 + 0.7 * (number + done / max(total, 1)) / folds, 1.0, **facts)

        identity = {"lm": digest_of_json(self.identity), "fold": number}
        fit(task, config.loop, fold.work / "fit", identity=identity, device=self.device, progress=show)
        write_bytes(fold.folder / files.MODEL, (fold.work / "fit" / "final.safetensors").read_bytes())

    def _measured(
        self, folds: Sequence[_Fold], judged: Mapping[str, Sequence[Sequence[Sequence_U]]], kind: str
    ) -> dict[str, dict[str, float]]:
        """What one kind of LM comes to, by set of sentences; `judged` has a part a fold, for the fold's own LM."""
        found: dict[str, list[Figures]] = {name: [] for name in judged}
        for number, fold in enumerate(folds):
            if kind == "unigram":
                logp_V = unigram(fold.corpus.counts(len(self.inventory)), self.senones)
                ask = partial(unigram_figures, logp_V, self.senones)
            else:
                own: dict[str, Any] = {"config": self.header, "inventory": self.inventory, "name": self.folder.name}
                ask = partial(figures, load_part(fold.folder, kind, **own))
            for name, parts in judged.items():
                if parts[number]:
                    found[name].append(ask(parts[number]))
        return {name: summed(rows) for name, rows in found.items()}

    def _report(self, folds: Sequence[_Fold], train: TokenCache, table: dict[str, dict[str, Any]]) -> LmReport:
        judged_on = "transcripts" if "transcripts" in table else "text"
        judged = table[judged_on]
        is_neural = "neural" in judged
        wins = is_neural and judged["neural"]["perplexity"] < judged["ngram"]["perplexity"]
        return LmReport(
            unit=self.config.unit,
            direction=self.config.direction,
            given=self.config.resolved_given,
            teacher="neural" if wins else "ngram",
            judged_on=judged_on,
            figures=table,
            ngram_order=self.config.resolved_order,
            transcripts=self.config.transcripts,
            folds=len(folds),
            sentences=[len(fold.corpus) for fold in folds],
            units=[fold.corpus.num_units for fold in folds],
            text=dict(train.facts),
            steps=self.config.loop.max_steps if is_neural else 0,
            sizes=asdict(self.config.sizes),
        )
