"""What a run reads, opened and held against each other: manifest, alignment, units, label stores; sentences, their
label stores and the posterior bank; and what its weights depend on.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hkd import manifest as manifests
from hkd.align.alignment import Alignment
from hkd.audio import probe
from hkd.errors import UserError, some
from hkd.features.pretrained import Upstream, local_encoder
from hkd.files import check_same, digest_of, digest_of_file
from hkd.labels.store import CACHE_BYTES, LabelReader, digest_of_store, store_folders
from hkd.loop.checkpoint import begun_with
from hkd.manifest import Manifest, Utterance
from hkd.stream.join import Coverage, Join, measure
from hkd.stream.loader import BatchPlan, Shares, runs_of
from hkd.stream.text import Bank, TextMaker, TextShares, encode
from hkd.student.config import GONE, EncoderConfig, config_to_json
from hkd.student.model import describe
from hkd.timebase import SAMPLE_RATE_HZ, samples_to_frames, seconds_to_samples
from hkd.train.config import TrainConfig, check_names
from hkd.train.objectives import DataNeeds, StudentPlan, Term, is_projected, needs_of, objective_of, plan_student
from hkd.units.inventory import LEVELS, MONOPHONE, SENONE, SPELLED, SUBWORD
from hkd.units.sequences import MODEL_FILE, SubwordModel, Units
from hkd.units.text import normalisation, words

logger = logging.getLogger(__name__)

PREFIX = "text-"  # of the terms that are taught on text
COVERAGE = "coverage.json"
NO_IDENTITY = ("loop", "workers", "features_mb", "features_cache")  # loop has its own place, the others are speed


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """Opened: what makes batches, the terms by name, and what the weights depend on."""

    maker: TextMaker
    terms: dict[str, Term]
    identity: dict[str, Any]

    def shares(self, config: TrainConfig, speech: Shares, max_steps: int) -> TextShares:
        """Speech as without text, and beside it so much text that it is `text.share` of the whole."""
        text = config.text
        plan = BatchPlan(
            self.maker.lengths(),
            batch_frames=config.batch_seconds * 100 * text.share / (1 - text.share),
            seed=config.loop.seed,
            runs=runs_of((s.reader for s in self.maker.join.stores.values()), [u.id for u in self.maker.utterances]),
        )
        last_step = max_steps - text.speech_last * speech.plan.batches_per_epoch
        return TextShares(speech=speech, text=Shares(maker=self.maker, plan=plan), last_step=last_step)


def text_readers(config: TrainConfig, stores: Mapping[str, LabelReader]) -> dict[str, LabelReader]:
    """The text's label store for each of speech, by name; none without `text.labels`. Raises UserError for a gap."""
    if not config.text.share or not config.text.labels:
        return {}
    known = store_folders(Path(config.text.labels))
    readers = {}
    for name, reader in stores.items():
        if name not in known:
            raise UserError(
                f"`text.labels` must have a label store '{name}', but {config.text.labels} has "
                f"{', '.join(known) or 'none'}. Run `hkd teacher-dump` on the text, or leave `text.labels` out."
            )
        readers[name] = LabelReader.open(known[name], cache_bytes=CACHE_BYTES // config.num_loaders)
        there, here = readers[name].spec.inventory.digest, reader.spec.inventory.digest
        if there != here:
            units = f"must have the units {here} of that of speech, but has {there} instead."
            raise UserError(f"the text's label store '{name}' {units}")
    return readers


def open_text(
    config: TrainConfig,
    plan: StudentPlan,
    join: Join,
    *,
    units: Path,
    readers: Mapping[str, LabelReader],
    heard: Mapping[str, Any],
) -> TrainingText:
    """Open the sentences and the bank; UserError where they do not fit the run. heard: `heard_by` of the run."""
    settings = config.text
    bank = Bank.load(Path(settings.bank))
    check_bank(Path(settings.bank), bank, heard)
    low = low_part(plan)
    tap = low.student.encoder.num_layers
    terms = {PREFIX + plan.main.name: plan.main if readers else plan.plain_main}
    above = {SENONE} if plan.student.main == SENONE else set()
    for head, term in plan.taught:
        if head is not None and head.tap > tap and (term.store is None or term.store in readers):
            terms[PREFIX + term.name] = term
            above |= {head.level} if head.kind == "hard" else set()
    soft = {term.store: term.num_slots for term in terms.values() if term.store is not None}
    folder = Units(units)
    whole = _heard(manifests.read(Path(settings.path)), bank, folder, settings.path)
    said = Join(whole, subwords=join.subwords, alignment=join.alignment, units=units)
    said.stores = {name: replace(join.stores[name], reader=readers[name]) for name in soft}
    heads = {head.name: head.level for head in low.student.heads}
    if settings.posteriors == "clean" and any(head.kind == "aux" for head in low.student.heads):
        rule = "must name levels where `text.posteriors` is clean"
        raise UserError(f"`condition` {rule}, but names heads of label stores.")
    levels = {MONOPHONE, *above, *heads.values(), *(said.stores[name].level for name in soft)} - set(SPELLED)
    spoken = [(u.id, said.words(u.id)) for u in whole]
    sequences = {level: encode(folder, spoken, level) for level in sorted(levels)}
    units_of = {level: [rows.row(n)[0] for n in range(len(whole))] for level, rows in sequences.items()}
    said.check(whole, sequences=units_of)
    _require(said, config.min_coverage)
    maker = TextMaker(
        utterances=list(whole), join=said, bank=bank, heads=heads, sequences=sequences,
        hard={level: slots for level, slots in plan.hard.items() if level in above}, soft=soft,
        posteriors=settings.posteriors,
        masked=settings.masked, masked_only=settings.masked_only, repeats=settings.repeats, seed=config.loop.seed,
    )  # fmt: skip
    identity = {
        "manifest": whole.digest,
        "units": {level: digest_of([rows.unit.astype("<i4").tobytes()]) for level, rows in sequences.items()},
        "stores": {name: digest_of_store(readers[name]) for name in soft},
        "bank": bank.facts["digest"],
    }
    return TrainingText(maker=maker, terms=terms, identity=identity)


def _heard(whole: Manifest, bank: Bank, units: Units, path: str) -> Manifest:
    """The sentences whose phones are all in the bank; the others are named. Raises UserError where none is left."""

    @cache
    def lacking(word: str) -> str:
        phones = bank.lacking(units.encode([word], MONOPHONE)[0])
        return f"{' '.join(phones)} in {word}" if phones else ""

    lost = {u.id: why for u in whole if (why := next(filter(None, map(lacking, words(u.text))), ""))}
    if not lost:
        return whole
    named = some(f"'{name}' ({why})" for name, why in lost.items())
    said = f"{len(lost)} of {len(whole)} sentences of {path} have a phone that the speech lacks: {named}"
    if len(lost) == len(whole):
        raise UserError(f"{said}. Add speech that has these phones, or other sentences.")
    logger.warning("%s. They are left out.", said)
    return whole.where(lambda u: u.id not in lost)


def _require(join: Join, min_coverage: float) -> None:
    for name, store in join.stores.items():
        missing = [u.id for u in join.manifest if not store.labels(u.id)]
        if len(missing) > (1 - min_coverage) * len(join.manifest):
            without = f"{len(missing)} of {len(join.manifest)} sentences have no labels ({some(missing)})"
            rule = f"`min_coverage` must be reached by the text's label store '{name}'"
            raise UserError(f"{rule}, but {without}. Label them, or give --min-coverage.")


def low_part(plan: StudentPlan) -> StudentPlan:
    """What hears: the layers up to the lowest conditioned one, the main output, and the heads that condition it."""
    chosen = [head for head in plan.student.heads if head.condition]
    encoder = plan.student.encoder
    if not chosen or not isinstance(encoder, EncoderConfig):
        rule, remedy = "name a head, whose posteriors text stands for", "Take --set condition='[\"senone\"]'."
        raise UserError(f"`condition` must {rule}, but is empty. {remedy}")
    tap = min(head.tap for head in chosen)
    heads = tuple(replace(head, condition=False) for head in chosen if head.tap == tap)
    names, levels = {head.name for head in heads}, {head.level for head in heads if head.kind == "hard"}
    taught = tuple((head, term) for head, term in plan.taught if head is not None and head.name in names)
    levels |= {SENONE} if plan.student.main == SENONE else set()
    student = replace(plan.student, encoder=replace(encoder, num_layers=tap), heads=heads)
    hard = {level: slots for level, slots in plan.hard.items() if level in levels}
    return StudentPlan(student=student, main=plan.plain_main, plain_main=plan.plain_main, taught=taught, hard=hard)


def heard_by(plan: StudentPlan, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a bank's posteriors depend on: the student's low part, and the speech as a run's identity has it."""
    inputs = {name: value for name, value in data.items() if name not in ("dev", "spans", "stores")}
    return {"student": config_to_json(low_part(plan).student), "data": inputs}


def check_bank(folder: Path, bank: Bank, asked: Mapping[str, Any]) -> None:
    """Raises UserError, naming what differs, where a bank was made from something else."""
    there = {name: bank.facts["made_from"].get(name) for name in asked}
    remedy = "Run `hkd bank` into another folder."
    check_same(f"the posterior bank in {folder} must be of this student and speech", there, asked, remedy)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The inputs of a run, opened and held against each other."""

    config: TrainConfig
    needs: DataNeeds
    join: Join
    train: list[Utterance]
    dev: list[Utterance]
    frames: dict[str, int]  # utterance → 10 ms frames at speed 1
    left_out: tuple[str, ...]  # too long
    plan: StudentPlan
    identity: dict[str, Any]
    needed: dict[str, int] | None  # utterance → encoder frames that CTC needs; None: the inputs were checked before
    text: TrainingText | None = None


def open_data(
    config: TrainConfig,
    *,
    manifest: Path,
    alignment: Path | None,
    units: Path,
    labels: Path | str | None,
    run: Path | None = None,
) -> TrainingData:
    """Open the inputs; UserError where they do not fit together. run: its folder; what it began with is not checked."""
    whole = manifests.read(manifest)
    subwords = SubwordModel(units / MODEL_FILE)
    readers = _stores(config, labels, subwords)
    levels = {name: reader.spec.level for name, reader in readers.items()}
    needs = needs_of(config, levels, aligned=alignment is not None and alignment.exists())
    aligned = Alignment(alignment) if alignment is not None and (needs.alignment or config.main == SENONE) else None
    for level in needs.hard if config.main != SENONE else (SENONE, *needs.hard):
        if aligned is not None and level not in SPELLED and level not in aligned.inventories:
            raise UserError(
                f"level {level} must be aligned, but {aligned.path} has {', '.join(aligned.inventories) or 'words'} "
                "alone. Name other levels (--set levels='[...]'), or tie senones: `hkd units tie`."
            )
    stores = {name: readers[name] for name in needs.stores}
    beside = text_readers(config, stores)
    train, dev = _split(whole, config.train_split, needed=True), _split(whole, config.dev_split, needed=False)
    train = _share(train, config.train_share)
    frames = {utterance.id: _num_frames(utterance) for utterance in (*train, *dev)}
    join = Join(whole, subwords=subwords, alignment=aligned, stores=stores, same_units=needs.same_units, beside=beside)
    plan = plan_student(config, needs, join)
    limit, dev_limit = _longest(config, plan)
    left_out = tuple(u.id for u in train if frames[u.id] > limit) + tuple(u.id for u in dev if frames[u.id] > dev_limit)
    train = [u for u in train if frames[u.id] <= limit]
    dev = [u for u in dev if frames[u.id] <= dev_limit]
    config = config.fitted(sum(frames[u.id] for u in train) / 100)
    found: dict[str, Any] = {
        "train": Manifest(train).digest,
        "dev": Manifest(dev).digest,
        "spans": digest_of(u.span for u in (*train, *dev)),
        "words": normalisation(),
        "subwords": subwords.inventory.digest,
        "alignment": None if aligned is None or alignment is None else digest_of_file(alignment),
        "stores": {name: digest_of_store(reader) for name, reader in stores.items()},
    }
    if config.encoder.name:
        weights = sorted(local_encoder(config.encoder.name).glob("model*.safetensors"))
        found["encoder"] = [digest_of_file(path) for path in weights]
    if config.encoder.upstream:
        found["upstream"] = Upstream(name=config.encoder.upstream).digest
    text = None
    if config.text.share:
        text = open_text(config, plan, join, units=units, readers=beside, heard=heard_by(plan, found))
        found["text"] = text.identity
    is_timed = all(u.duration is not None for u in (*train, *dev))  # else only the sound tells how long it is
    begun = begun_with(run) if run is not None and (run / COVERAGE).exists() else {}
    is_checked = is_timed and begun.get("data") == json.loads(json.dumps(found))
    return TrainingData(
        config=config, needs=needs, join=join, train=train, dev=dev, frames=frames, left_out=left_out, plan=plan,
        text=text,
        identity={"train": _identity_of(config), "data": found},
        needed=None if is_checked else join.check((*train, *dev), num_frames=frames),
    )  # fmt: skip


def _longest(config: TrainConfig, plan: StudentPlan) -> tuple[float, float]:
    """10 ms frames of the longest utterance to train on (at any speed) and to evaluate, by settings and encoder."""
    readable = plan.student.encoder.max_frames or float("inf")
    return min(config.max_utterance_seconds * 100, readable * min((1.0, *config.augment.speeds)) - 1), readable


def _identity_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run's weights depend on; later ones only where they are used, so that old runs can go on."""
    table: dict[str, Any] = json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in NO_IDENTITY}))
    for name, unused in (("train_share", 1), ("condition", ()), ("condition_alone", 0)):
        if getattr(config, name) == unused:
            del table[name]
    if config.text.share == 0:
        del table["text"]
    else:
        for name in ("path", "labels", "bank"):  # where they lie does not count, their digests do
            del table["text"][name]
    for kd in (table["kd"], *table["kds"].values()):  # auto was called ghost before; the store's digest says the rest
        kd["tail"] = "ghost" if kd["tail"] == "auto" else kd["tail"]
    # where it lies does not count, its digest does
    del table["encoder"]["upstream"], table["encoder"]["upstream_folder"]
    if not config.encoder.name:
        del table["encoder"]["name"]
    table["encoder"] |= GONE  # runs of earlier versions are the same
    return table


def _stores(config: TrainConfig, labels: Path | str | None, subwords: SubwordModel) -> dict[str, LabelReader]:
    """The stores that are there; none for objectives that read none."""
    if objective_of(config).stores == "none":
        return {}
    if labels is None or (isinstance(labels, Path) and not labels.exists()):
        fault = f"objective {config.objective} needs label stores, but {labels} is not there"
        raise UserError(f"{fault}. Run `hkd teacher-dump` first.")
    known = store_folders(labels)
    for table, names in (("lams", {*known, *LEVELS}), ("kds", {*known}), ("stores", {*known})):
        check_names(table, sorted(getattr(config, table)), names, f"label stores ({', '.join(known)})")
    cache_bytes = CACHE_BYTES // config.num_loaders
    readers = {name: LabelReader.open(known[name], cache_bytes=cache_bytes) for name in config.stores or known}
    if not config.stores:
        unfit = {name for name, reader in readers.items() if _is_unfit(config, reader, subwords)}
        fit = {reader.spec.level for name, reader in readers.items() if name not in unfit}
        why = "label store %s is left out: another of its level is made for objective %s"
        for name in sorted(name for name in unfit if readers[name].spec.level in fit):
            logger.info(why, name, config.objective)
            del readers[name]
    return readers


def _is_unfit(config: TrainConfig, reader: LabelReader, subwords: SubwordModel) -> bool:
    """Whether a store is made for others: the main output takes the student's own pieces, heads the teacher's."""
    if objective_of(config).teaches_main:
        return reader.spec.level == SUBWORD and reader.spec.inventory.digest != subwords.inventory.digest
    return is_projected(reader)


def _split(whole: Manifest, name: str, *, needed: bool) -> list[Utterance]:
    """The utterances of a split that have audio; where no utterance names a split, all are for training."""
    if all(utterance.split is None for utterance in whole):
        part = list(whole) if needed else []
    else:
        part = list(whole.split(name)) if needed else [utterance for utterance in whole if utterance.split == name]
    return [utterance for utterance in part if utterance.audio_filepath is not None]


def _share(part: list[Utterance], share: float) -> list[Utterance]:
    """The utterances whose ids have the smallest digests, in their order. Raises UserError where none is left."""
    if share == 1:
        return part
    ranked = sorted((utterance.id for utterance in part), key=lambda name: digest_of([name]))
    if not (kept := set(ranked[: round(share * len(part))])):
        taken = f"{share:g} of {len(part)}"
        raise UserError(f"`train_share` must leave an utterance, but {taken} is none. Take a larger share.")
    return [utterance for utterance in part if utterance.id in kept]


def _num_frames(utterance: Utterance) -> int:
    if utterance.duration is not None:
        return samples_to_frames(seconds_to_samples(utterance.duration))
    info = probe(str(utterance.audio_filepath))
    samples = info.num_samples - seconds_to_samples(utterance.offset, info.sample_rate_hz)
    return samples_to_frames(samples * SAMPLE_RATE_HZ // info.sample_rate_hz)


def coverage_of(data: TrainingData) -> Coverage:
    """How much of the training utterances each head has labels for."""
    assert data.needed is not None
    plan = data.plan
    return measure(data.join, data.train, frames=data.frames, needed=data.needed, hard=plan.hard, soft=plan.soft)


def show_data(data: TrainingData) -> str:
    """The student's drawing and the coverage."""
    return f"{describe(data.plan.student)}\n{coverage_of(data).text()}"
