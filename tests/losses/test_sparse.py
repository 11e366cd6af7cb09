"""Sparse losses against dense float64 oracles."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hkd.losses import TAILS, hard_cross_entropy, sparse_cross_entropy, sparse_kl
from hkd.sparse import TopK
from hkd.topk import select_topk

V = 11


def labels(
    m: int, k: int, *, v: int = V, seed: int = 0, temperatures: tuple[float, ...] = (), sharp: float = 2.0
) -> tuple[TopK, Tensor]:
    """Top-k rows and the dense float64 teacher log-probabilities that they came from."""
    rng = torch.Generator().manual_seed(seed)
    logits_MV = sharp * torch.randn(m, v, generator=rng)
    gold_M = torch.randint(v, (m,), generator=rng)
    topk = select_topk(logits_MV, gold_M, k=k, temperatures=temperatures)
    return topk, torch.log_softmax(logits_MV.double(), 1)


def arguments(topk: TopK, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        "ids_MK": torch.from_numpy(topk.ids_NK).long(),
        "logp_MK": torch.from_numpy(topk.logp_NK).to(dtype),
        "tail_M": torch.from_numpy(topk.tail_N).to(dtype),
    }


def student(m: int, v: int = V, *, seed: int = 1, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    return (
        (scale * torch.randn(m, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        .to(dtype)
        .requires_grad_()
    )


def bucketed_oracle(z_MV: Tensor, ids_MK: Tensor, p_MV: Tensor) -> Tensor:
    """KL over K + 1 outcomes, written down densely."""
    q_MV = torch.softmax(z_MV, 1)
    kept_MV = torch.zeros_like(q_MV).scatter(1, ids_MK, 1.0)
    on_kept_M = (kept_MV * p_MV * (p_MV.log() - q_MV.log())).sum(1)
    p_tail_M, q_tail_M = ((1 - kept_MV) * p_MV).sum(1), ((1 - kept_MV) * q_MV).sum(1)
    return on_kept_M + p_tail_M * (p_tail_M.log() - q_tail_M.log())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_all_units_kept_is_torchs_dense_kl(temperature: float) -> None:
    topk, logp_MV = labels(6, V)
    z_MV = student(6)
    ours_M = sparse_kl(z_MV, **arguments(topk), temperature=temperature)
    p_MV = torch.log_softmax(logp_MV / temperature, 1)
    dense_M = (
        F.kl_div(torch.log_softmax(z_MV / temperature, 1), p_MV, reduction="none", log_target=True).sum(1)
        * temperature**2
    )
    torch.testing.assert_close(ours_M, dense_M, atol=1e-6, rtol=1e-6)
    (ours,) = torch.autograd.grad(ours_M.sum(), z_MV, retain_graph=True)
    (dense,) = torch.autograd.grad(dense_M.sum(), z_MV)
    torch.testing.assert_close(ours, dense, atol=1e-6, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, V - 1), seed=st.integers(0, 10_000), sharp=st.floats(0.1, 12.0))
def test_bucket_is_the_k_plus_1_outcome_kl_and_its_gradient_on_kept_ids_the_dense_one(
    k: int, seed: int, sharp: float
) -> None:
    topk, logp_MV = labels(5, k, seed=seed, sharp=sharp)
    ids_MK = torch.from_numpy(topk.ids_NK).long()
    z_MV = student(5, seed=seed + 1)
    ours_M = sparse_kl(z_MV, **arguments(topk))
    torch.testing.assert_close(ours_M, bucketed_oracle(z_MV, ids_MK, logp_MV.exp()), atol=2e-5, rtol=1e-5)
    (ours,) = torch.autograd.grad(ours_M.sum(), z_MV)
    dense = torch.softmax(z_MV.detach(), 1) - logp_MV.exp()
    torch.testing.assert_close(ours.gather(1, ids_MK), dense.gather(1, ids_MK), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("tail", "temperatures"),
    [
        (tail, pair)
        for tail in TAILS
        for pair in ((1.0, None), (3.0, None), (3.0, 1.0))
        if tail != "sampled" or pair[0] == 1.0
    ],
)
def test_gradcheck(tail: str, temperatures: tuple[float, float | None]) -> None:
    t, own = temperatures
    topk, _ = labels(4, 3, temperatures=(t,))
    extra = {
        "lse_M": torch.from_numpy(topk.lse_NJ[:, 0]).double(),
        "tail_T_M": torch.from_numpy(topk.tail_NJ[:, 0]).double(),
    }
    gold_M = torch.from_numpy(topk.gold_N).long()
    count_MK = torch.tensor([[3, 0, 2]] * 4)

    def loss(z_MV: Tensor) -> Tensor:
        return sparse_kl(
            z_MV, **arguments(topk), temperature=t, student_temperature=own, tail=tail, gold_M=gold_M,
            count_MK=count_MK, **extra,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, (student(4),))


@pytest.mark.parametrize("own", [None, 1.0])
def test_temperature_uses_the_exact_probabilities_of_the_whole_vocabulary(own: float | None) -> None:
    t = 3.0
    topk, logp_MV = labels(6, 3, temperatures=(2.0, t))
    z_MV = student(6)
    ours_M = sparse_kl(
        z_MV, **arguments(topk), temperature=t, student_temperature=own,
        lse_M=torch.from_numpy(topk.lse_NJ[:, 1]).double(), tail_T_M=torch.from_numpy(topk.tail_NJ[:, 1]).double(),
    )  # fmt: skip
    p_MV = torch.softmax(logp_MV / t, 1)
    oracle_M = bucketed_oracle(z_MV / (own or t), torch.from_numpy(topk.ids_NK).long(), p_MV) * (1.0 if own else t**2)
    torch.testing.assert_close(ours_M, oracle_M, atol=1e-5, rtol=1e-5)


def test_renormalised_and_gold_residual_are_their_dense_targets() -> None:
    topk, logp_MV = labels(8, 3)
    ids_MK, z_MV, gold_M = torch.from_numpy(topk.ids_NK).long(), student(8), torch.from_numpy(topk.gold_N).long()
    kept_MV = torch.zeros(8, V, dtype=torch.float64).scatter(1, ids_MK, 1.0) * logp_MV.exp()
    renormalised_MV = kept_MV / kept_MV.sum(1, keepdim=True)
    residual_MV = kept_MV.scatter_add(1, gold_M[:, None], 1 - kept_MV.sum(1, keepdim=True))
    for tail, target_MV in (("renormalised", renormalised_MV), ("gold-residual", residual_MV)):
        ours_M = sparse_kl(z_MV, **arguments(topk), tail=tail, gold_M=gold_M)
        dense_M = F.kl_div(torch.log_softmax(z_MV, 1), target_MV, reduction="none").sum(1)
        torch.testing.assert_close(ours_M, dense_M, atol=1e-5, rtol=1e-5)


def test_gold_residual_without_a_kept_gold_unit_keeps_the_bucket() -> None:
    topk, _ = labels(8, 3)
    z_MV, none_M = student(8), torch.full((8,), -1)
    residual_M = sparse_kl(z_MV, **arguments(topk), tail="gold-residual", gold_M=none_M)
    torch.testing.assert_close(residual_M, sparse_kl(z_MV, **arguments(topk)))


def test_sampled_is_unbiased() -> None:
    """The mean over many draws approaches the full KL, and its gradient the full gradient."""
    _, logp_MV = labels(1, V, sharp=1.0)
    draws, per_draw = 20_000, 5
    drawn = torch.multinomial(
        logp_MV.exp().expand(draws, V), per_draw, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    z_MV = student(1, scale=1.0)
    value_M = sparse_kl(
        z_MV.expand(draws, V), ids_MK=drawn, logp_MK=logp_MV.expand(draws, V).gather(1, drawn),
        tail_M=torch.zeros(draws).double(),
        tail="sampled", count_MK=torch.ones_like(drawn),
    )  # fmt: skip
    full = F.kl_div(torch.log_softmax(z_MV, 1), logp_MV, reduction="sum", log_target=True)
    assert abs(float((value_M.mean() - full).detach())) < 4 * float(value_M.detach().std()) / math.sqrt(draws)
    (ours,) = torch.autograd.grad(value_M.mean(), z_MV, retain_graph=True)
    torch.testing.assert_close(ours, torch.softmax(z_MV.detach(), 1) - logp_MV.exp(), atol=5e-3, rtol=0)


def test_sampled_ignores_padding_ids_that_stand_twice() -> None:
    topk, _ = labels(2, 3)
    args = arguments(topk)
    padded = {**args, "ids_MK": F.pad(args["ids_MK"], (0, 2)), "logp_MK": F.pad(args["logp_MK"], (0, 2))}
    count_MK = torch.tensor([[4, 1, 1], [2, 2, 2]])
    z_MV = student(2)
    first = torch.autograd.grad(sparse_kl(z_MV, **args, tail="sampled", count_MK=count_MK).sum(), z_MV)[0]
    second = torch.autograd.grad(
        sparse_kl(z_MV, **padded, tail="sampled", count_MK=F.pad(count_MK, (0, 2))).sum(), z_MV
    )[0]
    torch.testing.assert_close(first, second)


def test_log_of_the_rest_is_exact_where_the_student_is_certain() -> None:
    """1 − Q is 0 in float32 here; the sum over the others is not."""
    z_MV = torch.tensor([[60.0, 0.0, 0.0, 0.0]], requires_grad=True)
    loss_M = sparse_kl(
        z_MV, ids_MK=torch.tensor([[0]]), logp_MK=torch.tensor([[math.log(0.5)]]), tail_M=torch.tensor([math.log(0.5)])
    )
    expected = 0.5 * math.log(0.5) + 0.5 * (math.log(0.5) - (math.log(3) - 60))
    assert float(loss_M.detach()) == pytest.approx(expected, rel=1e-6)
    loss_M.sum().backward()
    assert z_MV.grad is not None
    torch.testing.assert_close(z_MV.grad, torch.tensor([[0.5, -1 / 6, -1 / 6, -1 / 6]]))


def test_no_tail_mass_and_certain_teachers_are_ordinary() -> None:
    z_MV = student(2, dtype=torch.float32)
    never = float("-inf")
    loss_M = sparse_kl(
        z_MV, ids_MK=torch.tensor([[3, 5], [1, 2]]), logp_MK=torch.tensor([[0.0, never],
            [math.log(0.5)] * 2]), tail_M=torch.tensor([never] * 2)
    )  # fmt: skip
    logq_MV = torch.log_softmax(z_MV, 1)
    expected_M = torch.stack([-logq_MV[0, 3], -0.5 * (logq_MV[1, 1] + logq_MV[1, 2]) + math.log(0.5)])
    torch.testing.assert_close(loss_M, expected_M)
    torch.testing.assert_close(
        torch.autograd.grad(loss_M.sum(), z_MV, retain_graph=True)[0], torch.autograd.grad(expected_M.sum(),
            z_MV)[0], atol=1e-6, rtol=1e-5
    )  # fmt: skip


def test_teacher_gets_no_gradient_and_cannot_be_swapped_silently() -> None:
    topk, logp_MV = labels(4, V)
    z_MV, args = student(4), arguments(topk)
    for name in ("logp_MK", "tail_M"):
        with pytest.raises(ValueError, match=name):
            sparse_kl(z_MV, **{**args, name: args[name].clone().requires_grad_()})
    with pytest.raises(TypeError):
        sparse_kl(z_MV, args["ids_MK"], args["logp_MK"], args["tail_M"])  # type: ignore[misc]
    everything = torch.arange(V).expand(4, V)
    forward_M = sparse_kl(z_MV, **args)
    swapped_M = sparse_kl(
        logp_MV, ids_MK=everything, logp_MK=torch.log_softmax(z_MV.detach(), 1), tail_M=args["tail_M"]
    )
    assert bool((forward_M - swapped_M).abs().min() > 1e-3)


def test_missing_labels_are_named() -> None:
    topk, _ = labels(4, 3)
    z_MV, args = student(4), arguments(topk)
    for options, name in (
        ({"temperature": 3.0}, "lse_M"),
        ({"tail": "sampled"}, "count_MK"),
        ({"tail": "gold-residual"}, "gold_M"),
    ):
        with pytest.raises(ValueError, match=name):
            sparse_kl(z_MV, **args, **options)
    with pytest.raises(ValueError, match="temperature"):
        sparse_kl(z_MV, **args, tail="sampled", temperature=2.0, count_MK=torch.ones(4, 3))
    with pytest.raises(ValueError, match="rows"):
        sparse_kl(z_MV[:3], **{**args, "ids_MK": args["ids_MK"][:3]})


def test_chunks_and_half_precision_change_nothing() -> None:
    """More rows than a chunk holds, against the same rows one at a time; bfloat16 logits against their float32
    values."""
    v, m = 70_000, 9
    topk, _ = labels(m, 4, v=v)
    args = arguments(topk, torch.float32)
    z_MV = student(m, v, dtype=torch.float32)
    whole_M = sparse_kl(z_MV, **args)
    single_M = torch.cat([sparse_kl(z_MV[i : i + 1], **{n: a[i : i + 1] for n, a in args.items()}) for i in range(m)])
    torch.testing.assert_close(whole_M, single_M)
    half_MV = z_MV.detach().bfloat16().requires_grad_()
    half_M = sparse_kl(half_MV, **args)
    torch.testing.assert_close(half_M, sparse_kl(half_MV.detach().float(), **args))
    half_M.sum().backward()
    assert half_MV.grad is not None
    assert half_MV.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_hard_cross_entropy_is_torchs(smoothing: float) -> None:
    z_MV, unit_M = student(7), torch.randint(V, (7,), generator=torch.Generator().manual_seed(0))
    ours_M = hard_cross_entropy(z_MV, unit_M, label_smoothing=smoothing)
    theirs_M = F.cross_entropy(z_MV, unit_M, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(ours_M, theirs_M)
    weight_M = torch.rand(7, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * weight_M).sum(), z_MV, retain_graph=True)[0] for x in (ours_M, theirs_M))
    torch.testing.assert_close(ours, theirs)


def test_interpolation_is_the_cross_entropy_against_mixed_targets() -> None:
    topk, logp_MV = labels(6, V)
    z_MV, unit_M, w = student(6), torch.from_numpy(topk.gold_N).long(), 0.3
    ours_M = w * sparse_cross_entropy(z_MV, **arguments(topk)) + (1 - w) * hard_cross_entropy(z_MV, unit_M)
    mixed_MV = w * logp_MV.exp() + (1 - w) * F.one_hot(unit_M, V)
    torch.testing.assert_close(ours_M, F.cross_entropy(z_MV, mixed_MV, reduction="none"), atol=1e-6, rtol=1e-6)


def test_no_rows() -> None:
    z_MV = torch.zeros(0, V, requires_grad=True)
    topk = TopK.empty(3)
    sparse_kl(z_MV, **arguments(topk, torch.float32)).sum().backward()
    assert z_MV.grad is not None
    assert hard_cross_entropy(z_MV, torch.zeros(0, dtype=torch.int64)).shape == (0,)
