"""Dropout drops as often as it says, keeps the mean, and follows torch's seed."""

import pytest
import torch

from hkd.student.dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_share_mean_and_gradient(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(401, 333, requires_grad=True)  # not a multiple of eight
    y = dropout(x, p, training=True)
    dropped = (y == 0).float().mean()
    assert abs(float(dropped) - p) < 1 / 512 + 0.004
    assert abs(float(y.detach().mean()) - 1) < 0.01
    per_bit = (y.detach().flatten()[: 401 * 333 // 8 * 8].view(-1, 8) == 0).float().mean(0)  # each of a draw's eight bytes alike
    assert bool(((per_bit - dropped).abs() < 0.02).all())
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y)


def test_seeded_and_off_outside_training() -> None:
    x = torch.randn(7, 5)
    torch.manual_seed(3)
    first = dropout(x, 0.3, training=True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3, training=True), first)
    assert not torch.equal(dropout(x, 0.3, training=True), first)
    assert dropout(x, 0.3, training=False) is x
    assert dropout(x, 0.0, training=True) is x
