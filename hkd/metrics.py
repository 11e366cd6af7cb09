"""What a frame-level output is worth: pure functions, no gradient, sums left to the caller where rows are given back.

Shape letters: M rows, V units.
"""

import torch
from torch import Tensor

from hkd.labels.card import calibration_bins, calibration_error
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


def expected_calibration_error(confidence_M: Tensor, correct_M: Tensor) -> float:
    """`labels.quality.calibration_error` of rows: the same figure for a student as for a teacher. NaN for no rows."""
    error = calibration_error(calibration_bins(confidence_M.double().cpu().numpy(), correct_M.bool().cpu().numpy()))
    return float("nan") if error is None else error


@torch.no_grad()
def kl(logits_MV: Tensor, *, ids_MK: Tensor, logp_MK: Tensor, tail_M: Tensor) -> Tensor:
    """kl_M: KL(teacher ‖ student) with the tail as one outcome, in nats, at temperature 1: the value that losses.sparse_kl lowers."""
    return sparse_kl(logits_MV, ids_MK=ids_MK, logp_MK=logp_MK, tail_M=tail_M)
