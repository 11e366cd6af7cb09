"""CTC against brute force over all paths, torch's loss, and each other."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hkd.losses import ctc_feasible, ctc_interpolation, ctc_loss, ctc_occupancy


def brute_force(logp_TV: Tensor, target_U: list[int]) -> tuple[float, Tensor]:
    """p(target) and the occupancies, by walking every path of blanks and units."""
    t, v = logp_TV.shape
    total, gamma_TU = 0.0, torch.zeros(t, len(target_U), dtype=torch.float64)
    for path in itertools.product(range(v), repeat=t):
        unit_at, spoken = [], []
        for now, symbol in enumerate(path):
            if symbol and (now == 0 or path[now - 1] != symbol):
                spoken.append(symbol)
            unit_at.append(len(spoken) - 1 if symbol else -1)
        if spoken != target_U:
            continue
        p = math.exp(sum(float(logp_TV[now, symbol]) for now, symbol in enumerate(path)))
        total += p
        for now, unit in enumerate(unit_at):
            if unit >= 0:
                gamma_TU[now, unit] += p
    return total, gamma_TU / total if total else gamma_TU


@settings(max_examples=25, deadline=None)
@given(target=st.lists(st.integers(1, 2), max_size=3), frames=st.integers(1, 6), seed=st.integers(0, 1000))
def test_occupancy_and_loss_are_the_sum_over_all_paths(target: list[int], frames: int, seed: int) -> None:
    logits_BTV = torch.randn(1, frames, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lengths = torch.tensor([frames]), torch.tensor(target, dtype=torch.int64), torch.tensor([len(target)])
    total, gamma_TU = brute_force(torch.log_softmax(logits_BTV[0], 1), target)
    assert bool(ctc_feasible(*lengths)[0]) == (total > 0)
    torch.testing.assert_close(ctc_occupancy(logits_BTV, *lengths)[0], gamma_TU)
    if total > 0:
        assert float(ctc_loss(logits_BTV, *lengths)[0]) == pytest.approx(-math.log(total))


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Five utterances; the last has no path, the fourth no units, the second a repeat."""
    rng = torch.Generator().manual_seed(seed)
    logits_BTV = 2 * torch.randn(5, 20, 7, generator=rng, dtype=torch.float64)
    targets = [[1, 2, 3, 6], [2, 2, 5, 5, 5], [4], [], [1, 1, 1]]
    return (
        logits_BTV,
        torch.tensor([20, 13, 1, 7, 4]),
        torch.tensor([u for x in targets for u in x]),
        torch.tensor([len(x) for x in targets]),
    )


def test_loss_gradient_is_softmax_minus_occupancy() -> None:
    logits_BTV, length_B, target_L, target_length_B = batch()
    logits_BTV.requires_grad_()
    loss_B = ctc_loss(logits_BTV, length_B, target_L, target_length_B)
    possible_B = ctc_feasible(length_B, target_L, target_length_B)
    assert possible_B.tolist() == [True, True, True, True, False]
    assert float(loss_B[4].detach()) == 0.0
    (grad_BTV,) = torch.autograd.grad(loss_B.sum(), logits_BTV)
    gamma_BTU = ctc_occupancy(logits_BTV, length_B, target_L, target_length_B)
    assert not gamma_BTU.requires_grad
    class_BTV = torch.zeros_like(logits_BTV)
    for row, target_U in enumerate(target_L.split(target_length_B.tolist())):
        class_BTV[row].index_add_(1, target_U, gamma_BTU[row, :, : len(target_U)])
    class_BTV[:, :, 0] = 1 - gamma_BTU.sum(2)
    inside_BT = (torch.arange(20) < length_B[:, None]) & possible_B[:, None]
    expected_BTV = (torch.softmax(logits_BTV, 2) - class_BTV) * inside_BT[:, :, None]
    torch.testing.assert_close(grad_BTV, expected_BTV)


def test_occupancies_lie_inside_and_sum_to_at_most_one() -> None:
    logits_BTV, length_B, target_L, target_length_B = batch()
    gamma_BTU = ctc_occupancy(logits_BTV.float() * 20, length_B, target_L, target_length_B)
    assert bool(torch.isfinite(gamma_BTU).all())
    assert float(gamma_BTU.sum(2).max()) <= 1 + 1e-6
    for row in range(5):
        assert not gamma_BTU[row, length_B[row] :].any()
        assert not gamma_BTU[row, :, target_length_B[row] :].any()
        if row != 4:  # every unit is spoken for a frame at least
            assert bool((gamma_BTU[row, :, : target_length_B[row]].sum(0) >= 1 - 1e-6).all())


def teacher(counts: Tensor, v: int, k: int) -> dict[str, Tensor]:
    """Top-k rows of a random teacher over v units, with the dense log-probabilities as `dense_NV`."""
    dense_NV = torch.log_softmax(
        torch.randn(int(counts.sum()), v, generator=torch.Generator().manual_seed(5), dtype=torch.float64), 1
    )
    logp_NK, ids_NK = dense_NV.topk(k, 1)
    tail_N = dense_NV.scatter(1, ids_NK, float("-inf")).logsumexp(1)
    return {
        "ids_NK": ids_NK,
        "logp_NK": logp_NK,
        "tail_N": tail_N,
        "offset_B1": F.pad(counts.cumsum(0), (1, 0)),
        "dense_NV": dense_NV,
    }


@pytest.mark.parametrize("k", [2, 6])
@pytest.mark.parametrize("class_offset", [1, 0])
def test_interpolation_is_the_double_sum(k: int, class_offset: int) -> None:
    logits_BTV, length_B, target_L, target_length_B = batch()
    rows = teacher(target_length_B, 6, k)
    dense_NV = rows.pop("dense_NV")
    gamma_BTU = ctc_occupancy(logits_BTV, length_B, target_L, target_length_B)
    z_BTV = logits_BTV[:, :, 1 - class_offset :].clone().requires_grad_()
    ours_B = ctc_interpolation(z_BTV, gamma_BTU, **rows, class_offset=class_offset)
    logq_BTV = torch.log_softmax(z_BTV, 2)
    expected = []
    for row in range(5):
        total = torch.zeros((), dtype=torch.float64)
        for unit in range(int(target_length_B[row])):
            n = int(rows["offset_B1"][row]) + unit
            kept = rows["ids_NK"][n]
            rest = [i for i in range(6) if i not in kept.tolist()]
            ce_T = -(dense_NV[n, kept].exp() * logq_BTV[row, :, kept + class_offset]).sum(1)
            if rest:
                ce_T = ce_T - dense_NV[n, rest].exp().sum() * logq_BTV[row][
                    :, [i + class_offset for i in rest]
                ].logsumexp(1)
            total = total + (gamma_BTU[row, :, unit] * ce_T).sum()
        expected.append(total)
    torch.testing.assert_close(ours_B, torch.stack(expected))
    ours, oracle = (torch.autograd.grad(x.sum(), z_BTV, retain_graph=True)[0] for x in (ours_B, torch.stack(expected)))
    torch.testing.assert_close(ours, oracle)


def test_interpolation_with_a_certain_teacher_has_ctcs_own_gradient() -> None:
    """Where the teacher is the reference itself, frames of units get CTC's gradient times their occupancy: mixing
    changes no target."""
    logits_BTV, length_B, target_L, target_length_B = (x[:1] if x.ndim != 1 or len(x) == 5 else x[:4] for x in batch())
    z_BTV = logits_BTV.clone().requires_grad_()
    gamma_BTU = ctc_occupancy(z_BTV, length_B, target_L, target_length_B)
    loss_B = ctc_interpolation(
        z_BTV, gamma_BTU, ids_NK=target_L[:, None] - 1, logp_NK=torch.zeros(4, 1).double(),
        tail_N=torch.full((4,), float("-inf")).double(),
        offset_B1=torch.tensor([0, 4]),
    )  # fmt: skip
    (grad_BTV,) = torch.autograd.grad(loss_B.sum(), z_BTV)
    class_TV = torch.zeros(20, 7, dtype=torch.float64).index_add_(1, target_L, gamma_BTU[0])
    torch.testing.assert_close(
        grad_BTV[0], torch.softmax(logits_BTV[0], 1) * gamma_BTU[0].sum(1, keepdim=True) - class_TV
    )


def test_teacher_side_must_have_no_gradient_and_fit() -> None:
    logits_BTV, length_B, target_L, target_length_B = batch()
    rows = teacher(target_length_B, 6, 2)
    del rows["dense_NV"]
    gamma_BTU = ctc_occupancy(logits_BTV, length_B, target_L, target_length_B)
    with pytest.raises(ValueError, match="gradient"):
        ctc_interpolation(logits_BTV, gamma_BTU, **{**rows, "logp_NK": rows["logp_NK"].clone().requires_grad_()})
    with pytest.raises(ValueError, match="offset_B1"):
        ctc_interpolation(logits_BTV, gamma_BTU[:4], **rows)


def test_autocast_multiplies_no_probabilities_in_half_precision() -> None:
    logits_BTV, length_B, target_L, target_length_B = batch()
    rows = teacher(target_length_B, 6, 2)
    del rows["dense_NV"]
    gamma_BTU = ctc_occupancy(logits_BTV, length_B, target_L, target_length_B).float()
    exact_B = ctc_interpolation(logits_BTV.float(), gamma_BTU, **rows)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ctc_interpolation(logits_BTV.float(), gamma_BTU, **rows), exact_B, atol=0, rtol=0)


def test_renormalised_is_the_bucket_without_its_mass() -> None:
    logits_BTV, length_B, target_L, target_length_B = batch()
    rows = teacher(target_length_B, 6, 2)
    del rows["dense_NV"]
    gamma_BTU = ctc_occupancy(logits_BTV, length_B, target_L, target_length_B)
    whole = {
        **rows,
        "logp_NK": torch.log_softmax(rows["logp_NK"], 1),
        "tail_N": torch.full_like(rows["tail_N"], float("-inf")),
    }
    torch.testing.assert_close(
        ctc_interpolation(logits_BTV, gamma_BTU, **rows, tail="renormalised"),
        ctc_interpolation(logits_BTV, gamma_BTU, **whole),
    )
