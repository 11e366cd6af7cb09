"""What a CTC student's main output is worth at the pieces of the transcripts: accuracy, distance from a teacher, calibration.

- A piece is asked about in the frame that holds most of its occupancy (hkd.losses.ctc_occupancy: the student's own, given the transcript), and
  about pieces alone, the blank left out. So it needs neither an alignment nor a head, and every objective has it, at the same positions.
- Transcripts without a path (shorter than their pieces) say nothing.
- The teacher is the store of interpolation, else the one called `subword`: whether what taught the heads has reached the output that is kept.
  KL(teacher ‖ output), the tail as one outcome, only for utterances that the store labels in these pieces. A store of draws, and one whose
  tail holds mass that belongs to no piece (a projected teacher's), is none.

Shape letters: B utterances, T frames of 40 ms, V pieces, U pieces of an utterance, M pieces of a batch.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hkd.align.alignment import sequence_digest
from hkd.decode.recogniser import Recogniser
from hkd.errors import HkdError
from hkd.evaluate.decoding import batches
from hkd.evaluate.frames import Sums
from hkd.evaluate.heads import MAIN
from hkd.features.source import FeatureSource
from hkd.labels.reader import LabelReader
from hkd.labels.store import digest_of_store, store_folders
from hkd.losses import class_targets, ctc_feasible, ctc_occupancy
from hkd.manifest import Manifest
from hkd.metrics import kl
from hkd.units.level import SENONE, SUBWORD
from hkd.units.subword import SubwordModel
from hkd.units.text import words


def piece_figures(
    recogniser: Recogniser,
    part: Manifest,
    *,
    teacher: LabelReader | None = None,
    batch_seconds: float = 60.0,
    features: FeatureSource | None = None,
) -> dict[str, Any] | None:
    """accuracy, calibration_error, confidence, entropy, kl, kl_without_context (None), frames (pieces); None for senones, and where no
    transcript has a path. teacher: of `piece_teacher`. Raises UserError where an utterance's sound cannot be read.
    """
    model = recogniser.meta.subword_model
    if recogniser.is_hybrid or model is None:
        return None
    subwords, sums = SubwordModel(model), Sums()
    for rows, waves in batches(part, batch_seconds):
        given = None if features is None else [features(part[row]) for row in rows]
        logits_BTV, length_B, _ = recogniser.logits(waves, given)
        units = [torch.from_numpy(subwords.encode(words(part[row].text))[0]).long() for row in rows]
        count_B = torch.tensor([len(unit_U) for unit_U in units])
        target_L = class_targets(torch.cat(units))
        best_BU = ctc_occupancy(logits_BTV, length_B, target_L, count_B).argmax(1)
        for b in ctc_feasible(length_B, target_L, count_B).nonzero()[:, 0].tolist():
            logits_UV = logits_BTV[b, best_BU[b, : len(units[b])], 1:]
            sums.add(logits_UV, units[b])
            if teacher is not None:
                _add_kl(sums, logits_UV, units[b], teacher, part[rows[b]].id)
    return sums.figures()


def _add_kl(sums: Sums, logits_UV: Tensor, unit_U: Tensor, teacher: LabelReader, utterance_id: str) -> None:
    if utterance_id in teacher and teacher.unit_digest(utterance_id) == sequence_digest(unit_U.int().numpy()):
        topk = teacher.block([utterance_id]).topk
        ids_MK, logp_MK, tail_M = (torch.from_numpy(column.copy()) for column in (topk.ids_NK, topk.logp_NK, topk.tail_N))
        sums.add_kl(kl(logits_UV, ids_MK=ids_MK.long(), logp_MK=logp_MK, tail_M=tail_M))


def piece_teacher(run_folder: Path, labels: Path | None) -> LabelReader | None:
    """The store that the run's main output is held against; None where it is absent, incomplete, of other pieces, or unfit (see the module)."""
    identity, exported = run_folder / "identity.json", run_folder / "model" / "student.json"
    trained = json.loads(identity.read_text(encoding="utf-8")) if identity.exists() else {}
    [name] = trained["data"]["stores"] if trained and trained["train"]["objective"] == "interpolation" else [SUBWORD]
    try:
        reader = LabelReader.open(store_folders(labels)[name]) if labels is not None else None
    except (HkdError, KeyError):
        return None
    own = json.loads(exported.read_text(encoding="utf-8"))["inventory"]["digest"]
    if reader is None or reader.spec.inventory.digest != own or reader.spec.selection != "topk":
        return None
    return None if "project" in reader.spec.teacher.get("options", {}) else reader


def piece_inputs(run_folder: Path, teacher: LabelReader | None) -> dict[str, Any]:
    """What the figures hang on, besides the student and the transcripts; {} for senones."""
    exported = json.loads((run_folder / "model" / "student.json").read_text(encoding="utf-8"))
    return {} if exported["config"]["main"] == SENONE else {MAIN: None if teacher is None else digest_of_store(teacher)}
