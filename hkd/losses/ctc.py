"""CTC: the loss, the occupancies of its units, and distillation weighted by them.

Graves et al. 2006, "Connectionist temporal classification". Class 0 is the blank; a target sequence of U units is the state chain
blank, unit 1, blank, …, unit U, blank with S = 2U + 1 states.

Shape letters: B utterances, T encoder frames, V classes, L = Σ U concatenated targets, U units (longest), S states, N positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hkd.losses.sparse import teacher_at

NEVER = float("-inf")
_TINY = 1e-30


def class_targets(unit_L: Tensor) -> Tensor:
    """Unit ids of the main inventory → CTC classes: id + 1, for class 0 is the blank."""
    return unit_L + 1


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
    """loss_B: −log p(target) of each utterance, in nats; 0 with no gradient where no path exists (see ctc_feasible to count these)."""
    logp_TBV = torch.log_softmax(logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32)), dim=-1).transpose(0, 1)
    return F.ctc_loss(logp_TBV, target_L, length_B, target_length_B, blank=0, reduction="none", zero_infinity=True)


def _forward_scores(emit_TBS: Tensor, skip_BS: Tensor) -> Tensor:
    """alpha_TBS: log mass of all paths from the start to state s at frame t, both included (Graves 2006, equations 6 and 7)."""
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
    """gamma_BTU: the probability, given the target, that frame t is spent in unit u; the rest of a frame's 1 is blank's.

    By forward-backward in log space and float64; both directions run as one batch, the backward one over the mirrored problem.
    0 past an utterance's end, past its units, and where no path exists. No gradient flows through it.
    """
    b, t, _ = logits_BTV.shape
    device = logits_BTV.device
    target_BU, valid_BU = _padded(target_L, target_length_B)
    u = target_BU.shape[1]
    if u == 0:
        return logits_BTV.new_zeros((b, t, 0), dtype=torch.promote_types(logits_BTV.dtype, torch.float32))
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
    gamma_BTS = torch.where(
        torch.isfinite(total_BT1), (score_BTS - torch.where(torch.isfinite(total_BT1), total_BT1, 0.0)).exp(), 0.0
    )
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

    q_t = softmax over all V classes, the blank included, for the paper's interpolation has one softmax for both; p_u gives the blank
    nothing. A frame counts by its occupancy, so frames of blank weigh 0. Teacher units map to classes id + class_offset (1 for
    the main output; 0 for an auxiliary head without a blank). Position n of utterance b is row offset_B1[b] + n and unit n of its target.
    tail `ghost`: what lies outside the K units (units alone, not the blank) is one outcome with p_tail; `renormalised`: p / Σ_K p.
    temperature T: the teacher's alone, p_u is then its softmax at T (lse_N and tail_T_N as in sparse_kl); q_t is always at 1.
    Computed with two (T × V) · (V × U) products an utterance, no (T, U, K) tensor. The caller combines: (1 − w) · ctc_loss + w · this.
    Raises ValueError for labels that require a gradient or rows that do not fit the occupancies.
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
    with torch.autocast(logits_BTV.device.type, enabled=False):  # probabilities are not to be multiplied in half precision
        return _occupied_cross_entropy(logits_BTV, gamma_BTU, ids_NK, logp_NK, tail_N, offset_B1, class_offset, tail)


def _occupied_cross_entropy(
    logits_BTV: Tensor,
    gamma_BTU: Tensor,
    ids_NK: Tensor,
    logp_NK: Tensor,
    tail_N: Tensor,
    offset_B1: Tensor,
    class_offset: int,
    tail: str,
) -> Tensor:
    """ctc_interpolation, its arguments checked."""
    b, _, u = gamma_BTU.shape
    count_B = offset_B1[1:] - offset_B1[:-1]
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
