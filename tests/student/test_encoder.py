"""An utterance's output and gradient depend on nothing but itself."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hkd.student.config import EncoderConfig, StudentConfig
from hkd.student.encoder import BLOCK, ConformerEncoder, rotary_tables, subsampled, utterance_dropout
from hkd.student.model import StudentModel
from hkd.timebase import num_encoder_frames

SMALL = StudentConfig(
    encoder=EncoderConfig(d_model=24, num_layers=2, num_heads=2, conv_kernel=5, num_bins=16), num_main_units=12
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_companions_and_padding_change_neither_output_nor_gradient(
    make: Callable[..., StudentModel], lengths: list[int], seed: int
) -> None:
    student = make(SMALL, seed).double()
    rng = torch.Generator().manual_seed(seed)
    x_BTF = torch.randn(
        len(lengths), max(lengths) + 9, 16, generator=rng, dtype=torch.float64
    )  # what lies past the end is not zero
    alone_TF = x_BTF[:1, : lengths[0]].clone().requires_grad_()
    alone = student(alone_TF, torch.tensor(lengths[:1])).logits_BTV
    frames = num_encoder_frames(lengths[0])
    assert alone.shape[1] == frames
    x_BTF.requires_grad_()
    output = student(x_BTF, torch.tensor(lengths))
    assert output.length_B.tolist() == [num_encoder_frames(n) for n in lengths]
    assert output.logits_BTV.shape[1] == num_encoder_frames(max(lengths) + 9)
    torch.testing.assert_close(output.logits_BTV[:1, :frames], alone, atol=1e-9, rtol=1e-9)
    assert bool(torch.isfinite(output.logits_BTV).all())

    def weights(logits: torch.Tensor) -> list[torch.Tensor]:
        loss = (logits * torch.arange(12.0)).sin().sum()
        return list(torch.autograd.grad(loss, [alone_TF if logits is alone else x_BTF, *student.parameters()]))

    ours, in_batch = weights(alone), weights(output.logits_BTV[:1, :frames])
    torch.testing.assert_close(in_batch[0][:1, : lengths[0]], ours[0], atol=1e-9, rtol=1e-7)
    assert not in_batch[0][1:].any()
    assert not in_batch[0][0, lengths[0] :].any()
    torch.testing.assert_close(in_batch[1:], ours[1:], atol=1e-8, rtol=1e-7)


def test_padding_may_hold_anything(make: Callable[..., StudentModel]) -> None:
    student = make(SMALL)
    x_BTF = torch.randn(2, 30, 16)
    length_B = torch.tensor([30, 11])
    clean = student(x_BTF, length_B).logits_BTV
    x_BTF[1, 11:] = float("nan")
    torch.testing.assert_close(student(x_BTF, length_B).logits_BTV[1, :3], clean[1, :3], atol=0, rtol=0)


def test_output_depends_on_every_frame(make: Callable[..., StudentModel]) -> None:
    """No frame is lost at the end, whatever the remainder of the length by four."""
    student = make(SMALL)
    for frames in (1, 2, 3, 4, 5, 40):
        x_BTF = torch.randn(1, frames, 16, requires_grad=True)
        logits = student(x_BTF, torch.tensor([frames])).logits_BTV
        (grad_BTF,) = torch.autograd.grad(logits[0, -1].sin().sum(), x_BTF)
        assert bool((grad_BTF.abs().amax(2) > 0).all())


def test_subsampled_is_the_timebases_rule() -> None:
    length_B = torch.arange(1, 50)
    assert subsampled(length_B).tolist() == [num_encoder_frames(n) for n in range(1, 50)]
    assert torch.equal(subsampled(subsampled(length_B, 2), 2), subsampled(length_B))


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    cos_TE, sin_TE = rotary_tables(20, 8, device=torch.device("cpu"))
    rng = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 8, generator=rng)

    def turn(x: torch.Tensor, t: int) -> torch.Tensor:
        a, b = x.chunk(2)
        return torch.cat([a * cos_TE[t] - b * sin_TE[t], b * cos_TE[t] + a * sin_TE[t]])

    scores = [float(turn(first, t) @ turn(second, t + 3)) for t in range(0, 17, 4)]
    assert max(scores) - min(scores) < 1e-5
    assert abs(scores[0] - float(turn(first, 0) @ turn(second, 9))) > 1e-3


# ----------------------------------------------------------------------------------------------------
# Dropout drops as often as it says, keeps the mean, and an utterance's masks depend on its seed alone.


CPU = torch.device("cpu")


def masks(seed_B: list[int], *, num_frames: int, width: int = 6, calls: int = 3, p: float = 0.3) -> Tensor:
    drop = utterance_dropout(p, seed_B, calls=calls, num_frames=num_frames, width=width, device=CPU)
    return torch.stack([drop(torch.ones(len(seed_B), num_frames, width)) for _ in range(calls)])


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5])
def test_share_mean_and_gradient(p: float) -> None:
    drop = utterance_dropout(p, [1, 2, 3], calls=1, num_frames=401, width=333, device=CPU)
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
