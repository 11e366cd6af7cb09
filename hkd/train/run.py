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

from hkd.align.alignment import Alignment
from hkd.features.augment import NO_AUGMENTATION
from hkd.features.cache import FeatureCache, Wanted
from hkd.features.source import FeatureSource, mean_and_std
from hkd.files import digest_of_json, write_bytes, write_json
from hkd.loop import fit
from hkd.loop.record import claim, finished, steps_done
from hkd.loop.run import identity_of
from hkd.manifest import Utterance
from hkd.progress import Progress, no_progress
from hkd.stream.coverage import Coverage, require
from hkd.stream.join import runs_of
from hkd.stream.loader import BatchMaker
from hkd.stream.plan import BatchPlan
from hkd.student.config import PRESETS, config_to_json
from hkd.student.export import SENONE_FRAMES, save_student
from hkd.student.model import Student
from hkd.student.speech_encoder import SpeechEncoder, load_pretrained
from hkd.toml import to_toml
from hkd.train.config import TrainConfig
from hkd.train.data import Data, coverage_of, open_data
from hkd.train.student import describe_heads
from hkd.train.task import StudentTask
from hkd.units.acoustic import acoustic_files
from hkd.units.level import SENONE

log = logging.getLogger(__name__)

CMVN_UTTERANCES = 2000


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
    plan = BatchPlan(
        [data.frames[u.id] for u in data.train],
        batch_frames=config.batch_seconds * 100,
        seed=config.loop.seed,
        runs=runs_of((store.reader for store in data.join.stores.values()), [u.id for u in data.train]),
    )
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
    for line in contradictions(config, max_steps):
        log.warning("%s", line)
    if data.left_out:
        log.warning(
            "%d utterances are longer than max_utterance_seconds, or than the encoder can read, and left out (%s ...)",
            len(data.left_out),
            data.left_out[0],
        )
    task = make_task(data, plan, max_steps=loop.max_steps)
    parameters = sum(p.numel() for n, p in task.student.named_parameters() if not n.startswith("heads."))
    parameters += data.plan.student.encoder.front_end.num_parameters
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


def contradictions(config: TrainConfig, max_steps: int) -> list[str]:
    """Settings of which one wins over the other, a sentence each."""
    lines = []
    for name, value in config.encoder.beside_preset.items():
        preset = config.encoder.preset
        lines.append(
            f"`encoder.{name}` is {value} and wins over `encoder.preset` {preset}, which has {PRESETS[preset][name]}. Take one of them out."
        )
    if config.heads_warmup_steps > max_steps:
        lines.append(
            f"`heads_warmup_steps` is {config.heads_warmup_steps}, but there are {max_steps} steps: alpha and lam never reach their values."
        )
    return lines


def make_task(data: Data, plan: BatchPlan, *, max_steps: int) -> StudentTask:
    """The student with its features' mean and deviation, and what feeds it. Weights are a function of the seed alone."""
    config, front_end = data.config, data.plan.student.encoder.front_end
    features = _features(data)
    augment, mean_F = config.augment, torch.zeros(front_end.num_bins)
    if front_end.kind in ("wave", "upstream"):
        augment = replace(augment, freq_masks=0)  # a row's values are no bins
    if front_end.kind != "wave":
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
    wanted: list[Wanted] = [[(u, speeds) for u in data.train], [(u, (1.0,)) for u in data.dev]]
    cache = FeatureCache(Path(config.features_cache), front_end=front_end, wanted=wanted)
    cache.fill(FeatureSource(front_end=front_end, max_bytes=0).compute, workers=config.workers)
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
