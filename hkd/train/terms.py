"""The terms of the loss: what each reads from a batch and the student's output, as a sum and a count.

    L = L_main + Σ [ α · L_hard ] + Σ [ λ · L_kd ]

Shape letters: B utterances, T encoder frames, S slots, M labelled slots, N positions, K kept ids, V units.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from hkd.losses import ctc_interpolation, ctc_loss, ctc_occupancy, hard_cross_entropy, sparse_cross_entropy, sparse_kl
from hkd.stream.loader import Batch, SoftLabels
from hkd.student.model import StudentOutput
from hkd.train.config import KdConfig
from hkd.units.level import SENONE


class Term(Protocol):
    """One term of the loss."""

    @property
    def name(self) -> str:
        """As metrics call it."""

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """The slots (flat indices) that it reads of each head."""

    def count(self, batch: Batch) -> float:
        """What its sum is divided by."""

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """The sum over the batch, a scalar."""


@dataclass(frozen=True, kw_only=True)
class CtcTerm:
    """The main output's CTC loss, divided by target units: so it is of the size of a frame's cross-entropy."""

    name: str = "ctc"

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """None: the main output is read whole."""
        return {}

    def count(self, batch: Batch) -> float:
        """Target units."""
        return float(len(batch.target_L))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """−log p(target), summed."""
        return ctc_loss(output.logits_BTV, output.length_B, batch.target_L, batch.target_length_B).sum()


@dataclass(frozen=True, kw_only=True)
class HybridTerm:
    """The main output's frame cross-entropy over senones; with `store`, against w · teacher + (1 − w) · reference.

    A slot without a teacher's label (silence, an utterance that the store lacks) has its whole reference loss.
    """

    name: str = "senone"
    store: str | None = None
    weight: float = 0.0
    kd: KdConfig = field(default_factory=KdConfig)
    column: int | None = None  # of lse_NJ, for the teacher's temperature

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """None: the main output is read whole."""
        return {}

    def count(self, batch: Batch) -> float:
        """Labelled slots."""
        return float(len(batch.hard[SENONE].slot_M))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """Cross-entropy, summed."""
        logits_NV = output.logits_BTV.flatten(0, 1)
        hard = batch.hard[SENONE]
        loss_M = hard_cross_entropy(logits_NV.index_select(0, hard.slot_M), hard.unit_M)
        if self.store is None:
            return loss_M.sum()
        soft = batch.soft[self.store]
        weight_S = torch.ones(len(logits_NV), device=logits_NV.device)
        weight_S[soft.slot_M] = 1 - self.weight
        teacher = _teacher(soft, self.kd, column=self.column)
        soft_M = sparse_cross_entropy(logits_NV.index_select(0, soft.slot_M), **teacher)
        return (loss_M * weight_S[hard.slot_M]).sum() + self.weight * soft_M.sum()


@dataclass(frozen=True, kw_only=True)
class InterpolationTerm:
    """(1 − w) · CTC + w · Σ_t Σ_u γ_t(u) · CE(p_u, q_t), γ the detached CTC occupancies (DESIGN, section 5), a target unit.

    An utterance without labels has its whole CTC loss.
    """

    store: str
    weight: float
    kd: KdConfig = field(default_factory=KdConfig)
    column: int | None = None
    name: str = "ctc"

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """None: the main output is read whole."""
        return {}

    def count(self, batch: Batch) -> float:
        """Target units."""
        return float(len(batch.target_L))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """Both parts, summed."""
        logits_BTV = output.logits_BTV
        reference_B = ctc_loss(logits_BTV, output.length_B, batch.target_L, batch.target_length_B)
        soft = batch.soft[self.store]
        labelled_B = soft.offset_B1[1:] > soft.offset_B1[:-1]
        teacher_B = _by_occupancy(batch, output, logits_BTV, soft, self.kd, self.column, class_offset=1)
        return (torch.where(labelled_B, 1 - self.weight, 1.0) * reference_B + self.weight * teacher_B).sum()


@dataclass(frozen=True, kw_only=True)
class HardTerm:
    """A hard head: cross-entropy against the reference at each labelled slot."""

    name: str
    head: str
    level: str
    label_smoothing: float = 0.0

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """The labelled ones."""
        return {self.head: batch.hard[self.level].slot_M}

    def count(self, batch: Batch) -> float:
        """Labelled slots."""
        return float(len(batch.hard[self.level].slot_M))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """Cross-entropy, summed."""
        return hard_cross_entropy(
            output.heads[self.head], batch.hard[self.level].unit_M, label_smoothing=self.label_smoothing
        ).sum()


@dataclass(frozen=True, kw_only=True)
class KdTerm:
    """An auxiliary head: divergence from the teacher's top-k at each labelled slot, or of each segment's mean."""

    name: str
    head: str
    store: str
    kd: KdConfig
    column: int | None = None  # of lse_NJ, for the teacher's temperature

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """The labelled ones."""
        return {self.head: batch.soft[self.store].slot_M}

    def count(self, batch: Batch) -> float:
        """Labelled slots; with `segments`, positions that have one."""
        soft = batch.soft[self.store]
        return float(len(torch.unique(soft.position_M)) if self.kd.where == "segments" else len(soft.slot_M))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """The divergence, summed."""
        soft = batch.soft[self.store]
        logits_MV, rows_M = output.heads[self.head], soft.position_M
        if self.kd.where == "segments":
            # The output layer is linear: the mean of the logits is what the head says of the segment's mean.
            rows_M, index_M = torch.unique(soft.position_M, return_inverse=True)
            size_M = torch.zeros(len(rows_M), device=logits_MV.device).index_add_(
                0, index_M, torch.ones_like(index_M, dtype=torch.float32)
            )
            logits_MV = logits_MV.new_zeros(len(rows_M), logits_MV.shape[1]).index_add(0, index_M, logits_MV)
            logits_MV = logits_MV / size_M[:, None].to(logits_MV.dtype)
        return sparse_kl(logits_MV, **_teacher(soft, self.kd, rows_M, self.column)).sum()


@dataclass(frozen=True, kw_only=True)
class CtcKdTerm:
    """An auxiliary head in the student's own subwords whose frames weigh by the CTC occupancy of each position."""

    name: str
    head: str
    store: str
    kd: KdConfig = field(default_factory=KdConfig)
    column: int | None = None

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """All: the occupancies are not known before."""
        return {}

    def count(self, batch: Batch) -> float:
        """Positions."""
        return float(len(batch.soft[self.store].ids_NK))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """Σ_t Σ_u γ_t(u) · CE(p_u, q_t), summed."""
        soft, logits_BTV = batch.soft[self.store], output.heads[self.head]
        return _by_occupancy(batch, output, logits_BTV, soft, self.kd, self.column, class_offset=0).sum()


def _by_occupancy(
    batch: Batch,
    output: StudentOutput,
    logits_BTV: Tensor,
    soft: SoftLabels,
    kd: KdConfig,
    column: int | None,
    *,
    class_offset: int,
) -> Tensor:
    """loss_B: the teacher's part of `logits_BTV`, each frame weighted by the main output's CTC occupancy of each position."""
    gamma_BTU = ctc_occupancy(output.logits_BTV, output.length_B, batch.target_L, batch.target_length_B)
    return ctc_interpolation(
        logits_BTV, gamma_BTU, ids_NK=soft.ids_NK, logp_NK=soft.logp_NK, tail_N=soft.tail_N, offset_B1=soft.offset_B1,
        class_offset=class_offset, tail=kd.tail, temperature=kd.temperature,
        lse_N=None if column is None else soft.lse_NJ[:, column],
        tail_T_N=None if column is None else soft.tail_NJ[:, column],
    )  # fmt: skip


def _teacher(soft: SoftLabels, kd: KdConfig, rows_M: Tensor | None = None, column: int | None = None) -> dict[str, Any]:
    """The teacher's side of the sparse losses for these rows (default: those of the slots)."""
    rows_M = soft.position_M if rows_M is None else rows_M
    return {
        "ids_MK": soft.ids_NK[rows_M],
        "logp_MK": soft.logp_NK[rows_M],
        "tail_M": soft.tail_N[rows_M],
        "temperature": kd.temperature,
        "lse_M": None if column is None else soft.lse_NJ[rows_M, column],
        "tail_T_M": None if column is None else soft.tail_NJ[rows_M, column],
        "student_temperature": kd.student_temperature or None,
        "tail": kd.tail,
        "gold_M": soft.gold_N[rows_M],
        "count_MK": None if soft.count_NK is None else soft.count_NK[rows_M],
    }
