"""The terms of the loss against dense float64 arithmetic by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hkd.stream.loader import Batch, HardLabels, SoftLabels
from hkd.student.model import StudentOutput
from hkd.topk import select_topk
from hkd.train.config import KdConfig
from hkd.train.objectives import CtcKdTerm, CtcTerm, HardTerm, HybridTerm, KdTerm

B, T, V, U = 2, 7, 6, 3  # utterances, encoder frames, units, positions of each
HEAD = "kd-x"


@pytest.fixture
def example() -> tuple[Batch, StudentOutput, Tensor]:
    """A batch with one soft and one hard level, the student's output, and the teacher's dense logp_NV."""
    g = torch.Generator().manual_seed(0)
    logits_NV = 2 * torch.randn(B * U, V, generator=g, dtype=torch.float64)
    target_L = torch.randint(0, V, (B * U,), generator=g)
    target_L[1], target_L[4] = (target_L[0] + 1) % V, (target_L[3] + 1) % V
    kept = select_topk(logits_NV, target_L, k=3, temperatures=(2.0,))
    slot_M = torch.tensor([0, 1, 3, 4, 7, 8, 9, 12])
    position_M = torch.tensor([0, 0, 1, 2, 3, 3, 3, 5])
    soft = SoftLabels(
        ids_NK=torch.from_numpy(kept.ids_NK).long(), logp_NK=torch.from_numpy(kept.logp_NK).double(),
        tail_N=torch.from_numpy(kept.tail_N).double(), gold_N=target_L,
        lse_NJ=torch.from_numpy(kept.lse_NJ).double(), tail_NJ=torch.from_numpy(kept.tail_NJ).double(), count_NK=None,
        offset_B1=torch.tensor([0, U, 2 * U]), slot_M=slot_M, position_M=position_M,
    )  # fmt: skip
    batch = Batch(
        ids=("a", "b"), x_BTF=torch.zeros(B, 4 * T, 80), length_B=torch.tensor([4 * T, 4 * T]), target_L=target_L + 1,
        target_length_B=torch.tensor([U, U]), soft={"x": soft},
        hard={"senone": HardLabels(slot_M=torch.arange(B * T), unit_M=torch.randint(0, V, (B * T,), generator=g))},
    )  # fmt: skip
    output = StudentOutput(
        logits_BTV=torch.randn(B, T, V + 1, generator=g, dtype=torch.float64),
        length_B=torch.tensor([T, T]),
        heads={HEAD: torch.randn(len(slot_M), V, generator=g, dtype=torch.float64)},
    )
    return batch, output, torch.log_softmax(logits_NV, -1)


def ghost_kl(logp_MV: Tensor, logits_MV: Tensor, ids_MK: Tensor) -> Tensor:
    """The (k+1)-outcome divergence, from dense distributions."""
    logq_MV = torch.log_softmax(logits_MV, -1)
    p_MK, q_MK = logp_MV.exp().gather(1, ids_MK), logq_MV.exp().gather(1, ids_MK)
    p_rest, q_rest = 1 - p_MK.sum(1), 1 - q_MK.sum(1)
    return (p_MK * (p_MK / q_MK).log()).sum(1) + p_rest * (p_rest / q_rest).log()


def test_frames_sum_the_divergence_over_labelled_slots(example: Any) -> None:
    batch, output, logp_NV = example
    term = KdTerm(name=HEAD, head=HEAD, store="x", kd=KdConfig(tail="ghost"))
    soft = batch.soft["x"]
    expected = ghost_kl(logp_NV[soft.position_M], output.heads[HEAD], soft.ids_NK[soft.position_M]).sum()
    assert float(term.loss(batch, output)) == pytest.approx(float(expected), rel=1e-5)
    assert term.count(batch) == 8
    assert term.slots(batch)[HEAD].tolist() == soft.slot_M.tolist()


def test_segments_take_each_positions_mean_once(example: Any) -> None:
    batch, output, logp_NV = example
    term = KdTerm(name=HEAD, head=HEAD, store="x", kd=KdConfig(tail="ghost", where="segments"))
    soft = batch.soft["x"]
    placed = [0, 1, 2, 3, 5]
    mean_MV = torch.stack([output.heads[HEAD][soft.position_M == n].mean(0) for n in placed])
    expected = ghost_kl(logp_NV[placed], mean_MV, soft.ids_NK[placed]).sum()
    assert float(term.loss(batch, output)) == pytest.approx(float(expected), rel=1e-5)
    assert term.count(batch) == 5


@pytest.mark.parametrize(("student_temperature", "factor"), [(0.0, 4.0), (1.0, 1.0)])
def test_temperatures_soften_the_teacher_and_scale_the_loss_where_both_are_soft(
    example: Any, student_temperature: float, factor: float
) -> None:
    batch, output, logp_NV = example
    kd = KdConfig(tail="ghost", temperature=2.0, student_temperature=student_temperature)
    term = KdTerm(name=HEAD, head=HEAD, store="x", kd=kd, column=0)
    soft = batch.soft["x"]
    softened_NV = torch.log_softmax(logp_NV / 2, -1)
    own = student_temperature or 2.0
    expected = (
        factor * ghost_kl(softened_NV[soft.position_M], output.heads[HEAD] / own, soft.ids_NK[soft.position_M]).sum()
    )
    assert float(term.loss(batch, output)) == pytest.approx(float(expected), rel=1e-5)


def test_a_hard_head_is_cross_entropy(example: Any) -> None:
    batch, output, _ = example
    logits_MV = torch.randn(B * T, V, dtype=torch.float64)
    term = HardTerm(name="h", head="h", level="senone", label_smoothing=0.1)
    expected = torch.nn.functional.cross_entropy(
        logits_MV, batch.hard["senone"].unit_M, label_smoothing=0.1, reduction="sum"
    )
    assert float(term.loss(batch, replace(output, heads={"h": logits_MV}))) == pytest.approx(float(expected))


def without_labels(batch: Batch, utterance: int) -> Batch:
    """The batch without the labels of an utterance of the store x."""
    soft = batch.soft["x"]
    kept_N = torch.arange(B * U) // U != utterance
    kept_M = kept_N[soft.position_M]
    rows = {f: getattr(soft, f)[kept_N] for f in ("ids_NK", "logp_NK", "tail_N", "gold_N", "lse_NJ", "tail_NJ")}
    offset_B1 = torch.tensor([0, U, U] if utterance else [0, 0, U])
    number_N = kept_N.cumsum(0) - 1
    return replace(
        batch,
        soft={
            "x": replace(
                soft,
                **rows,
                offset_B1=offset_B1,
                slot_M=soft.slot_M[kept_M],
                position_M=number_N[soft.position_M[kept_M]],
            )
        },
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("labelled", [(True, True), (True, False), (False, True)])
def test_the_hybrids_interpolation_is_cross_entropy_against_mixed_targets(
    example: Any, temperature: float, labelled: tuple[bool, bool]
) -> None:
    """Teacher at T, student at 1 (Futami et al. 2020); a slot without a label goes by its reference alone."""
    batch, output, _ = example
    g = torch.Generator().manual_seed(1)
    logits_NV = torch.randn(B * U, V, generator=g, dtype=torch.float64)
    dense = select_topk(logits_NV, torch.zeros(B * U, dtype=torch.int64), k=V)
    soft = replace(
        batch.soft["x"], ids_NK=torch.from_numpy(dense.ids_NK).long(), logp_NK=torch.from_numpy(dense.logp_NK).double(),
        tail_N=torch.from_numpy(dense.tail_N).double(),
    )  # fmt: skip
    batch, output = replace(batch, soft={"x": soft}), replace(output, logits_BTV=output.logits_BTV[:, :, :V])
    mixed_SV = torch.nn.functional.one_hot(batch.hard["senone"].unit_M, V).double()
    teacher_MV = torch.softmax(logits_NV / temperature, -1)[soft.position_M]
    for slot, teacher_V in zip(soft.slot_M.tolist(), teacher_MV, strict=True):
        if labelled[slot // T]:
            mixed_SV[slot] = 0.7 * mixed_SV[slot] + 0.3 * teacher_V
    for b, has in enumerate(labelled):
        batch = batch if has else without_labels(batch, b)
    expected = -(mixed_SV * torch.log_softmax(output.logits_BTV.flatten(0, 1), -1)).sum()
    kd = KdConfig(tail="ghost", temperature=temperature, student_temperature=1.0)
    term = HybridTerm(store="x", weight=0.3, kd=kd)
    assert float(term.loss(batch, output)) == pytest.approx(float(expected), rel=1e-5)


def occupied(
    logits_BTV: Tensor, gamma_BTU: Tensor, softened_NV: Tensor, ids_NK: Tensor, offset: int, tail: str
) -> Tensor:
    """Σ_t Σ_u γ · CE(p_u, q_t) of each utterance, one frame and one position after the other, from the teacher's dense
    softmax."""
    loss_B = torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        q_TV = torch.softmax(logits_BTV[b], -1)
        for u in range(U):
            n = b * U + u
            p_K, q_TK = softened_NV[n].exp()[ids_NK[n]], q_TV[:, ids_NK[n] + offset]
            if tail == "renormalised":
                cross_T = -(q_TK.log() @ (p_K / p_K.sum()))
            else:
                outside_T = q_TV[:, offset:].sum(1) - q_TK.sum(1)
                cross_T = -(q_TK.log() @ p_K) - (1 - p_K.sum()) * outside_T.log()
            loss_B[b] += (gamma_BTU[b, :, u] * cross_T).sum()
    return loss_B


@pytest.mark.parametrize("tail", ["ghost", "renormalised"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("labelled", [(True, True), (True, False), (False, True), (False, False)])
def test_ctc_interpolation_is_the_dense_formula(
    example: Any, tail: str, temperature: float, labelled: tuple[bool, bool]
) -> None:
    """(1 − w) CTC + w Σ γ CE(p at T, q at 1) of an utterance with labels, and the whole CTC loss of one without."""
    from hkd.losses import ctc_occupancy

    batch, output, logp_NV = example
    logp_TBV = torch.log_softmax(output.logits_BTV, -1).transpose(0, 1)
    plain_B = torch.nn.functional.ctc_loss(
        logp_TBV, batch.target_L, output.length_B, batch.target_length_B, blank=0, reduction="none"
    )
    gamma_BTU = ctc_occupancy(output.logits_BTV, output.length_B, batch.target_L, batch.target_length_B)
    softened_NV = torch.log_softmax(logp_NV / temperature, -1)
    teacher_B = occupied(output.logits_BTV, gamma_BTU, softened_NV, batch.soft["x"].ids_NK, 1, tail)
    expected = sum(
        0.7 * float(plain_B[b]) + 0.3 * float(teacher_B[b]) if has else float(plain_B[b])
        for b, has in enumerate(labelled)
    )
    for b, has in enumerate(labelled):
        if not has and batch.soft["x"].offset_B1[-1] == B * U:
            batch = without_labels(batch, b)
        elif not has:
            empty = {f: getattr(batch.soft["x"], f)[:0] for f in ("ids_NK", "logp_NK", "tail_N", "lse_NJ", "tail_NJ")}
            batch = replace(
                batch, soft={"x": replace(batch.soft["x"], **empty, offset_B1=torch.zeros(3, dtype=torch.int64))}
            )
    column = 0 if temperature != 1 and tail == "ghost" else None
    kd = KdConfig(temperature=temperature, student_temperature=1.0, tail=tail)
    term = CtcTerm(store="x", weight=0.3, kd=kd, column=column)
    assert float(term.loss(batch, output)) == pytest.approx(expected, rel=1e-5)
    head_BTV = torch.randn(B, T, V, dtype=torch.float64)
    if all(labelled):
        own = occupied(head_BTV, gamma_BTU, softened_NV, batch.soft["x"].ids_NK, 0, tail).sum()
        found = CtcKdTerm(name=HEAD, head=HEAD, store="x", kd=kd, column=column).loss(
            batch, replace(output, heads={HEAD: head_BTV})
        )
        assert float(found) == pytest.approx(float(own), rel=1e-5)


def test_ctc_interpolation_mixes_and_at_weight_zero_is_ctc(example: Any) -> None:
    batch, output, _ = example
    plain = float(CtcTerm().loss(batch, output))
    logp_TBV = torch.log_softmax(output.logits_BTV, -1).transpose(0, 1)
    expected = torch.nn.functional.ctc_loss(
        logp_TBV, batch.target_L, output.length_B, batch.target_length_B, blank=0, reduction="sum"
    )
    assert plain == pytest.approx(float(expected))
    assert CtcTerm().count(batch) == B * U
    mixed = [float(CtcTerm(store="x", weight=w).loss(batch, output)) for w in (0.0, 0.25, 1.0)]
    assert mixed[0] == pytest.approx(plain)
    assert mixed[1] == pytest.approx(0.75 * plain + 0.25 * mixed[2])


def test_occupancy_weighted_frames_need_no_alignment(example: Any) -> None:
    batch, output, _ = example
    from hkd.losses import ctc_occupancy

    logits_BTV = torch.randn(B, T, V, dtype=torch.float64)
    gamma_BTU = ctc_occupancy(output.logits_BTV, output.length_B, batch.target_L, batch.target_length_B)
    soft = batch.soft["x"]
    logq_BTV = torch.log_softmax(logits_BTV, -1)
    expected = 0.0
    for b in range(B):
        for u in range(U):
            n = b * U + u
            p_K, q_TK = soft.logp_NK[n].exp(), logq_BTV[b].exp()[:, soft.ids_NK[n]]
            cross_T = -(q_TK.log() @ p_K) - soft.tail_N[n].exp() * (1 - q_TK.sum(1)).log()
            expected += float((gamma_BTU[b, :, u] * cross_T).sum())
    term = CtcKdTerm(name=HEAD, head=HEAD, store="x")
    assert float(term.loss(batch, replace(output, heads={HEAD: logits_BTV}))) == pytest.approx(expected, rel=1e-5)
