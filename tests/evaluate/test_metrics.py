"""Sums over frames against their definitions."""

import numpy as np
import pytest
import torch

from hkd.evaluate.heads import Sums
from hkd.labels.card import calibration_bins, calibration_error, quality_sums
from hkd.topk import select_topk


def figures(logits_NV: torch.Tensor, unit_N: torch.Tensor) -> dict[str, float]:
    sums = Sums()
    for rows in torch.arange(len(unit_N)).split(4096):
        sums.add(logits_NV[rows], unit_N[rows])
    found = sums.figures()
    assert found is not None
    return found


def test_entropy_is_that_of_torchs_categorical() -> None:
    logits_MV = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    wanted = torch.distributions.Categorical(logits=logits_MV).entropy().mean()
    assert figures(logits_MV, torch.zeros(6))["entropy"] == pytest.approx(float(wanted), rel=1e-6)
    assert figures(torch.tensor([[0.0, float("-inf")]]), torch.zeros(1))["entropy"] == 0.0


def test_nothing_is_said_of_no_rows() -> None:
    sums = Sums()
    sums.add(torch.zeros(0, 3), torch.zeros(0))
    assert sums.figures() is None


@pytest.mark.parametrize(
    ("sure", "right", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0, 1, 0], 4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(0.5 - 0.6)),
        ([0.5, 0.41], [1, 0], 0.5 * abs(1 - 0.5) + 0.5 * abs(0 - 0.41)),  # 0.5 opens the bin of 0.5 to 0.6
        ([0.5, 0.59], [1, 0], abs(0.5 - 0.545)),
        ([1.0, 0.95], [1, 0], abs(0.5 - 0.975)),  # 1 lies in the last
        ([0.0], [0], 0.0),
    ],
)
def test_calibration_has_ten_bins_that_hold_their_lower_edge(sure: list[float], right: list[int], expected: float) -> None:
    found = calibration_error(calibration_bins(np.array(sure), np.array(right, np.bool_)))
    assert found == pytest.approx(expected)


def test_a_teacher_and_a_student_of_the_same_rows_have_the_same_calibration_error() -> None:
    rng = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(500, 6, generator=rng, dtype=torch.float64)
    gold_N = torch.randint(0, 6, (500,), generator=rng)
    teacher = calibration_error(quality_sums(select_topk(logits_NV, gold_N, k=6)))
    assert figures(logits_NV, gold_N)["calibration_error"] == pytest.approx(teacher, rel=1e-5)


def test_a_calibrated_output_has_a_small_calibration_error() -> None:
    rng = torch.Generator().manual_seed(0)
    logits_MV = torch.randn(20_000, 4, generator=rng)
    drawn_M = torch.multinomial(torch.softmax(logits_MV, 1), 1, generator=rng)[:, 0]
    assert figures(logits_MV, drawn_M)["calibration_error"] < 0.02
    assert figures(4 * logits_MV, drawn_M)["calibration_error"] > 0.2
