"""What a frame-level output is worth: pure functions, no gradient, sums left to the caller where rows are given back.

Shape letters: M rows, V units.
"""

import torch
from torch import Tensor

from hkd.losses import sparse_kl


@torch.no_grad()
def entropy(logits_MV: Tensor) -> Tensor:
    """entropy_M: of each row's softmax, in nats."""
    logp_MV = torch.log_softmax(logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)), dim=1)
    return -torch.where(torch.isfinite(logp_MV), logp_MV.exp() * logp_MV, 0.0).sum(dim=1)


@torch.no_grad()
def confidence(logits_MV: Tensor) -> Tensor:
    """confidence_M: the probability of each row's likeliest unit."""
    return torch.softmax(logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)), dim=1).amax(dim=1)


@torch.no_grad()
def expected_calibration_error(confidence_M: Tensor, correct_M: Tensor, *, num_bins: int = 15) -> Tensor:
    """Σ_bins (rows in bin / M) · |accuracy − mean confidence| over equal bins of confidence (Guo et al. 2017, equation 3); a scalar.

    Bin i holds (i / n, (i + 1) / n]; 0 belongs to the first. NaN for no rows.
    """
    confidence_M = confidence_M.double()
    bin_M = (torch.ceil(confidence_M * num_bins).long() - 1).clamp(0, num_bins - 1)
    gap = torch.zeros(num_bins, dtype=torch.float64, device=confidence_M.device)
    gap.index_add_(0, bin_M, correct_M.double() - confidence_M)
    return (gap.abs().sum() / len(confidence_M)) if len(confidence_M) else gap.new_tensor(float("nan"))


@torch.no_grad()
def kl(logits_MV: Tensor, *, ids_MK: Tensor, logp_MK: Tensor, tail_M: Tensor) -> Tensor:
    """kl_M: KL(teacher ‖ student) with the tail as one outcome, in nats, at temperature 1: the value that losses.sparse_kl lowers."""
    return sparse_kl(logits_MV, ids_MK=ids_MK, logp_MK=logp_MK, tail_M=tail_M)
