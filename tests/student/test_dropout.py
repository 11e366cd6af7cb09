"""Dropout drops as often as it says, keeps the mean, and an utterance's masks depend on its seed alone."""

import pytest
import torch
from torch import Tensor

from hkd.student.config import EncoderConfig
from hkd.student.dropout import BLOCK, UtteranceDropout
from hkd.student.encoder import ConformerEncoder

CPU = torch.device("cpu")


def masks(seed_B: list[int], *, num_frames: int, width: int = 6, calls: int = 3, p: float = 0.3) -> Tensor:
    drop = UtteranceDropout(p, seed_B, calls=calls, num_frames=num_frames, width=width, device=CPU)
    return torch.stack([drop(torch.ones(len(seed_B), num_frames, width)) for _ in range(calls)])


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5])
def test_share_mean_and_gradient(p: float) -> None:
    drop = UtteranceDropout(p, [1, 2, 3], calls=1, num_frames=401, width=333, device=CPU)
    x = torch.ones(3, 401, 333, requires_grad=True)
    y = drop(x)
    dropped = (y == 0).float()
    assert float(dropped.mean()) == pytest.approx(p, abs=3 * (p / 400_000) ** 0.5)
    assert float(y.detach().mean()) == pytest.approx(1, abs=0.01)
    by_lane = dropped[:, : 401 // 4 * 4, :332].reshape(-1, 4).mean(0)  # each of a draw's four elements alike
    assert bool(((by_lane - p).abs() < 4 * (p / 100_000) ** 0.5).all())
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y)


@pytest.mark.parametrize("padded", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_an_utterances_masks_are_the_same_in_any_batch(padded: int) -> None:
    frames = min(padded, 40)
    together, alone = masks([7, 8, 9], num_frames=padded), masks([8], num_frames=frames)
    assert torch.equal(together[:, 1, :frames], alone[:, 0])
    assert padded == 1 or not torch.equal(together[:, 0], together[:, 1])
    assert not torch.equal(masks([8], num_frames=40)[0], masks([8], num_frames=40)[1])  # each call has its own


def test_the_encoder_in_training_gives_an_utterance_the_same_in_any_company() -> None:
    torch.manual_seed(0)
    encoder = ConformerEncoder(EncoderConfig(d_model=16, num_layers=2, num_heads=2, conv_kernel=5, dropout=0.2)).train()
    x_BTF, length_B = torch.randn(3, 400, 80), torch.tensor([400, 120, 290])
    together, _, _ = encoder(x_BTF, length_B, (), [5, 6, 7])
    alone, _, _ = encoder(x_BTF[1:2, :120], length_B[1:2], (), [6])
    torch.testing.assert_close(together[1, :30], alone[0], rtol=1e-4, atol=1e-5)
    other, _, _ = encoder(x_BTF[1:2, :120], length_B[1:2], (), [5])
    assert float((other - alone).detach().abs().max()) > 0.1
    torch.manual_seed(3)
    first, _, _ = encoder(x_BTF, length_B, ())
    second, _, _ = encoder(x_BTF, length_B, ())
    torch.manual_seed(3)
    again, _, _ = encoder(x_BTF, length_B, ())
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    encoder.eval()
    assert torch.equal(encoder(x_BTF, length_B, (), [5, 6, 7])[0], encoder(x_BTF, length_B, ())[0])
