"""What a run's heads and its main output are worth on a split: accuracy, distance from the teacher, calibration.

- Heads are not exported: this reads the run's student.json and final.safetensors, the alignment and the label stores.
- Accuracy: share of slots whose likeliest unit is the alignment's. Auxiliary heads are asked where their teacher has
  labels: not in silence. Heads in a teacher's own pieces are compared with the pieces that the store calls gold.
- KL(teacher ‖ head), the tail as one outcome, where the store covers the utterance. Beside it, where the level has a
  hard head too, the KL of a guess without context, q = Σ_v p_hard(v) · table_v: the teacher's average for each unit,
  mixed by what the hard head hears. A head with no lower KL than that has learnt no more than a table of confusions.
- A hybrid student's main output is one more head, `main`, with its KL where the objective is interpolation.
- A CTC student's main output is asked at the pieces of the transcript, each in the frame that holds most of its
  occupancy (hkd.losses.ctc_occupancy, the student's own, given the transcript), the blank left out: at the same
  positions whatever the objective. Transcripts without a path (shorter than their pieces) are left out. Its teacher is
  the store of interpolation, else `subword`; no store of draws, nor one with mass of no piece in its tail (projected).

Shape letters: B utterances, T frames, M slots or pieces, U an utterance's pieces, V a level's units, H a head's units.
"""

import logging
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkd.align.alignment import Alignment, sequence_digest
from hkd.decode.recogniser import Recogniser
from hkd.errors import HkdError, Progress, UserError, no_progress
from hkd.evaluate.decoding import batches, rows_by_seconds
from hkd.evaluate.score import read_json
from hkd.features.cache import FeatureSource
from hkd.files import digest_of_file
from hkd.labels.card import calibration_bins, calibration_error
from hkd.labels.ops import can_average, summed
from hkd.labels.store import LabelReader, digest_of_store, store_folders
from hkd.loop.checkpoint import FINAL, load_final
from hkd.losses import ctc_feasible, ctc_occupancy, sparse_kl
from hkd.manifest import Manifest
from hkd.stream.join import Join, JoinedStore
from hkd.stream.loader import Batch, BatchMaker
from hkd.student.config import config_from_json, default_slots
from hkd.student.export import placed
from hkd.student.model import StudentModel, StudentOutput
from hkd.units.inventory import SENONE, SUBWORD
from hkd.units.sequences import SubwordModel
from hkd.units.text import words

logger = logging.getLogger(__name__)

MAIN = "main"  # no head of training is called so
MOST_UTTERANCES = 5000  # that a teacher is averaged over


@dataclass(frozen=True, kw_only=True)
class EvaluatedHead:
    """A head. `unit_V`: the units of its level as its own, −1 where it is not asked; None: foreign pieces."""

    name: str
    level: str
    slots: int
    store: str | None
    unit_V: NDArray[np.int64] | None
    hard: str | None = None  # the hard head of its level
    table_VH: Tensor | None = None  # what that head's units mean to the teacher


@dataclass
class Sums:
    """Sums over batches of what an output says where the reference is known, and of its distances from the teacher."""

    confidence: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    entropy: float = 0.0
    kl: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # sum, slots
    guess: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def add(self, logits_AV: Tensor, unit_A: Tensor) -> None:
        """Slots whose reference is known."""
        self.confidence.append(torch.softmax(logits_AV, dim=1).amax(dim=1).cpu())
        self.correct.append((logits_AV.argmax(1) == unit_A).cpu())
        logp_AV = torch.log_softmax(logits_AV, dim=1)
        entropy_A = -torch.where(torch.isfinite(logp_AV), logp_AV.exp() * logp_AV, 0.0).sum(dim=1)
        self.entropy += float(entropy_A.double().sum())

    def figures(self) -> dict[str, Any] | None:
        """The figures; None where no slot was labelled."""
        if not sum(map(len, self.correct)):
            return None
        confidence_M, correct_M = torch.cat(self.confidence).double(), torch.cat(self.correct)
        kl, guess = (float(total / slots) if slots else None for total, slots in (self.kl, self.guess))
        return {
            "accuracy": float(correct_M.double().mean()),
            "calibration_error": calibration_error(calibration_bins(confidence_M.numpy(), correct_M.numpy())),
            "confidence": float(confidence_M.mean()),
            "entropy": self.entropy / len(confidence_M),
            "kl": kl,
            "kl_without_context": guess,
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
    """Head → accuracy, calibration_error, confidence, entropy, kl, kl_without_context, frames; {} without weights,
    heads or alignment. A store that is absent, incomplete, or not the one that a head was trained with costs that head
    its KL. Raises UserError where an utterance's transcript or units are not those that were aligned or labelled."""
    trained = _trained_heads(run_folder, alignment)
    if not trained or alignment is None or subword_model is None:
        return {}
    config = config_from_json(read_json(run_folder / "student.json")["config"])
    student = StudentModel(placed(config, run_folder / "model"))
    load_final(student, run_folder)
    student.to(device).eval()
    subwords = SubwordModel(subword_model)
    own = []
    for name, row in trained.items():
        is_whole = (row.get("units"), row.get("inventory")) == (None, subwords.inventory.digest)
        if row.get("store") and (name == MAIN or is_whole):
            own.append(row["store"])
    stores = _stores_of(trained, labels)
    join = Join(part, subwords=subwords, alignment=Alignment(alignment), stores=stores, same_units=own, units=units)
    join.check(part)
    if not (heads := _heads_of(trained, join, part)):
        return {}
    maker = BatchMaker(
        utterances=list(part), join=join,
        features=features or FeatureSource(front_end=student.config.encoder.front_end, max_bytes=0),
        hard={head.level: head.slots for head in heads if head.unit_V is not None},
        soft={head.store: head.slots for head in heads if head.store is not None},
    )  # fmt: skip
    sums: dict[str, Sums] = defaultdict(Sums)
    done = 0
    for rows in rows_by_seconds(part, batch_seconds):
        batch = maker(rows)
        assert batch is not None
        _add(student, batch.to(device), heads, sums)
        done += len(rows)
        progress(done, len(part))
    return {head.name: value for head in heads if (value := sums[head.name].figures()) is not None}


def frame_inputs(run_folder: Path, *, alignment: Path | None, labels: Path | None) -> dict[str, Any]:
    """The digests that `frame_figures` depends on (weights, alignment, the heads' stores); {} where it gives none."""
    heads = _trained_heads(run_folder, alignment)
    if not heads or alignment is None:
        return {}
    return {
        **({MAIN: heads[MAIN]["inventory"]} if MAIN in heads else {}),
        "weights": digest_of_file(run_folder / FINAL),
        "alignment": digest_of_file(alignment),
        "stores": {name: digest_of_store(reader) for name, reader in _stores_of(heads, labels).items()},
    }


def piece_figures(
    recogniser: Recogniser,
    part: Manifest,
    *,
    teacher: LabelReader | None = None,
    batch_seconds: float = 60.0,
    features: FeatureSource | None = None,
) -> dict[str, Any] | None:
    """The figures of a CTC student's main output, kl_without_context None, frames the number of pieces; None for
    senones, and where no transcript has a path. teacher: of `piece_teacher`. Raises UserError for unreadable sound."""
    model = recogniser.meta.subword_model
    if recogniser.is_hybrid or model is None:
        return None
    subwords, sums = SubwordModel(model), Sums()
    for rows, waves, given in batches(part, batch_seconds, features):
        logits_BTV, length_B, _ = recogniser.logits(waves, given)
        units = [torch.from_numpy(subwords.encode(words(part[row].text))[0]).long() for row in rows]
        count_B = torch.tensor([len(unit_U) for unit_U in units])
        target_L = torch.cat(units) + 1  # class 0 is the blank
        best_BU = ctc_occupancy(logits_BTV, length_B, target_L, count_B).argmax(1)
        for b in ctc_feasible(length_B, target_L, count_B).nonzero()[:, 0].tolist():
            logits_UV = logits_BTV[b, best_BU[b, : len(units[b])], 1:]
            sums.add(logits_UV, units[b])
            name = part[rows[b]].id
            if teacher and name in teacher and teacher.unit_digest(name) == sequence_digest(units[b].int().numpy()):
                topk = teacher.block([name]).topk
                ids_MK, logp_MK, tail_M = (torch.from_numpy(x.copy()) for x in (topk.ids_NK, topk.logp_NK, topk.tail_N))
                sums.kl += _kl(logits_UV, ids_MK.long(), logp_MK, tail_M)
    return sums.figures()


def piece_teacher(run_folder: Path, labels: Path | None) -> LabelReader | None:
    """The store that the main output is compared with; None where absent, not whole, or unfit (see the module)."""
    name, exported = _interpolated(run_folder) or SUBWORD, read_json(run_folder / "model" / "student.json")
    main = {"store": name, "inventory": exported.get("inventory", {}).get("digest")}
    reader = _stores_of({MAIN: main}, labels).get(name)
    if reader is None or reader.spec.selection != "topk" or "project" in reader.spec.teacher.get("options", {}):
        return None
    return reader


def piece_inputs(run_folder: Path, teacher: LabelReader | None) -> dict[str, Any]:
    """What `piece_figures` depends on, besides the student and the transcripts; {} for senones."""
    if read_json(run_folder / "model" / "student.json").get("config", {}).get("main") == SENONE:
        return {}
    return {MAIN: None if teacher is None else digest_of_store(teacher)}


def _interpolated(run_folder: Path) -> str | None:
    """The label store that is mixed into the main output's targets; None for other objectives."""
    identity = read_json(run_folder / "identity.json")
    if identity.get("train", {}).get("objective") != "interpolation":
        return None
    return next(iter(identity.get("data", {}).get("stores", {})), None)


def _trained_heads(run_folder: Path, alignment: Path | None) -> dict[str, dict[str, Any]]:
    """The heads of the run's student.json, a hybrid's main output first; {} without weights, alignment or heads."""
    trained, exported = read_json(run_folder / "student.json"), read_json(run_folder / "model" / "student.json")
    if not trained or not (run_folder / FINAL).exists() or alignment is None or not alignment.exists():
        return {}
    config, heads = trained.get("config"), trained.get("heads")
    if not isinstance(config, dict) or not isinstance(heads, dict):
        rule = "must have the run's config and heads"
        raise UserError(f"{run_folder / 'student.json'} {rule}, but has not. Train the run again.")
    if config.get("main") == SENONE and "inventory" in exported:
        main = {"level": SENONE, "kind": "hard", "slots": default_slots(SENONE), "store": _interpolated(run_folder)}
        return {MAIN: main | {"inventory": exported["inventory"]["digest"]}, **heads}
    return heads


def _stores_of(heads: Mapping[str, Mapping[str, Any]], labels: Path | None) -> dict[str, LabelReader]:
    """The stores that the heads were taught by: those that are present, whole, and of the same inventory."""
    wanted = {row["store"]: row for row in heads.values() if row.get("store") is not None}
    try:
        folders = store_folders(labels) if wanted and labels is not None else {}
    except UserError:  # there is none
        return {}
    found = {}
    for name in wanted.keys() & folders.keys():
        try:
            reader = LabelReader.open(folders[name])
        except HkdError as error:
            logger.warning("label store '%s' is left out: %s", name, error)
            continue
        if reader.spec.inventory.digest == wanted[name].get("inventory"):
            found[name] = reader
    return dict(sorted(found.items()))


def _heads_of(rows: Mapping[str, Mapping[str, Any]], join: Join, part: Manifest) -> list[EvaluatedHead]:
    """The heads that can be judged; those with a teacher and a hard head in the level's own units have a table."""
    heads = [_head(name, row, join) for name, row in rows.items()]
    first: dict[str, int] = {}  # level → the slots of its references in a batch; heads with others read their store's
    for head in heads:
        if head.unit_V is not None:
            first.setdefault(head.level, head.slots)
    heads = [head if first.get(head.level, head.slots) == head.slots else replace(head, unit_V=None) for head in heads]
    heads = [head for head in heads if head.unit_V is not None or head.store is not None]
    hard = {(head.level, head.slots): head.name for head in reversed(heads) if head.store is None}
    for n, head in enumerate(heads):
        beside, own = hard.get((head.level, head.slots)), join.inventory(head.level)
        if head.store and beside and own and own.digest == join.stores[head.store].reader.spec.inventory.digest:
            table_VH = average_teacher(join.stores[head.store], without={u.id for u in part})
            heads[n] = replace(head, hard=beside, table_VH=table_VH)
    return heads


def _head(name: str, row: Mapping[str, Any], join: Join) -> EvaluatedHead:
    """A head of student.json; without `unit_V` and `store` where it can be compared with nothing."""
    level, kept = str(row["level"]), row.get("units")
    own, joined = join.inventory(level), join.stores.get(row.get("store") or "")
    if joined is not None:
        ids_V = joined.head_unit_V if kept is None else joined.head_unit_V[kept]
        if not np.array_equal(ids_V, np.arange(len(ids_V))):
            joined = None  # the store was written again and keeps other ids
    unit_V: NDArray[np.int64] | None = None
    if own and row.get("inventory", own.digest) == own.digest:
        unit_V = np.arange(len(own)) if kept is None else np.full(len(own), len(kept))
        if kept is not None:
            unit_V[kept] = np.arange(len(kept))
        if row["kind"] != "hard" and join.alignment is not None:
            unit_V[list(join.alignment.silences.get(level, ()))] = -1
    return EvaluatedHead(
        name=name, level=level, slots=int(row["slots"]), store=None if joined is None else joined.name, unit_V=unit_V
    )


def average_teacher(joined: JoinedStore, *, without: Container[str]) -> Tensor | None:
    """table_VH: the teacher's mean distribution where the transcript has unit v, over 5,000 of the store's utterances
    not in `without`, the tail spread evenly. None where it would be too large, labels are draws, or none is left."""
    reader = joined.reader
    if not can_average(reader.spec):
        return None
    ids = list(islice((name for name in reader.ids if name not in without and joined.labels(name)), MOST_UTTERANCES))
    if not ids:
        return None
    sum_VW = torch.from_numpy(summed(reader, ids)).float()
    table_VH = torch.zeros(len(sum_VW), joined.num_units)
    table_VH.index_add_(1, torch.from_numpy(joined.head_unit_V), sum_VW[:, :-1])
    table_VH += sum_VW[:, -1:] / joined.num_units
    mean_H = table_VH.sum(0) / table_VH.sum()  # what is said of units that these utterances lack
    table_VH += mean_H
    return table_VH / table_VH.sum(1, keepdim=True)


def guess(hard_logits_MV: Tensor, table_VH: Tensor) -> Tensor:
    """logits_MH of the guess: the table's rows, mixed by what the hard head hears."""
    return (torch.softmax(hard_logits_MV.float(), dim=1) @ table_VH).clamp(min=1e-12).log()


@torch.no_grad()
def _add(student: StudentModel, batch: Batch, heads: list[EvaluatedHead], sums: dict[str, Sums]) -> None:
    slots = {head.name: _slots_of(head, batch) for head in heads}
    asked = {name: slot_M for name, (slot_M, _, _) in slots.items()}
    output: StudentOutput = student(batch.x_BTF, batch.length_B, slots=asked)

    def logits_of(head: str) -> Tensor:
        """logits_MV of a head at its slots."""
        return output.logits_BTV.flatten(0, 1)[slots[head][0]] if head == MAIN else output.heads[head]

    for head in heads:
        _, unit_M, soft_M = slots[head.name]
        logits_MV, total = logits_of(head.name), sums[head.name]
        asked_M = unit_M >= 0
        total.add(logits_MV[asked_M], unit_M[asked_M])
        if head.store is not None and len(soft_M):
            soft = batch.soft[head.store]
            ids_MK, logp_MK, tail_M = (rows[soft.position_M] for rows in (soft.ids_NK, soft.logp_NK, soft.tail_N))
            total.kl += _kl(logits_MV[soft_M], ids_MK, logp_MK, tail_M)
            if head.table_VH is not None and head.hard is not None:
                hard_M = slots[head.hard][0]
                place_M = torch.searchsorted(hard_M, soft.slot_M).clamp(max=len(hard_M) - 1)
                heard_M = hard_M[place_M] == soft.slot_M
                logits_MH = guess(logits_of(head.hard)[place_M[heard_M]], head.table_VH.to(place_M.device))
                total.guess += _kl(logits_MH, ids_MK[heard_M], logp_MK[heard_M], tail_M[heard_M])


def _kl(logits_MH: Tensor, ids_MK: Tensor, logp_MK: Tensor, tail_M: Tensor) -> tuple[float, int]:
    """Σ KL(teacher ‖ head) over the teacher's rows, and their number."""
    kl_M = sparse_kl(logits_MH, ids_MK=ids_MK, logp_MK=logp_MK, tail_M=tail_M)
    return float(kl_M.double().sum()), len(kl_M)


def _slots_of(head: EvaluatedHead, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(slot_M, unit_M, soft_M): all slots with a label, the head's reference there or −1, the teacher's among them."""
    soft = batch.soft[head.store] if head.store is not None else None
    hard = batch.hard[head.level] if head.unit_V is not None else None
    slot_M = torch.unique(torch.cat([labels.slot_M for labels in (soft, hard) if labels is not None]))
    soft_M = slot_M.new_zeros(0) if soft is None else torch.searchsorted(slot_M, soft.slot_M)
    unit_M = torch.full_like(slot_M, -1)
    if hard is not None:
        unit_V = torch.as_tensor(head.unit_V, device=slot_M.device)
        unit_M[torch.searchsorted(slot_M, hard.slot_M)] = unit_V[hard.unit_M]
    elif soft is not None:
        unit_M[soft_M] = soft.gold_N[soft.position_M]
    return slot_M, unit_M, soft_M
