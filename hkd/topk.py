"""Logits → the sparse distributions of hkd/sparse.py: the likeliest units, or draws."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from hkd.sparse import NO_GOLD, TopK

WORTH_THREADS = 1 << 22  # logits; for fewer, one thread is faster
_CHUNK_BYTES = 2 << 20  # on CPU, rows are drawn from in pieces that stay in the cache: ten times as fast at V = 30 k


@torch.no_grad()
def select_topk(
    logits_NV: torch.Tensor,
    gold_N: torch.Tensor,
    *,
    k: int,
    temperatures: Sequence[float] = (),
    exclude_V: torch.Tensor | None = None,
) -> TopK:
    """The K likeliest units of each row of logits, gold kept, with true log-probabilities and tails.

    logits_NV: unnormalised scores, −inf for units that may not be candidates; gold_N: reference unit ids, −1 for none.
    exclude_V: units that are never kept (special tokens): their mass belongs to the tail; an excluded gold is no gold.
    k ≥ V keeps every unit (dense; the tail is then −inf, or the excluded units). Equal probabilities are ordered by id.
    The tail is the sum over the units left out, not 1 − Σ, so it is exact even where it is tiny.
    """
    v = logits_NV.shape[1]
    gold_N = gold_N.to(logits_NV.device)
    has_gold_N = gold_N >= 0
    if exclude_V is not None:
        exclude_V = exclude_V.to(logits_NV.device)
        has_gold_N = has_gold_N & ~exclude_V[gold_N.clamp(min=0)]
    gold_N = gold_N.masked_fill(~has_gold_N, NO_GOLD)
    k = min(k, v if exclude_V is None else v - int(exclude_V.sum()))
    select = _select_in_rows if logits_NV.device.type == "cpu" else _select_in_tensors
    return select(logits_NV, gold_N, k, temperatures, exclude_V)


def _select_in_rows(
    logits_NV: torch.Tensor, gold_N: torch.Tensor, k: int, temperatures: Sequence[float], exclude_V: torch.Tensor | None
) -> TopK:
    """`select_topk` row by row in compiled code, for CPU: one pass over the vocabulary; torch needs several."""
    from hkd.compiled import number_of_groups, select_rows

    n, v = logits_NV.shape
    if n and int(gold_N.max()) >= v:
        raise ValueError(f"gold_N must hold units below {v}, but holds {int(gold_N.max())} instead")
    excluded_E = np.zeros(0, np.int32) if exclude_V is None else exclude_V.nonzero()[:, 0].numpy().astype(np.int32)
    inverse_T = 1 / np.array([1.0, *temperatures])
    ids_NK, logp_NK, gold_logp_N = np.empty((n, k), np.int32), np.empty((n, k), np.float32), np.empty(n, np.float32)
    mass_NT, tail_NT = np.empty((n, len(inverse_T))), np.empty((n, len(inverse_T)))
    bits_NV = logits_NV.detach().float().contiguous().numpy().view(np.int32)
    gold = gold_N.numpy().astype(np.int32)
    groups = number_of_groups(v, k)

    def select(part: slice) -> None:
        ours = (array[part] for array in (ids_NK, logp_NK, gold_logp_N, mass_NT, tail_NT))
        select_rows(bits_NV[part], gold[part], excluded_E, inverse_T, groups, *ours)

    threads = torch.get_num_threads() if bits_NV.size >= WORTH_THREADS else 1
    cuts = [n * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(select, map(slice, cuts[:-1], cuts[1:])))
    return TopK(
        ids_NK=ids_NK,
        logp_NK=logp_NK,
        tail_N=tail_NT[:, 0].astype(np.float32),
        gold_N=gold,
        gold_logp_N=gold_logp_N,
        lse_NJ=(mass_NT[:, 1:] - mass_NT[:, :1] * inverse_T[1:]).astype(np.float32),
        tail_NJ=tail_NT[:, 1:].astype(np.float32),
    )


def _select_in_tensors(
    logits_NV: torch.Tensor, gold_N: torch.Tensor, k: int, temperatures: Sequence[float], exclude_V: torch.Tensor | None
) -> TopK:
    """`select_topk` by operations on whole tensors, for GPUs."""
    score_NV = logits_NV.float()
    v = score_NV.shape[1]
    ids_NK, top_N1 = _largest(score_NV, k, exclude_V)
    masses = [_mass(score_NV, top_N1, ids_NK, t, dense=k == v) for t in (1.0, *temperatures)]
    lse_NT, tail_NT = (torch.cat(column, 1) for column in zip(*masses, strict=True))
    best_NK = score_NV.gather(1, ids_NK)
    inverse_T = 1 / torch.tensor([1.0, *temperatures], device=logits_NV.device)
    has_gold_N = gold_N >= 0
    gold_N1 = gold_N.clamp(min=0)[:, None]
    gold_score_N1 = score_NV.gather(1, gold_N1)
    missing_N1 = has_gold_N[:, None] & ~(ids_NK == gold_N1).any(-1, keepdim=True)
    last_N1 = best_NK.argmin(-1, keepdim=True)
    leaving_NT, coming_NT = (score_N1 * inverse_T - lse_NT for score_N1 in (gold_score_N1, best_NK.gather(1, last_N1)))
    tail_NT = torch.where(missing_N1, _swap(tail_NT, leaving_NT, coming_NT), tail_NT)
    ids_NK = ids_NK.scatter(1, last_N1, torch.where(missing_N1, gold_N1, ids_NK.gather(1, last_N1)))
    lse_N1 = lse_NT[:, :1]
    logp_NK = score_NV.gather(1, ids_NK) - lse_N1
    ids_NK, order_NK = ids_NK.sort(dim=-1)  # by falling probability, equal ones by id: two stable sorts
    logp_NK, falling_NK = logp_NK.gather(1, order_NK).sort(dim=-1, descending=True, stable=True)
    return TopK(
        ids_NK=ids_NK.gather(1, falling_NK).to(torch.int32).cpu().numpy(),
        logp_NK=logp_NK.cpu().numpy(),
        tail_N=tail_NT[:, 0].cpu().numpy(),
        gold_N=gold_N.to(torch.int32).cpu().numpy(),
        gold_logp_N=(gold_score_N1 - lse_N1)[:, 0].masked_fill(~has_gold_N, float("-inf")).cpu().numpy(),
        # lse_T = log Σ exp(logp / T), with logp = score − lse
        lse_NJ=(lse_NT - lse_N1 * inverse_T)[:, 1:].cpu().numpy(),
        tail_NJ=tail_NT[:, 1:].cpu().numpy(),
    )


def _largest(score_NV: torch.Tensor, k: int, exclude_V: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of the k largest scores of each row that are not excluded, in any order; the row's largest of all (N, 1).

    In large rows the k largest lie in the k groups with the largest maxima, so only those groups are searched. Groups
    of √(V / k) units make both searches equally small. Group g of G holds the ids g, g + G, g + 2 G …
    """
    n, v = score_NV.shape
    size = 1 << max(0, round(math.log2(v / k) / 2))
    groups = v // size
    none = float("-inf")
    if size < 4:
        open_NV = score_NV if exclude_V is None else score_NV.masked_fill(exclude_V, none)
        return open_NV.topk(k, dim=-1, sorted=False).indices, score_NV.amax(-1, keepdim=True)
    body = groups * size
    score_NSG = score_NV[:, :body].view(n, size, groups)
    best_NG = score_NSG.amax(1)
    top_N1 = best_NG.amax(-1, keepdim=True)
    if body < v:
        top_N1 = top_N1.maximum(score_NV[:, body:].amax(-1, keepdim=True))
    if exclude_V is not None:
        touched = exclude_V[:body].view(size, groups).any(0).nonzero()[:, 0]
        excluded = exclude_V[:body].view(size, groups)[:, touched]
        best_NG[:, touched] = score_NSG[:, :, touched].masked_fill(excluded, none).amax(1)
    best_NK = best_NG.topk(k, dim=-1, sorted=False).indices
    step_S = torch.arange(0, body, groups, device=score_NV.device)
    rest = torch.arange(body, v, device=score_NV.device).expand(n, -1)
    candidate_NC = torch.cat([(best_NK[:, :, None] + step_S).view(n, k * size), rest], 1)
    best_NC = score_NV.gather(1, candidate_NC)
    if exclude_V is not None:
        best_NC.masked_fill_(exclude_V[candidate_NC], none)
    return candidate_NC.gather(1, best_NC.topk(k, dim=-1, sorted=False).indices), top_N1


def _swap(tail_NT: torch.Tensor, leaving_NT: torch.Tensor, coming_NT: torch.Tensor) -> torch.Tensor:
    """Log of a sum without one of its terms and with another, not smaller one; all given as logs."""
    share_NT = (leaving_NT - tail_NT).clamp(max=0).nan_to_num(nan=float("-inf"), neginf=float("-inf"))
    left_NT = tail_NT + torch.log1p(-share_NT.exp())
    # torch.logaddexp rounds the last few elements of a tensor differently, so that a row would depend on its
    # neighbours.
    larger_NT, apart_NT = left_NT.maximum(coming_NT), (left_NT - coming_NT).abs().nan_to_num()
    return larger_NT + torch.log1p(torch.exp(-apart_NT))


def _mass(
    score_NV: torch.Tensor, top_N1: torch.Tensor, ids_NK: torch.Tensor, temperature: float, *, dense: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """log Σ_v exp(score_v / T), and the log share of the units outside `ids_NK` in it; both (N, 1)."""
    weight_NV = score_NV - top_N1
    if temperature != 1.0:
        weight_NV /= temperature
    weight_NV.exp_()
    scale_N1 = top_N1 / temperature
    lse_N1 = weight_NV.sum(-1, keepdim=True).log() + scale_N1
    if dense:
        return lse_N1, torch.full_like(lse_N1, float("-inf"))
    rest_N1 = weight_NV.scatter_(1, ids_NK, 0.0).sum(-1, keepdim=True)
    tail_N1 = rest_N1.log() + scale_N1 - lse_N1
    tiny_N = rest_N1[:, 0] < 1e-30  # below what exp gives exactly: computed again from their own maximum
    if bool(tiny_N.any()):
        rest_MV = (score_NV[tiny_N] / temperature).scatter(1, ids_NK[tiny_N], float("-inf"))
        tail_N1[tiny_N] = torch.logsumexp(rest_MV, -1, keepdim=True) - lse_N1[tiny_N]
    return lse_N1, tail_N1


@torch.no_grad()
def select_sample(
    logits_NV: torch.Tensor,
    gold_N: torch.Tensor,
    uniform_NK: torch.Tensor,
    *,
    temperatures: Sequence[float] = (),
    exclude_V: torch.Tensor | None = None,
) -> TopK:
    """K draws from each row's distribution, with replacement, as distinct units with counts (arXiv 2503.16870, sec. 4).

    uniform_NK: numbers in [0, 1), turned into units by the inverse of the cumulative distribution; they alone decide
    the draws. Units in `exclude_V` are never drawn (the rest is drawn in proportion), but logp and tail are the true
    ones. Rows are ordered by falling probability; unused columns have count 0, unit 0 and logp −inf. The gold unit is
    kept only if drawn.
    """
    n, v = logits_NV.shape
    rows, all_T = max(1, n if logits_NV.is_cuda else _CHUNK_BYTES // (4 * v)), (1.0, *temperatures)
    parts = []
    for a in range(0, max(1, n), rows):
        score_NV = logits_NV[a : a + rows].float()
        logp_NV = torch.log_softmax(score_NV, -1)
        p_NV = logp_NV.double().exp()
        if exclude_V is not None:
            p_NV = p_NV.masked_fill(exclude_V.to(p_NV.device), 0.0)
        sum_NV = p_NV.cumsum(-1)
        uniform_MK = uniform_NK[a : a + rows].to(sum_NV)
        drawn_NK = torch.searchsorted(sum_NV, uniform_MK * sum_NV[:, -1:], right=True)
        ids_NK = drawn_NK.clamp(max=v - 1).sort(dim=-1).values
        first_NK = torch.ones_like(ids_NK, dtype=torch.bool)
        first_NK[:, 1:] = ids_NK[:, 1:] != ids_NK[:, :-1]
        run_NK = first_NK.cumsum(-1) - 1
        count_NK = torch.zeros_like(ids_NK).scatter_add(1, run_NK, torch.ones_like(ids_NK))
        unit_NK = torch.zeros_like(ids_NK).scatter(1, run_NK, ids_NK)
        kept_NK = logp_NV.gather(1, unit_NK).masked_fill(count_NK == 0, float("-inf"))
        kept_NK, order_NK = kept_NK.sort(dim=-1, descending=True, stable=True)
        top_N1 = score_NV.amax(-1, keepdim=True)
        masses = [_mass(score_NV, top_N1, ids_NK, t) for t in all_T]
        lse_NT = torch.cat([lse_N1 - masses[0][0] / t for (lse_N1, _), t in zip(masses, all_T, strict=True)], 1)
        tail_NT = torch.cat([tail_N1 for _, tail_N1 in masses], 1)
        gold_M = gold_N[a : a + rows].to(ids_NK.device)
        gold_logp_M = logp_NV.gather(1, gold_M.clamp(min=0)[:, None])[:, 0].masked_fill(gold_M < 0, float("-inf"))
        parts.append(
            TopK(
                ids_NK=unit_NK.gather(1, order_NK).to(torch.int32).cpu().numpy(),
                logp_NK=kept_NK.cpu().numpy(),
                tail_N=tail_NT[:, 0].cpu().numpy(),
                gold_N=gold_M.to(torch.int32).cpu().numpy(),
                gold_logp_N=gold_logp_M.cpu().numpy(),
                lse_NJ=lse_NT[:, 1:].cpu().numpy(),
                tail_NJ=tail_NT[:, 1:].cpu().numpy(),
                count_NK=count_NK.gather(1, order_NK).cpu().numpy().astype(np.uint16),
            )
        )
    return TopK.concatenate(parts)
