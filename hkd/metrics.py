"""Entropy, confidence and calibration of a frame-level output: pure functions without gradient, a value a row where rows are returned.

Shape letters: M rows, V units.
"""

import torch
from torch import Tensor

from hkd.labels.card import calibration_bins, calibration_error


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
