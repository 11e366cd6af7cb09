"""Metrics against their definitions."""

import pytest
import torch

from hkd.losses import sparse_kl
from hkd.metrics import confidence, entropy, expected_calibration_error, kl


def test_entropy_is_that_of_torchs_categorical() -> None:
    logits_MV = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(entropy(logits_MV), torch.distributions.Categorical(logits=logits_MV).entropy())
    assert float(entropy(torch.tensor([[0.0, float("-inf")]]))[0]) == 0.0


def test_calibration_error() -> None:
    confidence_M = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    correct_M = torch.tensor([True, True, True, False, True, False])
    expected = 4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(0.5 - 0.6)
    assert float(expected_calibration_error(confidence_M, correct_M)) == pytest.approx(expected, abs=1e-6)


def test_a_calibrated_output_has_a_small_calibration_error() -> None:
    rng = torch.Generator().manual_seed(0)
    logits_MV = torch.randn(20_000, 4, generator=rng)
    drawn_M = torch.multinomial(torch.softmax(logits_MV, 1), 1, generator=rng)[:, 0]
    honest, boastful = (
        float(expected_calibration_error(confidence(scale * logits_MV), (logits_MV.argmax(1) == drawn_M))) for scale in (1.0, 4.0)
    )
    assert honest < 0.02
    assert boastful > 0.2


def test_kl_is_the_losss_value_without_a_gradient() -> None:
    logits_MV = torch.randn(3, 5, requires_grad=True)
    labels = {
        "ids_MK": torch.tensor([[0, 1]] * 3),
        "logp_MK": torch.tensor([[0.5, 0.3]] * 3).log(),
        "tail_M": torch.tensor([0.2] * 3).log(),
    }
    value_M = kl(logits_MV, **labels)
    assert not value_M.requires_grad
    torch.testing.assert_close(value_M, sparse_kl(logits_MV, **labels).detach())
