"""What a run's heads are worth on a split: accuracy against the alignment, distance from the teacher, calibration.

- A hybrid student's main output is one more head, `main`, with its distance from the teacher where the objective is interpolation.
- Heads are not exported, so this reads the run's full weights (student.json, final.safetensors), the alignment and the label stores.
- Accuracy: share of slots whose likeliest unit is the one that the alignment has there. Auxiliary heads are asked where their teacher is:
  not in silence; those in a teacher's own pieces are held against the pieces that the store calls gold.
- KL(teacher ‖ head), the tail as one outcome, only where the store covers the utterance.

Shape letters: M slots, V units of a level, H units of a head.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkd.align.alignment import Alignment
from hkd.errors import HkdError, UserError
from hkd.features.source import FeatureSource
from hkd.files import digest_of, digest_of_file
from hkd.labels.folder import DATA, SPEC
from hkd.labels.store import LabelReader, store_folders
from hkd.loop.checkpoint import load_model_tensors
from hkd.manifest import Manifest
from hkd.metrics import confidence, entropy, expected_calibration_error, kl
from hkd.progress import Progress, no_progress
from hkd.stream.batch import Batch
from hkd.stream.join import Join
from hkd.stream.loader import BatchMaker
from hkd.student.config import config_from_json, default_slots
from hkd.student.model import Student
from hkd.units.level import SENONE
from hkd.units.subword import SubwordModel

log = logging.getLogger(__name__)

MAIN = "main"  # no head of training is called so


@dataclass
class _Sums:
    """What adds up over batches."""

    confidence: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    entropy: float = 0.0
    kl: float = 0.0
    kl_slots: int = 0

    def figures(self) -> dict[str, Any] | None:
        """The figures; None where no slot was labelled."""
        if not self.confidence:
            return None
        confidence_M, correct_M = torch.cat(self.confidence), torch.cat(self.correct)
        if not len(confidence_M):
            return None
        return {
            "accuracy": float(correct_M.double().mean()),
            "calibration_error": float(expected_calibration_error(confidence_M, correct_M)),
            "confidence": float(confidence_M.double().mean()),
            "entropy": self.entropy / len(confidence_M),
            "kl": self.kl / self.kl_slots if self.kl_slots else None,
            "frames": len(confidence_M),
        }


@dataclass(frozen=True, kw_only=True)
class _Head:
    """A head and how the units of its level become its own. `unit_V`: −1 for units that it is not asked about; None: foreign pieces."""

    name: str
    level: str
    slots: int
    store: str | None
    unit_V: NDArray[np.int64] | None


def frame_figures(
    run_folder: Path,
    part: Manifest,
    *,
    alignment: Path | None,
    labels: Path | None,
    subword_model: Path | None,
    units: Path | None = None,
    device: str = "cpu",
    batch_seconds: float = 60.0,
    progress: Progress = no_progress,
) -> dict[str, dict[str, Any]]:
    """Head → accuracy, calibration_error, confidence, entropy, kl, frames; {} where weights, heads or alignment are missing.

    A store that is absent, incomplete, or not the one that a head was trained with costs that head its KL.
    Raises UserError where an utterance's transcript is not the one that was aligned or labelled, or its units are others.
    """
    card = _read_card(run_folder)
    if card is None or not card["heads"] or alignment is None or not alignment.exists() or subword_model is None:
        return {}
    student = Student(config_from_json(card["config"]))
    load_model_tensors(student, safetensors.torch.load((run_folder / "final.safetensors").read_bytes()))
    student.to(device).eval()
    aligned, subwords = Alignment(alignment), SubwordModel(subword_model)
    untrimmed = [row["store"] for name, row in card["heads"].items() if name == MAIN and row["store"] is not None]
    stores = _stores(card["heads"], labels)
    join = Join(part, subwords=subwords, alignment=aligned, stores=stores, same_units=untrimmed, units=units)
    join.check(part)
    heads = _of_equal_slots([head for name, row in card["heads"].items() if (head := _head(name, row, join)) is not None])
    if not heads:
        return {}
    maker = BatchMaker(
        utterances=list(part),
        join=join,
        features=FeatureSource(front_end=student.config.encoder.front_end, max_bytes=0),
        hard={head.level: head.slots for head in heads if head.unit_V is not None},
        soft={head.store: head.slots for head in heads if head.store is not None},
    )
    sums: dict[str, _Sums] = defaultdict(_Sums)
    done = 0
    for rows in _batches(part, batch_seconds):
        batch = maker(rows)
        assert batch is not None
        _add(student, batch.to(device), heads, sums)
        done += len(rows)
        progress(done, len(part))
    figures = ((head.name, sums[head.name].figures()) for head in heads)
    return {name: value for name, value in figures if value is not None}


def frame_inputs(run_folder: Path, *, alignment: Path | None, labels: Path | None) -> dict[str, Any]:
    """What the figures hang on: digests of weights, alignment, and the stores that heads were taught by; {} where there will be none."""
    card = _read_card(run_folder)
    if card is None or not card["heads"] or alignment is None or not alignment.exists():
        return {}
    stores = _stores(card["heads"], labels)
    main = {MAIN: card["heads"][MAIN]["inventory"]} if MAIN in card["heads"] else {}
    return {
        **main,
        "weights": digest_of_file(run_folder / "final.safetensors"),
        "alignment": digest_of_file(alignment),
        "stores": {
            name: digest_of(path.read_bytes() for path in (reader.path / SPEC, *sorted((reader.path / DATA).glob("*.json"))))
            for name, reader in stores.items()
        },
    }


def _read_card(run_folder: Path) -> dict[str, Any] | None:
    """The run's student.json, with a hybrid student's main output as the first of the heads; None without weights."""
    path = run_folder / "student.json"
    if not path.exists() or not (run_folder / "final.safetensors").exists():
        return None
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if card["config"]["main"] == SENONE and (run_folder / "model" / "student.json").exists():
        card["heads"] = {MAIN: _main_row(run_folder), **card["heads"]}
    return card


def _main_row(run_folder: Path) -> dict[str, Any]:
    """A senone main output, as `hkd.train.student.describe_heads` has its heads."""
    exported = json.loads((run_folder / "model" / "student.json").read_text(encoding="utf-8"))
    digest = exported["inventory"]["digest"]
    row: dict[str, Any] = {"level": SENONE, "kind": "hard", "slots": default_slots(SENONE), "store": None, "inventory": digest}
    identity = run_folder / "identity.json"
    trained = json.loads(identity.read_text(encoding="utf-8")) if identity.exists() else None
    if trained is not None and trained["train"]["objective"] == "interpolation":
        [row["store"]] = trained["data"]["stores"]
    return row


def _stores(heads: Mapping[str, Mapping[str, Any]], labels: Path | None) -> dict[str, LabelReader]:
    """The stores that the heads were taught by, where they are there, whole, and of the same inventory."""
    wanted = {row["store"]: row for row in heads.values() if row.get("store") is not None}
    try:
        folders = store_folders(labels) if wanted and labels is not None else {}
    except UserError:  # there is none
        folders = {}
    found = {}
    for name, path in folders.items():
        if name in wanted:
            try:
                reader = LabelReader.open(path)
            except HkdError as error:
                log.warning("label store '%s' is left out: %s", name, error)
                continue
            if reader.spec.inventory.digest == wanted[name].get("inventory"):
                found[name] = reader
    return found


def _head(name: str, row: Mapping[str, Any], join: Join) -> _Head | None:
    """What is known of a head; None where nothing can be said of it."""
    level, store = str(row["level"]), row.get("store")
    own = join.inventory(level)
    kept = row.get("units")
    joined = join.stores.get(store) if store is not None else None
    if joined is not None and kept is not None and not np.array_equal(joined.head_unit_V[kept], np.arange(len(kept))):
        joined = None  # the store has been made anew and keeps other ids
    unit_V: NDArray[np.int64] | None = None
    if own and row.get("inventory", own.digest) == own.digest:
        unit_V = np.arange(len(own)) if kept is None else np.full(len(own), len(kept))
        if kept is not None:
            unit_V[kept] = np.arange(len(kept))
        if row["kind"] != "hard" and join.alignment is not None:
            unit_V[list(join.alignment.silences.get(level, ()))] = -1
    if unit_V is None and joined is None:
        return None
    return _Head(name=name, level=level, slots=int(row["slots"]), store=None if joined is None else joined.name, unit_V=unit_V)


def _of_equal_slots(heads: list[_Head]) -> list[_Head]:
    """A batch holds a level's references at one number of slots: a head with another than its level's first is held against what its store
    calls gold, or left out."""
    first: dict[str, int] = {}
    for head in heads:
        if head.unit_V is not None:
            first.setdefault(head.level, head.slots)
    fitting = [head if first.get(head.level, head.slots) == head.slots else replace(head, unit_V=None) for head in heads]
    return [head for head in fitting if head.unit_V is not None or head.store is not None]


def _batches(part: Manifest, batch_seconds: float) -> list[list[int]]:
    """Rows by falling duration, about batch_seconds of audio together."""
    order = sorted(range(len(part)), key=lambda row: (-(part[row].duration or 5.0), row))
    groups: list[list[int]] = [[]]
    for row in order:
        longest = part[groups[-1][0]].duration or 5.0 if groups[-1] else 0.0
        if groups[-1] and longest * (len(groups[-1]) + 1) > batch_seconds:
            groups.append([])
        groups[-1].append(row)
    return groups


@torch.no_grad()
def _add(student: Student, batch: Batch, heads: list[_Head], sums: dict[str, _Sums]) -> None:
    slots = {head.name: _slots_of(head, batch) for head in heads}
    output = student(batch.x_BTF, batch.length_B, slots={name: slot_M for name, (slot_M, _, _) in slots.items()})
    for head in heads:
        slot_M, unit_M, soft_M = slots[head.name]
        logits_MV = output.logits_BTV.flatten(0, 1)[slot_M] if head.name == MAIN else output.heads[head.name]
        total = sums[head.name]
        asked_M = unit_M >= 0
        logits_AV = logits_MV[asked_M]
        total.confidence.append(confidence(logits_AV).cpu())
        total.correct.append((logits_AV.argmax(1) == unit_M[asked_M]).cpu())
        total.entropy += float(entropy(logits_AV).double().sum())
        if head.store is not None and len(soft_M):
            soft = batch.soft[head.store]
            row_M = soft.position_M
            kl_M = kl(logits_MV[soft_M], ids_MK=soft.ids_NK[row_M], logp_MK=soft.logp_NK[row_M], tail_M=soft.tail_N[row_M])
            total.kl += float(kl_M.double().sum())
            total.kl_slots += len(kl_M)


def _slots_of(head: _Head, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(slot_M, unit_M, soft_M): all slots that are labelled in any way, the head's reference unit there or −1, and the places among
    them of the teacher's slots, in the teacher's order."""
    soft = batch.soft[head.store] if head.store is not None else None
    parts = [soft.slot_M] if soft is not None else []
    hard = batch.hard[head.level] if head.unit_V is not None else None
    if hard is not None:
        parts.append(hard.slot_M)
    slot_M = torch.unique(torch.cat(parts))
    unit_M = torch.full_like(slot_M, -1)
    if hard is not None:
        unit_V = torch.as_tensor(head.unit_V, device=slot_M.device)
        unit_M[torch.searchsorted(slot_M, hard.slot_M)] = unit_V[hard.unit_M]
    elif soft is not None:
        unit_M[torch.searchsorted(slot_M, soft.slot_M)] = soft.gold_N[soft.position_M]
    soft_M = slot_M.new_zeros(0) if soft is None else torch.searchsorted(slot_M, soft.slot_M)
    return slot_M, unit_M, soft_M
