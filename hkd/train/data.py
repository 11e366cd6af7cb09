"""What a run reads, opened and held against each other: manifest, alignment, units, label stores; and what its weights
depend on."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hkd import manifest as manifests
from hkd.align.alignment import Alignment
from hkd.audio import probe
from hkd.errors import UserError
from hkd.features.pretrained import Upstream, local_encoder
from hkd.files import digest_of, digest_of_file
from hkd.labels.store import CACHE_BYTES, LabelReader, digest_of_store, store_folders
from hkd.loop.checkpoint import begun_with
from hkd.manifest import Manifest, Utterance
from hkd.stream.join import Coverage, Join, measure
from hkd.student.config import GONE
from hkd.student.model import describe
from hkd.timebase import SAMPLE_RATE_HZ, samples_to_frames, seconds_to_samples
from hkd.train.config import TrainConfig
from hkd.train.objectives import DataNeeds, StudentPlan, is_projected, needs_of, objective_of, plan_student
from hkd.train.text import TrainingText, heard_by, open_text, text_readers
from hkd.units.inventory import LEVELS, SENONE, SPELLED, SUBWORD
from hkd.units.sequences import MODEL_FILE, SubwordModel
from hkd.units.text import normalisation

logger = logging.getLogger(__name__)

COVERAGE = "coverage.json"
# loop: has its own place; the others change the speed alone
NO_IDENTITY = ("loop", "workers", "features_mb", "features_cache")


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
    """Open the inputs and check that they fit together. Raises UserError in one line where they do not.

    run: the folder of a run; what it began with is not checked again.
    """
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
        "spans": digest_of(f"{u.offset}:{u.duration}" for u in (*train, *dev)),
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
    """10 ms frames of the longest utterance to train on (by the settings, and as the encoder can read at any speed) and
    to evaluate."""
    readable = plan.student.encoder.max_frames or float("inf")
    return min(config.max_utterance_seconds * 100, readable * min((1.0, *config.augment.speeds)) - 1), readable


def _identity_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run's weights depend on. Later settings are left out where they are not used, so that old
    runs can go on."""
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
        raise UserError(
            f"objective {config.objective} needs label stores, but {labels} is not there. Run `hkd teacher-dump` first."
        )
    known = store_folders(labels)
    for table, names in (("lams", {*known, *LEVELS}), ("kds", {*known})):
        for name in sorted(getattr(config, table).keys() - names):
            raise UserError(f"`{table}` must name label stores ({', '.join(known)}), but '{name}' is none of them.")
    cache_bytes = CACHE_BYTES // config.num_loaders
    readers = {
        name: LabelReader.open(known[name], cache_bytes=cache_bytes) for name in config.stores or known if name in known
    }
    if not config.stores:
        unfit = {name for name, reader in readers.items() if _is_unfit(config, reader, subwords)}
        fit = {reader.spec.level for name, reader in readers.items() if name not in unfit}
        for name in sorted(name for name in unfit if readers[name].spec.level in fit):
            logger.info(
                "label store %s is left out: another of its level is made for objective %s", name, config.objective
            )
            del readers[name]
    return readers


def _is_unfit(config: TrainConfig, reader: LabelReader, subwords: SubwordModel) -> bool:
    """Whether a store is made for other objectives: the main output takes the student's own pieces, heads take the
    teacher's."""
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
        raise UserError(
            f"`train_share` must leave an utterance, but {share:g} of {len(part)} is none. Take a larger share."
        )
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
    return measure(
        data.join, data.train, frames=data.frames, needed=data.needed, hard=data.plan.hard, soft=data.plan.soft
    )


def show_data(data: TrainingData) -> str:
    """The student's drawing and the coverage."""
    return f"{describe(data.plan.student)}\n{coverage_of(data).text()}"
