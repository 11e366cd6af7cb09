"""What a student is taught by: pure functions on tensors, one loss a row or an utterance; the caller weighs and
divides.

p is the teacher's top-k distribution, q = softmax(z / τ) the student, K the kept ids, P = Σ_{v∈K} p_v + p_tail (1 up to
the codec's rounding). All variants are one cross-entropy with targets p_v on the kept ids and, for the bucket, p_tail
on everything else:

    L = − Σ_{v∈K} p_v log q_v − p_tail log q_tail,     q_tail = Σ_{v∉K} q_v
    ∂L/∂z_v = (P q_v − p_v) / τ                                              kept ids: the dense gradient
    ∂L/∂z_v = (P q_tail − p_tail) · exp(z_v/τ − lse_out) / τ                 all others
    lse_out = log Σ_{v∉K} exp(z_v/τ)

- log q_tail = lse_out − lse comes from summing the others, not from 1 − Q, so it is exact where Q is 1 to the last bit.
- Forward and backward walk over the rows in chunks: beyond the logits and their gradient, memory is O(M · K).
- The gradient is in closed form, so nothing of size M · V is kept from the forward pass (autograd would keep the
  log-softmax).
- The teacher's side is data: tensors that require a gradient are refused there, and all arguments but the logits have
  names.

The bucket is the "ghost token" of Anshumann et al. 2025 (arXiv 2503.16870); temperatures after Hinton et al. 2015
(arXiv 1503.02531).

CTC: Graves et al. 2006, "Connectionist temporal classification". Class 0 is the blank, so unit u is class u + 1; a
target sequence of U units is the state chain blank, unit 1, blank, …, unit U, blank with S = 2U + 1 states.

Shape letters: M rows, K kept ids, V units or classes; of CTC: B utterances, T encoder frames, L = Σ U concatenated
targets, U units (longest), S states, N positions.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NEVER = float("-inf")
TAILS = ("ghost", "renormalised", "gold-residual", "sampled")
_CHUNK_ELEMENTS_CPU, _CHUNK_ELEMENTS_DEVICE = 1 << 18, 1 << 25  # of the cache's size; large enough to fill a GPU
_TINY = 1e-30


def _chunks(logits_MV: Tensor) -> Iterator[slice]:
    budget = _CHUNK_ELEMENTS_CPU if logits_MV.device.type == "cpu" else _CHUNK_ELEMENTS_DEVICE
    step = max(1, budget // logits_MV.shape[1])
    return (slice(first, first + step) for first in range(0, logits_MV.shape[0], step))


def _scaled(logits_CV: Tensor, inverse_temperature: float, *, out: Tensor | None = None) -> Tensor:
    """A fresh tensor of z / τ, in float32 at least; or `out`, which has that type."""
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    return torch.mul(logits_CV.to(wide), inverse_temperature, out=out)


def _lse_in_place(z_CV: Tensor) -> Tensor:
    """log-sum-exp of each row; spoils z_CV. −inf for a row of −inf."""
    top_C1 = z_CV.amax(dim=1, keepdim=True)
    top_C1 = torch.where(torch.isfinite(top_C1), top_C1, 0.0)
    return z_CV.sub_(top_C1).exp_().sum(dim=1).log() + top_C1[:, 0]


class _SparseCrossEntropy(torch.autograd.Function):
    """Cross-entropy of the module's docstring; `uniform` adds uniform / V to every unit's target (label smoothing).
    tail_p_M None: nothing lies outside (plain), and ids may stand twice in a row; otherwise ids must be distinct."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_MV: Tensor,
        ids_MK: Tensor,
        p_MK: Tensor,
        tail_p_M: Tensor | None,
        inverse_temperature: float,
        uniform: float,
    ) -> Tensor:
        lse_M, out_M = p_MK.new_empty(len(p_MK)), p_MK.new_empty(len(p_MK))
        mean_M = p_MK.new_zeros(len(p_MK))
        kept_MK = logits_MV.gather(1, ids_MK).to(p_MK.dtype) * inverse_temperature
        for rows in _chunks(logits_MV):
            z_CV = _scaled(logits_MV[rows], inverse_temperature)
            if uniform:
                mean_M[rows] = z_CV.mean(dim=1)
            if tail_p_M is None:
                lse_M[rows] = _lse_in_place(z_CV)
            else:
                z_CV.scatter_(1, ids_MK[rows], NEVER)
                out_M[rows] = _lse_in_place(z_CV)
        if tail_p_M is not None:
            lse_M = torch.logaddexp(out_M, torch.logsumexp(kept_MK, dim=1))
        loss_M = (p_MK * torch.where(p_MK > 0, lse_M[:, None] - kept_MK, 0.0)).sum(dim=1)
        if uniform:
            loss_M = loss_M + uniform * (lse_M - mean_M)
        if tail_p_M is not None:
            loss_M = loss_M + torch.where(tail_p_M > 0, tail_p_M * (lse_M - out_M), 0.0)
        ctx.save_for_backward(logits_MV, ids_MK, p_MK, tail_p_M, lse_M, out_M, kept_MK)
        ctx.inverse_temperature, ctx.uniform = inverse_temperature, uniform
        return loss_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        logits_MV, ids_MK, p_MK, tail_p_M, lse_M, out_M, kept_MK = ctx.saved_tensors
        grad_M = grad_M.to(p_MK.dtype) * ctx.inverse_temperature
        total_M = p_MK.sum(dim=1) + ctx.uniform
        if tail_p_M is None:
            base_M, weight_M = lse_M, grad_M * total_M
        else:
            total_M = total_M + tail_p_M
            outside_M = torch.isfinite(out_M)
            base_M = torch.where(outside_M, out_M, lse_M)
            q_tail_M = torch.where(outside_M, (out_M - lse_M).exp(), 0.0)
            weight_M = grad_M * torch.where(outside_M, total_M * q_tail_M - tail_p_M, 0.0)
        at_kept_MK = grad_M[:, None] * (total_M[:, None] * (kept_MK - lse_M[:, None]).exp() - p_MK)
        grad_MV = torch.empty_like(logits_MV)
        in_place = grad_MV.dtype == p_MK.dtype  # else the gradient is narrower than what it is computed in
        for rows in _chunks(logits_MV):
            z_CV = _scaled(logits_MV[rows], ctx.inverse_temperature, out=grad_MV[rows] if in_place else None)
            z_CV.sub_(base_M[rows, None]).exp_().mul_(weight_M[rows, None])
            if ctx.uniform:
                z_CV.sub_(grad_M[rows, None] * (ctx.uniform / logits_MV.shape[1]))
            if tail_p_M is None:
                z_CV.scatter_add_(1, ids_MK[rows], -grad_M[rows, None] * p_MK[rows])
            else:
                z_CV.scatter_(1, ids_MK[rows], at_kept_MK[rows])
            if not in_place:
                grad_MV[rows] = z_CV
        return grad_MV, None, None, None, None, None


def teacher_at(
    logp_MK: Tensor,
    tail_M: Tensor,
    temperature: float,
    lse_M: Tensor | None,
    tail_T_M: Tensor | None,
    num_units: int,
    tail: str,
) -> tuple[Tensor, Tensor]:
    """The kept log-probabilities and the tail's at the teacher's temperature: log p_T(v) = log p(v) / T − lse_T."""
    if temperature == 1.0:
        return logp_MK, tail_M
    scaled_MK = logp_MK / temperature
    if logp_MK.shape[1] >= num_units or tail == "renormalised":  # nothing outside, or nothing outside counts
        return scaled_MK - torch.logsumexp(scaled_MK, dim=1, keepdim=True), torch.full_like(tail_M, NEVER)
    if lse_M is None or tail_T_M is None:
        rule = f"lse_M and tail_T_M must be given at temperature {temperature}"
        raise ValueError(f"{rule}, but are not. Dump labels with that temperature.")
    return scaled_MK - lse_M[:, None], tail_T_M


def _targets(
    logp_MK: Tensor, tail_M: Tensor, ids_MK: Tensor, *, tail: str, gold_M: Tensor | None, count_MK: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """p_MK and p_tail (None: no bucket) of the chosen tail handling, with log p of each."""
    if tail == "renormalised":
        logp_MK = logp_MK - torch.logsumexp(logp_MK, dim=1, keepdim=True)
        return logp_MK.exp(), None, logp_MK, tail_M
    if tail == "sampled":
        if count_MK is None:
            remedy = "Dump labels with the selection 'sample'."
            raise ValueError(f"count_MK must be given for tail 'sampled', but is not. {remedy}")
        weight_MK = count_MK.to(logp_MK.dtype)
        return weight_MK / weight_MK.sum(dim=1, keepdim=True).clamp_min(1), None, logp_MK, tail_M
    if tail == "gold-residual":
        if gold_M is None:
            raise ValueError("gold_M must be given for tail 'gold-residual', but is not.")
        is_gold_MK = ids_MK == gold_M[:, None]
        logp_MK = torch.where(is_gold_MK, torch.logaddexp(logp_MK, tail_M[:, None]), logp_MK)
        tail_M = tail_M.masked_fill(is_gold_MK.any(dim=1), NEVER)
    return logp_MK.exp(), tail_M.exp(), logp_MK, tail_M


def _check(logits_MV: Tensor, ids_MK: Tensor, tail: str, temperature: float, teacher: dict[str, Tensor | None]) -> None:
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {', '.join(TAILS)}, but is '{tail}' instead.")
    if tail == "sampled" and temperature != 1.0:
        rule = "temperature must be 1 for tail 'sampled' (the draws are from that)"
        raise ValueError(f"{rule}, but is {temperature} instead.")
    if logits_MV.ndim != 2 or ids_MK.ndim != 2 or len(logits_MV) != len(ids_MK):
        rule = f"ids_MK must have a row for each of {len(logits_MV)} rows of logits"
        raise ValueError(f"{rule}, but is {tuple(ids_MK.shape)} instead.")
    for name, value in teacher.items():
        if value is not None and value.requires_grad:
            rule = f"{name} must be a teacher's label, without a gradient"
            raise ValueError(f"{rule}, but requires one instead. Are teacher and student swapped?")
        if value is not None and len(value) != len(logits_MV):
            raise ValueError(f"{name} must have {len(logits_MV)} rows, but has {len(value)} instead.")


def sparse_kl(
    logits_MV: Tensor,
    *,
    ids_MK: Tensor,
    logp_MK: Tensor,
    tail_M: Tensor,
    temperature: float = 1.0,
    lse_M: Tensor | None = None,
    tail_T_M: Tensor | None = None,
    student_temperature: float | None = None,
    tail: str = "ghost",
    gold_M: Tensor | None = None,
    count_MK: Tensor | None = None,
) -> Tensor:
    """loss_M: KL(teacher ‖ student) of each row, in nats; differentiable in the student's logits alone.

    logits_MV: the student's; ids_MK (distinct in a row), logp_MK, tail_M, lse_M, tail_T_M, gold_M, count_MK: the
    teacher's, as in hkd.topk.TopK. temperature T: the teacher's, with its lse_M and tail_T_M where T ≠ 1 (K = V and
    `renormalised` need neither). student_temperature: None puts the student at T too; where both are equal the loss is
    times T² (Hinton et al. 2015); 1 is Futami 2020. tail, with p the teacher's true probabilities:
      ghost          all units outside K are one more outcome, with p_tail
      renormalised   p_v / Σ_{K} p on K, nothing elsewhere (biased; arXiv 2503.16870)
      gold-residual  p_tail is added to the gold unit; a row whose gold unit is not in K (or is −1) keeps the bucket
      sampled        target count_v / Σ count on the drawn ids (count 0 pads); value Σ c_v/N log(p_v/q_v), an unbiased
                     estimate of the full KL, and so is its gradient
    Raises ValueError for labels that require a gradient, missing lse_M, gold_M or count_MK, and shapes that do not fit.
    """
    cross_M, entropy_M = _cross_and_entropy(
        logits_MV, ids_MK=ids_MK, logp_MK=logp_MK, tail_M=tail_M, temperature=temperature, lse_M=lse_M,
        tail_T_M=tail_T_M, student_temperature=student_temperature, tail=tail, gold_M=gold_M, count_MK=count_MK,
    )  # fmt: skip
    return cross_M - entropy_M


def sparse_cross_entropy(
    logits_MV: Tensor, *, ids_MK: Tensor, logp_MK: Tensor, tail_M: Tensor, **options: Any
) -> Tensor:
    """loss_M: sparse_kl plus the teacher's entropy, so that w · this + (1 − w) · hard_cross_entropy is cross-entropy
    against the mixture."""
    return _cross_and_entropy(logits_MV, ids_MK=ids_MK, logp_MK=logp_MK, tail_M=tail_M, **options)[0]


def _cross_and_entropy(
    logits_MV: Tensor,
    *,
    ids_MK: Tensor,
    logp_MK: Tensor,
    tail_M: Tensor,
    temperature: float = 1.0,
    lse_M: Tensor | None = None,
    tail_T_M: Tensor | None = None,
    student_temperature: float | None = None,
    tail: str = "ghost",
    gold_M: Tensor | None = None,
    count_MK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(cross_M, entropy_M): −Σ p log q and −Σ p log p of each row, both times T² where `sparse_kl` is."""
    teacher = {"logp_MK": logp_MK, "tail_M": tail_M, "lse_M": lse_M, "tail_T_M": tail_T_M, "count_MK": count_MK}
    _check(logits_MV, ids_MK, tail, temperature, teacher)
    own = temperature if student_temperature is None else student_temperature
    if temperature <= 0 or own <= 0:
        raise ValueError(f"temperatures must be above 0, but are {temperature} and {own} instead.")
    wide = torch.promote_types(logits_MV.dtype, torch.float32)
    num_units = logits_MV.shape[1]
    logp_MK, tail_M = teacher_at(logp_MK.to(wide), tail_M.to(wide), temperature, lse_M, tail_T_M, num_units, tail)
    ids_MK, given = ids_MK.long(), {"gold_M": gold_M, "count_MK": count_MK}
    p_MK, tail_p_M, logp_MK, tail_M = _targets(logp_MK, tail_M.to(wide), ids_MK, tail=tail, **given)
    if ids_MK.shape[1] >= num_units:
        tail_p_M = None  # K = V: nothing lies outside
    factor = temperature**2 if own == temperature else 1.0
    loss_M: Tensor = _SparseCrossEntropy.apply(logits_MV, ids_MK, p_MK, tail_p_M, 1.0 / own, 0.0)  # type: ignore[no-untyped-call]
    entropy_M = -torch.where(p_MK > 0, p_MK * logp_MK, 0.0).sum(dim=1)
    if tail_p_M is not None:
        entropy_M = entropy_M - torch.where(tail_p_M > 0, tail_p_M * tail_M, 0.0)
    return loss_M * factor, entropy_M * factor


def hard_cross_entropy(logits_MV: Tensor, unit_M: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """loss_M against reference units: targets 1 − ε at the unit, ε / V everywhere, as torch's cross_entropy."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, but is {label_smoothing} instead.")
    wide = torch.promote_types(logits_MV.dtype, torch.float32)
    p_M1 = torch.full((len(unit_M), 1), 1.0 - label_smoothing, dtype=wide, device=logits_MV.device)
    loss_M: Tensor = _SparseCrossEntropy.apply(logits_MV, unit_M.long()[:, None], p_M1, None, 1.0, label_smoothing)  # type: ignore[no-untyped-call]
    return loss_M


# CTC: the loss, the occupancies of its units, and distillation weighted by them.


def _padded(target_L: Tensor, target_length_B: Tensor) -> tuple[Tensor, Tensor]:
    """target_BU (0 past the end) and valid_BU."""
    longest = int(target_length_B.max()) if len(target_length_B) else 0
    valid_BU = torch.arange(longest, device=target_L.device) < target_length_B.to(target_L.device)[:, None]
    target_BU = torch.zeros(valid_BU.shape, dtype=torch.int64, device=target_L.device)
    target_BU[valid_BU] = target_L.long()
    return target_BU, valid_BU


def ctc_feasible(length_B: Tensor, target_L: Tensor, target_length_B: Tensor) -> Tensor:
    """possible_B: true where an utterance has frames enough for its units and a blank between equal neighbours."""
    target_BU, valid_BU = _padded(target_L, target_length_B)
    repeats_B = ((target_BU[:, 1:] == target_BU[:, :-1]) & valid_BU[:, 1:]).sum(dim=1)
    possible_B: Tensor = length_B >= target_length_B + repeats_B
    return possible_B


def ctc_loss(logits_BTV: Tensor, length_B: Tensor, target_L: Tensor, target_length_B: Tensor) -> Tensor:
    """loss_B: −log p(target) of each utterance, in nats; 0 without gradient where no path exists (see ctc_feasible)."""
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)
    logp_TBV = torch.log_softmax(logits_BTV.to(wide), dim=-1).transpose(0, 1)
    return F.ctc_loss(logp_TBV, target_L, length_B, target_length_B, blank=0, reduction="none", zero_infinity=True)


def _forward_scores(emit_TBS: Tensor, skip_BS: Tensor) -> Tensor:
    """alpha_TBS: log mass of the paths from the start to state s at frame t, both included (Graves 2006, eq. 6, 7)."""
    t, b, s = emit_TBS.shape
    alpha = emit_TBS.new_full((t, b, s + 2), NEVER)  # two states that nobody is in, before the first
    alpha[0, :, 2 : 2 + min(2, s)] = emit_TBS[0, :, : min(2, s)]
    for now in range(1, t):
        last = alpha[now - 1]
        stay_or_step = torch.logaddexp(last[:, 2:], last[:, 1:-1])
        alpha[now, :, 2:] = torch.logaddexp(stay_or_step, last[:, :-2] + skip_BS) + emit_TBS[now]
    return alpha[:, :, 2:]


@torch.no_grad()
def ctc_occupancy(logits_BTV: Tensor, length_B: Tensor, target_L: Tensor, target_length_B: Tensor) -> Tensor:
    """gamma_BTU: the probability, given the target, that frame t is in unit u; the rest of a frame's 1 is blank's.

    By forward-backward in log space and float64; both directions run as one batch, the backward one over the mirrored
    problem. 0 past an utterance's end, past its units, and where no path exists. No gradient flows through it.
    """
    b, t, _ = logits_BTV.shape
    device = logits_BTV.device
    target_BU, valid_BU = _padded(target_L, target_length_B)
    u = target_BU.shape[1]
    logp_BTV = torch.log_softmax(logits_BTV.double(), dim=-1)
    state_BS = torch.zeros((b, 2 * u + 1), dtype=torch.int64, device=device)
    state_BS[:, 1::2] = target_BU
    emit_BTS = logp_BTV.gather(2, state_BS[:, None, :].expand(b, t, -1))
    # mirrored in time and in states, each utterance within its own extent
    frame_BT = (length_B[:, None] - 1 - torch.arange(t, device=device)).clamp_min(0)
    back_BS = (2 * target_length_B[:, None] - torch.arange(2 * u + 1, device=device)).clamp_min(0)
    mirror = frame_BT[:, :, None].expand(b, t, 2 * u + 1), back_BS[:, None, :].expand(b, t, 2 * u + 1)
    mirrored_BTS = emit_BTS.gather(1, mirror[0]).gather(2, mirror[1])
    states_2BS = torch.cat([state_BS, state_BS.gather(1, back_BS)])
    may_skip = torch.zeros_like(states_2BS, dtype=torch.bool)  # onto a unit from the unit before, where they differ
    may_skip[:, 2:] = (states_2BS[:, 2:] != 0) & (states_2BS[:, 2:] != states_2BS[:, :-2])
    skip_2BS = torch.zeros(states_2BS.shape, dtype=torch.float64, device=device).masked_fill(~may_skip, NEVER)
    both_TBS = _forward_scores(torch.cat([emit_BTS, mirrored_BTS]).transpose(0, 1), skip_2BS)
    alpha_BTS = both_TBS[:, :b].transpose(0, 1)
    beta_BTS = both_TBS[:, b:].transpose(0, 1).gather(1, mirror[0]).gather(2, mirror[1])
    inside_BTS = torch.arange(2 * u + 1, device=device)[None, None, :] <= 2 * target_length_B[:, None, None]
    score_BTS = torch.where(inside_BTS, alpha_BTS + beta_BTS - emit_BTS, NEVER)
    total_BT1 = torch.logsumexp(score_BTS, dim=2, keepdim=True)
    possible_BT1 = torch.isfinite(total_BT1)
    gamma_BTS = torch.where(possible_BT1, (score_BTS - torch.where(possible_BT1, total_BT1, 0.0)).exp(), 0.0)
    gamma_BTU = gamma_BTS[:, :, 1::2] * valid_BU[:, None, :]
    gamma_BTU = gamma_BTU * (torch.arange(t, device=device) < length_B[:, None])[:, :, None]
    return gamma_BTU.to(torch.promote_types(logits_BTV.dtype, torch.float32))


def ctc_interpolation(
    logits_BTV: Tensor,
    gamma_BTU: Tensor,
    *,
    ids_NK: Tensor,
    logp_NK: Tensor,
    tail_N: Tensor,
    offset_B1: Tensor,
    class_offset: int = 1,
    tail: str = "ghost",
    temperature: float = 1.0,
    lse_N: Tensor | None = None,
    tail_T_N: Tensor | None = None,
) -> Tensor:
    """loss_B = Σ_t Σ_u γ_t(u) · CE(p_u, q_t): the teacher's part of label interpolation for a CTC output, in nats.

    q_t = softmax over all V classes, the blank included, for the paper's interpolation has one softmax for both; p_u
    gives the blank nothing. A frame counts by its occupancy, so frames of blank weigh 0. Teacher units map to classes
    id + class_offset (1 for the main output; 0 for an auxiliary head without a blank). Position n of utterance b is row
    offset_B1[b] + n and unit n of its target. tail `ghost`: what lies outside the K units (units alone, not the blank)
    is one outcome with p_tail; `renormalised`: p / Σ_K p. temperature T: the teacher's alone, p_u is then its softmax
    at T (lse_N and tail_T_N as in sparse_kl); q_t is always at 1. Computed with two (T × V) · (V × U) products an
    utterance, no (T, U, K) tensor. The caller combines: (1 − w) · ctc_loss + w · this. Raises ValueError for labels
    that require a gradient or rows that do not fit the occupancies.
    """
    if logp_NK.requires_grad or tail_N.requires_grad or gamma_BTU.requires_grad:
        raise ValueError("the teacher's labels and the occupancies must have no gradient, but require one instead.")
    if tail not in ("ghost", "renormalised"):
        raise ValueError(f"tail must be ghost or renormalised here, but is '{tail}' instead.")
    count_B = offset_B1[1:] - offset_B1[:-1]
    b, _, u = gamma_BTU.shape
    if len(count_B) != b or (b and int(count_B.max()) > u):
        raise ValueError(f"offset_B1 must cut the rows into {b} utterances of at most {u} units, but does not.")
    num_units = logits_BTV.shape[2] - class_offset
    logp_NK, tail_N = teacher_at(logp_NK, tail_N, temperature, lse_N, tail_T_N, num_units, tail)
    # probabilities are not to be multiplied in half precision
    with torch.autocast(logits_BTV.device.type, enabled=False):
        wide = torch.promote_types(logits_BTV.dtype, torch.float32)
        logq_BTV = torch.log_softmax(logits_BTV.to(wide), dim=-1)
        v = logq_BTV.shape[2]
        if tail == "renormalised":
            logp_NK = logp_NK - torch.logsumexp(logp_NK, dim=1, keepdim=True)
        rows_N = torch.arange(len(ids_NK), device=logits_BTV.device)
        utterance_N = torch.repeat_interleave(torch.arange(b, device=logits_BTV.device), count_B)
        place_N = utterance_N * u + rows_N - offset_B1[utterance_N]
        class_NK = ids_NK.long() + class_offset
        p_BUV = torch.zeros((b * u, v), dtype=wide, device=logits_BTV.device)
        p_BUV[place_N[:, None], class_NK] = logp_NK.to(wide).exp()
        gamma_BTU = gamma_BTU.to(wide)
        target_BTV = gamma_BTU @ p_BUV.view(b, u, v)
        loss_B = -torch.where(target_BTV > 0, target_BTV * logq_BTV, 0.0).sum(dim=(1, 2))
        if tail == "ghost" and ids_NK.shape[1] < v - class_offset:
            outside_BUV = torch.ones((b * u, v), dtype=wide, device=logits_BTV.device)
            outside_BUV[:, :class_offset] = 0.0
            outside_BUV[place_N[:, None], class_NK] = 0.0
            tail_BU = torch.zeros(b * u, dtype=wide, device=logits_BTV.device)
            tail_BU[place_N] = tail_N.to(wide).exp()
            q_tail_BTU = logq_BTV.exp() @ outside_BUV.view(b, u, v).transpose(1, 2)
            weight_BTU = gamma_BTU * tail_BU.view(b, 1, u)
            loss_B = loss_B - (weight_BTU * q_tail_BTU.clamp_min(_TINY).log()).sum(dim=(1, 2))
        return loss_B
