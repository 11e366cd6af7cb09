"""train: stage two. Manifest, alignment, units and label stores → a run's folder with the exported student.

runs/NAME/   config.toml  coverage.json  student.json  identity.json  metrics.jsonl  timing.jsonl  checkpoints/
             final.safetensors (heads too)  done.json  model/ (exported)
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hkd import manifest as manifests
from hkd.align.alignment import Alignment
from hkd.audio import probe
from hkd.errors import UserError
from hkd.features.augment import NO_AUGMENTATION
from hkd.features.cache import FeatureCache
from hkd.features.source import FeatureSource, mean_and_std
from hkd.files import digest_of, digest_of_file, digest_of_json, write_bytes, write_json
from hkd.labels.store import LabelReader, store_folders
from hkd.loop import fit
from hkd.loop.record import claim, finished, steps_done
from hkd.loop.run import identity_of
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress
from hkd.stream.coverage import Coverage, measure, require
from hkd.stream.join import Join
from hkd.stream.loader import BatchMaker
from hkd.stream.plan import BatchPlan
from hkd.student.config import SpeechEncoderConfig, config_to_json
from hkd.student.describe import describe
from hkd.student.export import SENONE_FRAMES, save_student
from hkd.student.model import Student
from hkd.student.speech_encoder import SpeechEncoder, load_pretrained, local_encoder
from hkd.timebase import SAMPLE_RATE_HZ, samples_to_frames, seconds_to_samples
from hkd.toml import to_toml
from hkd.train.config import TrainConfig
from hkd.train.student import Needs, Plan, describe_heads, needs_of, plan_student
from hkd.train.task import StudentTask
from hkd.units.acoustic import acoustic_files
from hkd.units.level import LEVELS, SENONE, SPELLED
from hkd.units.subword import MODEL_FILE, SubwordModel

log = logging.getLogger(__name__)

CMVN_UTTERANCES = 2000
NO_IDENTITY = ("loop", "workers", "features_mb", "features_cache")  # loop: has its own place; the others change the speed alone


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What `train` did. `metrics`: the last losses and the dev figures."""

    folder: Path
    steps: int
    metrics: dict[str, float]
    parameters: int  # exported
    coverage: dict[str, Any]
    was_done: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True, kw_only=True)
class Data:
    """The inputs of a run, opened and held against each other."""

    config: TrainConfig
    needs: Needs
    join: Join
    train: list[Utterance]
    dev: list[Utterance]
    frames: dict[str, int]  # utterance → 10 ms frames at speed 1
    left_out: tuple[str, ...]  # too long
    plan: Plan
    identity: dict[str, Any]


def open_data(config: TrainConfig, *, manifest: Path, alignment: Path | None, units: Path, labels: Path | str | None) -> Data:
    """Open the inputs and check that they fit together. Raises UserError in one line where they do not."""
    whole = manifests.read(manifest)
    subwords = SubwordModel(units / MODEL_FILE)
    readers, levels = _stores(config, labels)
    needs = needs_of(config, levels, aligned=alignment is not None and alignment.exists())
    aligned = Alignment(alignment) if alignment is not None and (needs.alignment or config.main == SENONE) else None
    for level in needs.hard if config.main != SENONE else (SENONE, *needs.hard):
        if aligned is not None and level not in SPELLED and level not in aligned.inventories:
            raise UserError(
                f"level {level} must be aligned, but {aligned.path} has {', '.join(aligned.inventories) or 'words'} alone. Name other levels "
                "(--set levels='[...]'), or tie senones: `hkd units tie`."
            )
    stores = {name: readers[name] for name in needs.stores}
    train, dev = _split(whole, config.train_split, needed=True), _split(whole, config.dev_split, needed=False)
    frames = {utterance.id: _num_frames(utterance) for utterance in (*train, *dev)}
    join = Join(whole, subwords=subwords, alignment=aligned, stores=stores, same_units=needs.same_units)
    plan = plan_student(config, needs, join)
    limit, dev_limit = _longest(config, plan)
    left_out = tuple(u.id for u in train if frames[u.id] > limit) + tuple(u.id for u in dev if frames[u.id] > dev_limit)
    train = [u for u in train if frames[u.id] <= limit]
    dev = [u for u in dev if frames[u.id] <= dev_limit]
    join.check((*train, *dev), num_frames=lambda utterance: frames[utterance.id])
    identity: dict[str, Any] = {
        "train": _identity_of(config),
        "data": {
            "train": Manifest(train).digest,
            "dev": Manifest(dev).digest,
            "spans": digest_of(f"{u.offset}:{u.duration}" for u in (*train, *dev)),
            "subwords": subwords.inventory.digest,
            "alignment": None if aligned is None or alignment is None else digest_of_file(alignment),
            "stores": {name: _store_digest(reader) for name, reader in stores.items()},
        },
    }
    if config.encoder.name:
        identity["data"]["encoder"] = [
            digest_of_file(path) for path in sorted(local_encoder(config.encoder.name).glob("model*.safetensors"))
        ]
    return Data(
        config=config, needs=needs, join=join, train=train, dev=dev, frames=frames, left_out=left_out,
        plan=plan, identity=identity,
    )  # fmt: skip


def _longest(config: TrainConfig, plan: Plan) -> tuple[float, float]:
    """10 ms frames of the longest utterance to train on and to evaluate: what was asked for, and what the encoder can read at any speed."""
    encoder = plan.student.encoder
    readable = float("inf") if not isinstance(encoder, SpeechEncoderConfig) else encoder.max_frames or float("inf")
    return min(config.max_utterance_seconds * 100, readable * min((1.0, *config.augment.speeds)) - 1), readable


def _identity_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run's weights hang on. What came later than the first runs is left out where it is not used, so that they go on."""
    table: dict[str, Any] = json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in NO_IDENTITY}))
    if not config.encoder.name:
        del table["encoder"]["name"]
    return table


def _stores(config: TrainConfig, labels: Path | str | None) -> tuple[dict[str, LabelReader], dict[str, str]]:
    """The stores that are there, and their levels; none for objectives that read none."""
    if config.objective in ("none", "hard-heads"):
        return {}, {}
    if labels is None or (isinstance(labels, Path) and not labels.exists()):
        raise UserError(
            f"objective {config.objective} needs label stores, but {labels} is not there. Run `hkd teacher-dump` first."
        )
    known = store_folders(labels)
    for table in ("lams", "kds"):
        for name in getattr(config, table):
            if name not in known and not (table == "lams" and name in LEVELS):
                raise UserError(f"`{table}` must name label stores ({', '.join(known)}), but '{name}' is none of them.")
    readers = {name: LabelReader.open(known[name]) for name in config.stores or known if name in known}
    return readers, {name: reader.spec.level for name, reader in readers.items()}


def _split(whole: Manifest, name: str, *, needed: bool) -> list[Utterance]:
    """The utterances of a split that have audio; where no utterance names a split, all are for training."""
    if all(utterance.split is None for utterance in whole):
        part = list(whole) if needed else []
    elif needed:
        part = list(whole.split(name))
    else:
        part = [utterance for utterance in whole if utterance.split == name]
    return [utterance for utterance in part if utterance.audio_filepath is not None]


def _num_frames(utterance: Utterance) -> int:
    if utterance.duration is not None:
        return samples_to_frames(seconds_to_samples(utterance.duration))
    info = probe(str(utterance.audio_filepath))
    samples = info.num_samples - seconds_to_samples(utterance.offset, info.sample_rate_hz)
    return samples_to_frames(samples * SAMPLE_RATE_HZ // info.sample_rate_hz)


def _store_digest(reader: LabelReader) -> str:
    """Of the spec and of every shard's mark (which holds its SHA-256)."""
    root = reader.path
    return digest_of(
        part for path in (root / "store.json", *sorted((root / "data").glob("*.json"))) for part in (path.name, path.read_bytes())
    )


def coverage_of(data: Data) -> Coverage:
    """How much of the training utterances each head has labels for."""
    return measure(data.join, data.train, frames=data.frames, hard=data.plan.hard, soft=data.plan.soft)


def show(data: Data) -> str:
    """The student's drawing and the coverage."""
    return f"{describe(data.plan.student)}\n{coverage_of(data).text()}"


def train(
    config: TrainConfig,
    folder: Path,
    *,
    manifest: Path,
    units: Path,
    alignment: Path | None = None,
    labels: Path | str | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    progress: Progress = no_progress,
) -> TrainReport:
    """Train, or go on, or say that it is done; leaves the exported student in folder/model.

    alignment, labels: where the objective needs them. Raises UserError for inputs that do not fit together or a folder of another
    run, Terminated on SIGTERM (state saved), HkdError where the loss is not finite.
    """
    data = open_data(config, manifest=manifest, alignment=alignment, units=units, labels=labels)
    plan = BatchPlan([data.frames[u.id] for u in data.train], batch_frames=config.batch_seconds * 100, seed=config.loop.seed)
    max_steps = config.epochs * plan.batches_per_epoch or config.loop.max_steps
    loop = replace(config.loop, max_steps=max_steps, shares_every=config.shares_every if len(data.plan.terms) > 1 else 0)
    whole = identity_of(loop, data.identity)
    done = finished(folder, whole)
    exported = folder / "model" / "student.json"
    if done is not None and exported.exists():
        coverage = json.loads((folder / "coverage.json").read_text())
        parameters = json.loads((folder / "student.json").read_text())["parameters"]
        return TrainReport(
            folder=folder, steps=steps_done(folder), metrics=done, parameters=parameters, coverage=coverage, was_done=True
        )
    coverage = coverage_of(data)
    require(coverage, config.min_coverage)
    for line in coverage.text().splitlines():
        log.info("%s", line)
    if data.left_out:
        log.warning(
            "%d utterances are longer than max_utterance_seconds, or than the encoder can read, and left out (%s ...)",
            len(data.left_out),
            data.left_out[0],
        )
    task = make_task(data, plan, max_steps=loop.max_steps)
    parameters = sum(p.numel() for n, p in task.student.named_parameters() if not n.startswith("heads."))
    main_process = os.environ.get("RANK", "0") == "0"
    if main_process:
        claim(folder, whole)
        _write_settings(folder, data, coverage, parameters)
    metrics = fit(task, loop, folder, identity=data.identity, device=device, tensorboard=tensorboard, progress=progress)
    if main_process:
        export(folder, data, task.student, digest_of_json(whole))
    return TrainReport(
        folder=folder,
        steps=steps_done(folder),
        metrics=metrics,
        parameters=parameters,
        coverage=coverage.to_json(),
        was_done=False,
    )


def make_task(data: Data, plan: BatchPlan, *, max_steps: int) -> StudentTask:
    """The student with its features' mean and deviation, and what feeds it. Weights are a function of the seed alone."""
    config, front_end = data.config, data.plan.student.encoder.front_end
    features = _features(data)
    augment, mean_F = config.augment, torch.zeros(front_end.num_bins)
    if front_end.kind == "wave":
        augment = replace(augment, freq_masks=0)  # a row's samples are no bins
    else:
        mean_F, std_F = mean_and_std([features(utterance) for utterance in data.train[:CMVN_UTTERANCES]])
    torch.manual_seed(config.loop.seed)
    student = Student(data.plan.student)
    if isinstance(student.encoder, SpeechEncoder):
        load_pretrained(student.encoder)
    else:
        student.set_cmvn(mean_F, std_F)
    shared: dict[str, Any] = {"join": data.join, "features": features, "hard": data.plan.hard, "soft": data.plan.soft}
    maker = BatchMaker(
        utterances=data.train,
        augment=augment,
        fill_F=mean_F.numpy(),
        stride=config.stride,
        seed=config.loop.seed,
        **shared,
    )
    dev = BatchMaker(utterances=data.dev, augment=NO_AUGMENTATION, **shared) if data.dev else None
    weights = {term.name: _weight(config, data, term.name) for term in data.plan.terms}
    return StudentTask(
        config=config, student=student, terms=data.plan.terms, base_weights=weights, maker=maker, plan=plan, dev=dev,
        max_steps=max_steps,
    )  # fmt: skip


def _features(data: Data) -> FeatureSource:
    """From memory, and from disk where that is asked for; the disk is filled first, by all processes of the run."""
    config, front_end = data.config, data.plan.student.encoder.front_end
    max_bytes = config.features_mb << 20
    if not config.features_cache:
        return FeatureSource(front_end=front_end, max_bytes=max_bytes)
    speeds = tuple(dict.fromkeys(config.augment.speeds or (1.0,)))
    wanted = [(u, speeds) for u in data.train] + [(u, (1.0,)) for u in data.dev]
    cache = FeatureCache(Path(config.features_cache), front_end=front_end, wanted=wanted)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cache.fill(FeatureSource(front_end=front_end, max_bytes=0).compute, workers=config.workers, first=rank / world_size)
    return FeatureSource(front_end=front_end, max_bytes=max_bytes, cache=cache)


def _weight(config: TrainConfig, data: Data, term: str) -> float:
    if term.startswith("hard-"):
        return config.alphas.get(term.removeprefix("hard-"), config.alpha)
    if term.startswith("kd-"):
        name = term.removeprefix("kd-")
        return config.lams.get(name, config.lams.get(data.join.stores[name].level, config.lam))
    return 1.0


def _write_settings(folder: Path, data: Data, coverage: Coverage, parameters: int) -> None:
    write_bytes(folder / "config.toml", to_toml(asdict(data.config)).encode())
    write_json(folder / "coverage.json", coverage.to_json())
    student = {
        "config": config_to_json(data.plan.student),
        "heads": describe_heads(data.join, data.plan.student),
        "parameters": parameters,
    }
    write_json(folder / "student.json", student)


def export(folder: Path, data: Data, student: Student, digest: str) -> None:
    """Write folder/model: the student without heads, its subword model, and where it is from."""
    subword_model, acoustic, inventory = None, None, data.join.subwords.inventory
    if data.config.main == "ctc":
        subword_model = data.join.subwords.path.read_bytes()
    extra: dict[str, Any] = {
        "objective": data.config.objective,
        "seed": data.config.loop.seed,
        "run": folder.name,
        "identity": digest,
    }
    if data.config.main == SENONE and data.join.alignment is not None:
        inventory = data.join.alignment.inventories[SENONE]
        extra[SENONE_FRAMES] = _frames_of_senones(data.join.alignment, data.train)
        acoustic = acoustic_files(data.join.subwords.path.parent)
    save_student(
        folder / "model", student.cpu(), inventory=inventory, subword_model=subword_model, acoustic=acoustic, extra=extra
    )


def _frames_of_senones(alignment: Alignment, utterances: Sequence[Utterance]) -> list[int]:
    """10 ms frames of each senone over the utterances that are aligned."""
    frames_V = np.zeros(len(alignment.inventories[SENONE]), np.int64)
    for utterance in utterances:
        if utterance.id in alignment:
            tier = alignment[utterance.id].tiers[SENONE]
            np.add.at(frames_V, tier.unit_U, np.diff(tier.start_U1))
    frames: list[int] = frames_V.tolist()
    return frames
