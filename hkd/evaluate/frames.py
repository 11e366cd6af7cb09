"""What a run's heads are worth on a split: accuracy against the alignment, distance from the teacher, calibration.

- A hybrid student's main output is one more head, `main`, with its distance from the teacher where the objective is interpolation; that of
  a CTC student is judged by hkd.evaluate.pieces.
- Heads are not exported, so this reads the run's full weights (student.json, final.safetensors), the alignment and the label stores.
- Accuracy: share of slots whose likeliest unit is the one that the alignment has there. Auxiliary heads are asked where their teacher is:
  not in silence; those in a teacher's own pieces are held against the pieces that the store calls gold.
- KL(teacher ‖ head), the tail as one outcome, only where the store covers the utterance; beside it that of a guess without context
  (hkd.evaluate.context), where the level has a hard head, too.

Shape letters: M slots, V units of a level, H units of a head.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hkd.align.alignment import Alignment
from hkd.evaluate.context import guess
from hkd.evaluate.heads import MAIN, Head, heads_of, read_card, stores_of
from hkd.features.source import FeatureSource
from hkd.files import digest_of_file
from hkd.labels.store import digest_of_store
from hkd.loop.checkpoint import load_model_tensors
from hkd.manifest import Manifest
from hkd.metrics import confidence, entropy, expected_calibration_error, kl
from hkd.progress import Progress, no_progress
from hkd.stream.batch import Batch, SoftLabels
from hkd.stream.join import Join
from hkd.stream.loader import BatchMaker
from hkd.student.config import config_from_json
from hkd.student.export import placed
from hkd.student.model import Student, StudentOutput
from hkd.units.subword import SubwordModel


@dataclass
class Sums:
    """What adds up over batches."""

    confidence: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    entropy: float = 0.0
    kl: float = 0.0
    kl_slots: int = 0
    guess_kl: float = 0.0
    guess_slots: int = 0

    def add(self, logits_AV: Tensor, unit_A: Tensor) -> None:
        """Slots whose reference is known."""
        self.confidence.append(confidence(logits_AV).cpu())
        self.correct.append((logits_AV.argmax(1) == unit_A).cpu())
        self.entropy += float(entropy(logits_AV).double().sum())

    def add_kl(self, kl_M: Tensor) -> None:
        """Slots that a teacher has labelled."""
        self.kl += float(kl_M.double().sum())
        self.kl_slots += len(kl_M)

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
            "kl_without_context": self.guess_kl / self.guess_slots if self.guess_slots else None,
            "frames": len(confidence_M),
        }


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
    features: FeatureSource | None = None,
    progress: Progress = no_progress,
) -> dict[str, dict[str, Any]]:
    """Head → accuracy, calibration_error, confidence, entropy, kl, kl_without_context, frames; {} where weights, heads or alignment are missing.

    A store that is absent, incomplete, or not the one that a head was trained with costs that head its KL.
    Raises UserError where an utterance's transcript is not the one that was aligned or labelled, or its units are others.
    """
    card = read_card(run_folder)
    if card is None or not card["heads"] or alignment is None or not alignment.exists() or subword_model is None:
        return {}
    student = Student(placed(config_from_json(card["config"]), run_folder / "model"))
    load_model_tensors(student, safetensors.torch.load((run_folder / "final.safetensors").read_bytes()))
    student.to(device).eval()
    aligned, subwords = Alignment(alignment), SubwordModel(subword_model)
    untrimmed = [
        row["store"]
        for name, row in card["heads"].items()
        if row.get("store") is not None
        and (name == MAIN or (row.get("units") is None and row.get("inventory") == subwords.inventory.digest))
    ]
    stores = stores_of(card["heads"], labels)
    join = Join(part, subwords=subwords, alignment=aligned, stores=stores, same_units=untrimmed, units=units)
    join.check(part)
    heads = heads_of(card, join, part)
    if not heads:
        return {}
    maker = BatchMaker(
        utterances=list(part),
        join=join,
        features=features or FeatureSource(front_end=student.config.encoder.front_end, max_bytes=0),
        hard={head.level: head.slots for head in heads if head.unit_V is not None},
        soft={head.store: head.slots for head in heads if head.store is not None},
    )
    sums: dict[str, Sums] = defaultdict(Sums)
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
    card = read_card(run_folder)
    if card is None or not card["heads"] or alignment is None or not alignment.exists():
        return {}
    stores = stores_of(card["heads"], labels)
    main = {MAIN: card["heads"][MAIN]["inventory"]} if MAIN in card["heads"] else {}
    return {
        **main,
        "weights": digest_of_file(run_folder / "final.safetensors"),
        "alignment": digest_of_file(alignment),
        "stores": {name: digest_of_store(reader) for name, reader in stores.items()},
    }


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
def _add(student: Student, batch: Batch, heads: list[Head], sums: dict[str, Sums]) -> None:
    slots = {head.name: _slots_of(head, batch) for head in heads}
    output = student(batch.x_BTF, batch.length_B, slots={name: slot_M for name, (slot_M, _, _) in slots.items()})
    for head in heads:
        _, unit_M, soft_M = slots[head.name]
        logits_MV, total = _logits(output, head.name, slots), sums[head.name]
        asked_M = unit_M >= 0
        total.add(logits_MV[asked_M], unit_M[asked_M])
        if head.store is not None and len(soft_M):
            soft = batch.soft[head.store]
            row_M = soft.position_M
            total.add_kl(_kl(logits_MV[soft_M], soft, row_M))
            if head.table_VH is not None and head.hard is not None:
                place_M = torch.searchsorted(slots[head.hard][0], soft.slot_M).clamp(max=len(slots[head.hard][0]) - 1)
                heard_M = slots[head.hard][0][place_M] == soft.slot_M
                logits_MH = guess(_logits(output, head.hard, slots)[place_M[heard_M]], head.table_VH.to(place_M.device))
                kl_M = _kl(logits_MH, soft, row_M[heard_M])
                total.guess_kl += float(kl_M.double().sum())
                total.guess_slots += len(kl_M)


def _kl(logits_MH: Tensor, soft: SoftLabels, row_M: Tensor) -> Tensor:
    """kl_M: from the teacher's rows."""
    return kl(logits_MH, ids_MK=soft.ids_NK[row_M], logp_MK=soft.logp_NK[row_M], tail_M=soft.tail_N[row_M])


def _logits(output: StudentOutput, head: str, slots: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """logits_MV of a head at its slots."""
    return output.logits_BTV.flatten(0, 1)[slots[head][0]] if head == MAIN else output.heads[head]


def _slots_of(head: Head, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
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
