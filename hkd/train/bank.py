"""Stage two, before text: the posterior bank, of what students say of speech that they have not learnt from.

- The speakers of the training split (recordings, where speakers are not known) are dealt into folds. For each fold a
  student's low part (see `low_part`) learns from the other folds.
- Its posteriors of the fold's utterances, at speed 1 and without augmentation, go into the bank.

    FOLDER/   fold-0/ ...  the fold students' runs      bank.safetensors   see `hkd.stream.text`
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.errors import Progress, UserError, no_progress
from hkd.features.fbank import NO_AUGMENTATION
from hkd.files import digest_of
from hkd.loop import fit
from hkd.manifest import Utterance
from hkd.stream.loader import BatchPlan
from hkd.stream.text import FILE, Bank, Segments, cut, pauses
from hkd.student.model import posteriors_of
from hkd.timebase import num_encoder_frames
from hkd.train.config import TextConfig, TrainConfig
from hkd.train.data import TrainingData, check_bank, heard_by, low_part, open_data
from hkd.train.run import StudentTask, in_order, make_task
from hkd.units.inventory import MONOPHONE

Found = dict[str, dict[str, NDArray[Any]]]  # utterance → HEAD/ids and HEAD/p, a row an encoder frame


@dataclass(frozen=True, kw_only=True, slots=True)
class BankConfig:
    """How a bank is made."""

    folds: int = 5  # parts of the speakers: each is heard by a student of the others
    k: int = 16  # ids that are kept of a frame's posterior

    def __post_init__(self) -> None:
        if self.folds < 2 or self.k < 1:
            given = f"{self.folds} and {self.k}"
            raise UserError(f"`folds` must be at least 2 and `k` at least 1, but are {given} instead.")


@dataclass(frozen=True, kw_only=True)
class BankReport:
    """What `make_bank` did. right: head → share of its frames whose likeliest unit is the reference's."""

    folder: Path
    frames: int
    segments: int
    right: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def make_bank(
    config: TrainConfig,
    folder: Path,
    *,
    bank: BankConfig,
    manifest: Path,
    units: Path,
    alignment: Path,
    labels: Path | str | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> BankReport:
    """Train the fold students, or go on, and write the bank; one that is there and of the same inputs is left. Raises
    UserError where no head conditions, speakers are too few, or the folder holds another bank."""
    if not any(name.startswith("kd-") for name in config.condition):  # then no label store is read
        config = replace(config, objective="none", stores=(), levels=(), hard_heads=None)
    config = replace(config, text=TextConfig())
    data = open_data(config, manifest=manifest, alignment=alignment, units=units, labels=labels)
    low = low_part(data.plan)
    heard, loop = heard_by(data.plan, data.identity["data"]), asdict(config.loop)
    identity = {**heard, "train": data.identity["train"], "loop": loop, "folds": bank.folds, "k": bank.k}
    if (folder / FILE).exists():
        check_bank(folder, Bank.load(folder), identity)
    else:
        _make(replace(data, plan=low), folder, bank, identity, device=device, progress=progress)
    made = Bank.load(folder)
    return BankReport(
        folder=folder, frames=made.facts["frames"], segments=len(made.segments.phone_S), right=made.facts["right"]
    )


def _make(
    data: TrainingData, folder: Path, bank: BankConfig, identity: Mapping[str, Any], *, device: str, progress: Progress
) -> None:
    """Train the student of each fold, take its posteriors of the fold, write the bank. data: of the low part."""
    fold_of = deal(data.train, bank.folds)
    found: Found = {}
    right = {head.name: [0, 0] for head in data.plan.student.heads}
    for fold in range(bank.folds):
        so_far = partial(_in_fold, progress, fold, bank.folds)
        task = _task(data, [u for u in data.train if fold_of[u.id] != fold], so_far)
        loop = replace(data.config.loop, max_steps=task.max_steps, shares_every=0, eval_every=0, best_by="", patience=0)
        fit(task, loop, folder / f"fold-{fold}", identity={**identity, "fold": fold}, device=device, progress=so_far)
        unheard = [u for u in data.train if fold_of[u.id] == fold and data.join.aligned(u.id)]
        _listen(task, unheard, bank.k, found, right)
    facts = {"made_from": identity, "right": {name: hits / max(1, num) for name, (hits, num) in right.items()}}
    _write(folder, data, found, facts)
    progress(bank.folds, bank.folds)


def _in_fold(progress: Progress, fold: int, folds: int, done: float, total: float, **facts: float | str) -> None:
    progress(fold + done / total, folds, **facts)


def deal(utterances: Sequence[Utterance], folds: int) -> dict[str, int]:
    """Utterance → fold, by speaker, else by recording: the one with the most sound first, each to the fold with the
    least so far. Raises UserError where there are fewer than folds."""
    seconds: dict[str, float] = defaultdict(float)
    for utterance in utterances:
        seconds[utterance.speaker or utterance.recording] += utterance.duration or 1.0
    if len(seconds) < folds:
        raise UserError(f"`folds` must be at most the number of speakers, {len(seconds)}, but is {folds} instead.")
    filled, fold_of = [0.0] * folds, {}
    for group in sorted(seconds, key=lambda name: (-seconds[name], digest_of([name]))):
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += seconds[group]
    return {utterance.id: fold_of[utterance.speaker or utterance.recording] for utterance in utterances}


def _task(data: TrainingData, part: list[Utterance], progress: Progress) -> StudentTask:
    """The run of a fold: features and their mean are those of the whole, so that they are computed once."""
    config = data.config
    frames = [data.frames[utterance.id] for utterance in part]
    plan = BatchPlan(frames, batch_frames=config.batch_seconds * 100, seed=config.loop.seed)
    task = make_task(data, plan, max_steps=config.max_steps(plan.batches_per_epoch), progress=progress)
    return replace(task, maker=replace(task.maker, utterances=part), dev=None)


@torch.no_grad()
def _listen(task: StudentTask, part: list[Utterance], k: int, found: Found, right: dict[str, list[int]]) -> None:
    """Add, by utterance, each head's likeliest ids and their probabilities; count the frames that are right."""
    student = task.student.eval()
    hard = {head.level: 1 for head in student.config.heads if head.kind == "hard"}
    maker = replace(task.maker, utterances=part, augment=NO_AUGMENTATION, hard=hard, soft={}, stride={}, alone=0.0)
    for batch in in_order(maker, task.config.batch_seconds):
        moved = batch.to(student.mean_F.device)
        output = student(moved.x_BTF, moved.length_B)
        for head in student.config.heads:
            p_BTV = posteriors_of(output.heads[head.name], head.slots).cpu()
            top = p_BTV.topk(min(k, head.num_units), dim=-1)
            for b, name in enumerate(batch.ids):
                num = num_encoder_frames(int(batch.length_B[b]))
                rows = found.setdefault(name, {})
                rows[f"{head.name}/ids"] = top.indices[b, :num].numpy().astype(np.int32)
                rows[f"{head.name}/p"] = top.values[b, :num].numpy().astype(np.float16)
            if head.kind == "hard":
                labels = batch.hard[head.level]
                hits_M = top.indices[:, :, 0].flatten()[labels.slot_M] == labels.unit_M
                right[head.name][0] += int(hits_M.sum())
                right[head.name][1] += len(hits_M)


def _write(folder: Path, data: TrainingData, found: Found, facts: Mapping[str, Any]) -> None:
    alignment = data.join.alignment
    assert alignment is not None
    names, rows, columns, start = sorted(found), [], [], 0
    for name in names:
        num = len(next(iter(found[name].values())))
        segments = cut(alignment[name], alignment.silences[MONOPHONE], num)
        rows.append((alignment[name], segments))
        columns.append(segments._replace(first_S=segments.first_S + start))
        start += num

    def column(part: str) -> NDArray[Any]:
        return np.concatenate([found[name][part] for name in names])

    heads = {head.name: (column(f"{head.name}/ids"), column(f"{head.name}/p")) for head in data.plan.student.heads}
    own = {
        "heads": {head.name: head.num_units for head in data.plan.student.heads},
        "phones": list(alignment.inventories[MONOPHONE].symbols),
        "pauses": pauses(rows),
        "frames": start,
    }
    segments = Segments(*map(np.concatenate, zip(*columns, strict=True)))
    Bank(segments=segments, heads=heads, facts={**facts, **own}).save(folder)
