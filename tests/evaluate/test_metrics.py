"""Metrics against their definitions."""

import math

import pytest
import torch

from hkd.evaluate.heads import confidence, entropy, expected_calibration_error
from hkd.labels.card import calibration_error, quality_sums
from hkd.topk import select_topk


def test_entropy_is_that_of_torchs_categorical() -> None:
    logits_MV = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(entropy(logits_MV), torch.distributions.Categorical(logits=logits_MV).entropy())
    assert float(entropy(torch.tensor([[0.0, float("-inf")]]))[0]) == 0.0


def test_calibration_error() -> None:
    confidence_M = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    correct_M = torch.tensor([True, True, True, False, True, False])
    expected = 4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(0.5 - 0.6)
    assert float(expected_calibration_error(confidence_M, correct_M)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("sure", "right", "expected"),
    [
        ([0.5, 0.41], [True, False], 0.5 * abs(1 - 0.5) + 0.5 * abs(0 - 0.41)),  # 0.5 opens the bin of 0.5 to 0.6
        ([0.5, 0.59], [True, False], abs(0.5 - 0.545)),
        ([1.0, 0.95], [True, False], abs(0.5 - 0.975)),  # 1 lies in the last
        ([0.0], [False], 0.0),
    ],
)
def test_calibration_has_ten_bins_that_hold_their_lower_edge(sure: list[float], right: list[bool], expected: float) -> None:
    found = expected_calibration_error(torch.tensor(sure, dtype=torch.float64), torch.tensor(right))
    assert found == pytest.approx(expected)


def test_a_teacher_and_a_student_of_the_same_rows_have_the_same_calibration_error() -> None:
    rng = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(500, 6, generator=rng, dtype=torch.float64)
    gold_N = torch.randint(0, 6, (500,), generator=rng)
    teacher = calibration_error(quality_sums(select_topk(logits_NV, gold_N, k=6)))
    assert expected_calibration_error(confidence(logits_NV), logits_NV.argmax(1) == gold_N) == pytest.approx(teacher, rel=1e-5)
    assert math.isnan(expected_calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool)))


def test_a_calibrated_output_has_a_small_calibration_error() -> None:
    rng = torch.Generator().manual_seed(0)
    logits_MV = torch.randn(20_000, 4, generator=rng)
    drawn_M = torch.multinomial(torch.softmax(logits_MV, 1), 1, generator=rng)[:, 0]
    honest, boastful = (
        float(expected_calibration_error(confidence(scale * logits_MV), (logits_MV.argmax(1) == drawn_M))) for scale in (1.0, 4.0)
    )
    assert honest < 0.02
    assert boastful > 0.2
