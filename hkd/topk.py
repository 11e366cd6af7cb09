"""The sparse distribution that a teacher gives a position: its K likeliest units, and what lies outside them.

- `logp` are *true* log-probabilities under the full softmax at temperature 1; they are never renormalised.
- The tail is stored, not rebuilt: 1 − Σ of rounded values loses it where the first unit is nearly certain.
- The gold (reference) unit is always among the kept ids (it replaces the last one where it would not be), unless the
  inventory has no such unit (gold −1).
- For each extra temperature T: `lse_T` = log Σ_v exp(logp_v / T) over the whole vocabulary, so that
  p_T(v) = exp(logp_v / T − lse_T) is exact for every kept id, and `tail_T`, the log mass outside the K at T.

Shape letters: N positions, K kept ids, V size of the inventory, J extra temperatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

NO_GOLD = -1


def _empty_NJ() -> NDArray[np.float32]:
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK:
    """Top-k distributions of N positions (arrays are not copied; see the module for what each number means)."""

    ids_NK: NDArray[np.int32]  # by falling probability, distinct in a row
    logp_NK: NDArray[np.float32]
    tail_N: NDArray[np.float32]  # log of the mass outside the K; -inf where there is none
    gold_N: NDArray[np.int32]
    gold_logp_N: NDArray[np.float32]
    lse_NJ: NDArray[np.float32] = field(default_factory=_empty_NJ)
    tail_NJ: NDArray[np.float32] = field(default_factory=_empty_NJ)
    count_NK: NDArray[np.uint16] | None = None  # selection "sample": how often each id was drawn; 0 pads a row

    def __post_init__(self) -> None:
        n, k = self.ids_NK.shape
        if self.lse_NJ.size == 0 and self.lse_NJ.shape[0] != n:
            object.__setattr__(self, "lse_NJ", np.zeros((n, 0), np.float32))
            object.__setattr__(self, "tail_NJ", np.zeros((n, 0), np.float32))
        shapes = {"logp_NK": (n, k), "tail_N": (n,), "gold_N": (n,), "gold_logp_N": (n,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, but has {getattr(self, name).shape} instead")

    def __len__(self) -> int:
        return int(self.ids_NK.shape[0])

    @property
    def k(self) -> int:
        """Kept ids a position."""
        return int(self.ids_NK.shape[1])

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "TopK":
        """The rows of a slice or an index array, as views where NumPy gives views."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        picked: dict[str, Any] = {name: None if c is None else c[rows] for name, c in columns.items()}
        return TopK(**picked)

    @classmethod
    def concatenate(cls, parts: Sequence["TopK"]) -> "TopK":
        """All rows of all parts in order; the parts must agree on K and on the temperatures. Raises ValueError when empty."""
        if not parts:
            raise ValueError("parts must not be empty")
        columns: dict[str, list[Any]] = {f.name: [getattr(p, f.name) for p in parts] for f in fields(cls)}
        joined: dict[str, Any] = {name: None if c[0] is None else np.concatenate(c) for name, c in columns.items()}
        return cls(**joined)

    @classmethod
    def empty(cls, k: int, num_temperatures: int = 0) -> "TopK":
        """No positions."""
        flat, wide = np.zeros(0, np.float32), np.zeros((0, k), np.float32)
        extra = np.zeros((0, num_temperatures), np.float32)
        return cls(
            ids_NK=wide.astype(np.int32), logp_NK=wide, tail_N=flat, gold_N=flat.astype(np.int32), gold_logp_N=flat,
            lse_NJ=extra, tail_NJ=extra,
        )  # fmt: skip


_CHUNK_BYTES = 1 << 20  # on CPU rows are done in pieces that stay in the cache: ten times as fast as in one go at V = 30 k
_GROUP = 64


def _largest(score_NV: torch.Tensor, k: int) -> torch.Tensor:
    """The ids of the k largest scores of each row, in any order.

    Large rows: the k largest lie in the k groups with the largest maxima, so only those groups are searched.
    """
    n, v = score_NV.shape
    groups = v // _GROUP
    if k * 4 >= groups:
        return score_NV.topk(k, dim=-1, sorted=False).indices
    body = groups * _GROUP
    best_NK = score_NV[:, :body].view(n, _GROUP, groups).amax(1).topk(k, dim=-1, sorted=False).indices
    step_G = torch.arange(0, body, groups, device=score_NV.device)
    candidate_NC = (best_NK[:, :, None] + step_G).view(n, -1)
    rest = torch.arange(body, v, device=score_NV.device).expand(n, -1)
    candidate_NC = torch.cat([candidate_NC, rest], 1)
    return candidate_NC.gather(1, score_NV.gather(1, candidate_NC).topk(k, dim=-1, sorted=False).indices)


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
    exclude_V: units that are never kept (special tokens): their mass stays true and counts to the tail; an excluded gold is no gold.
    k ≥ V keeps every unit (dense; the tail is then −inf, or the excluded units). Equal probabilities stand in order of their ids.
    The tail is the sum over the units left out, not 1 − Σ, hence exact even where it is tiny.
    """
    v = logits_NV.shape[1]
    k = min(k, v if exclude_V is None else v - int(exclude_V.sum()))
    rows = len(logits_NV) if logits_NV.is_cuda else max(1, _CHUNK_BYTES // (4 * v))
    parts = [
        _select(logits_NV[a : a + rows], gold_N[a : a + rows], k, temperatures, exclude_V)
        for a in range(0, max(1, len(logits_NV)), rows or 1)
    ]
    ids_NK, logp_NK, tail_N, kept_gold_N, gold_logp_N, lse_NJ, tail_NJ = (
        torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)
    )
    return TopK(
        ids_NK=ids_NK, logp_NK=logp_NK, tail_N=tail_N, gold_N=kept_gold_N, gold_logp_N=gold_logp_N, lse_NJ=lse_NJ, tail_NJ=tail_NJ
    )


def _select(
    logits_NV: torch.Tensor, gold_N: torch.Tensor, k: int, temperatures: Sequence[float], exclude_V: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """The columns of a `TopK` for some rows, on their device; one exponential a unit and temperature."""
    score_NV = logits_NV.float()
    gold_N = gold_N.to(score_NV.device)
    has_gold_N = gold_N >= 0
    safe_gold_N = gold_N.clamp(min=0)
    if exclude_V is not None:
        exclude_V = exclude_V.to(score_NV.device)
        has_gold_N = has_gold_N & ~exclude_V[safe_gold_N]
    ids_NK = _largest(score_NV if exclude_V is None else score_NV.masked_fill(exclude_V, float("-inf")), k)
    best_NK = score_NV.gather(1, ids_NK)
    missing_N = has_gold_N & ~(ids_NK == safe_gold_N[:, None]).any(-1)
    last_N = best_NK.argmin(-1)
    rows_M = missing_N.nonzero()[:, 0]
    ids_NK[rows_M, last_N[rows_M]] = safe_gold_N[rows_M]
    # by falling score, equal ones by id (two stable sorts)
    ids_NK = ids_NK.sort(dim=-1).values
    order_NK = score_NV.gather(1, ids_NK).sort(dim=-1, descending=True, stable=True).indices
    ids_NK = ids_NK.gather(1, order_NK)
    top_N = score_NV.amax(-1, keepdim=True)
    lse_N1, tail_N = _mass(score_NV, top_N, ids_NK, 1.0)
    extra = [_mass(score_NV, top_N, ids_NK, t) for t in temperatures]
    gold_logp_N = (score_NV.gather(1, safe_gold_N[:, None]) - lse_N1)[:, 0].masked_fill(~has_gold_N, float("-inf"))
    none = score_NV.new_zeros((len(score_NV), 0))
    # lse_T = log Σ exp(logp / T), with logp = score − lse
    return (
        ids_NK.to(torch.int32),
        score_NV.gather(1, ids_NK) - lse_N1,
        tail_N,
        gold_N.masked_fill(~has_gold_N, NO_GOLD).to(torch.int32),
        gold_logp_N,
        torch.cat([none, *(lse - lse_N1 / t for (lse, _), t in zip(extra, temperatures, strict=True))], 1),
        torch.cat([none, *(tail[:, None] for _, tail in extra)], 1),
    )


def _mass(
    score_NV: torch.Tensor, top_N1: torch.Tensor, ids_NK: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log Σ_v exp(score_v / T) as (N, 1), and the log share (N,) of the units outside `ids_NK` in it."""
    weight_NV = ((score_NV - top_N1) / temperature).exp_() if temperature != 1.0 else (score_NV - top_N1).exp_()
    all_N = weight_NV.sum(-1)
    lse_N = all_N.log() + top_N1[:, 0] / temperature
    if ids_NK.shape[1] == score_NV.shape[1]:
        return lse_N[:, None], torch.full_like(lse_N, float("-inf"))
    rest_N = weight_NV.scatter_(1, ids_NK, 0.0).sum(-1)
    tail_N = rest_N.log() + top_N1[:, 0] / temperature - lse_N
    tiny_N = rest_N < 1e-30  # below what exp gives exactly: their own maximum as reference
    if bool(tiny_N.any()):
        rest_MV = (score_NV[tiny_N] / temperature).scatter(1, ids_NK[tiny_N], float("-inf"))
        tail_N[tiny_N] = torch.logsumexp(rest_MV, -1) - lse_N[tiny_N]
    return lse_N[:, None], tail_N
