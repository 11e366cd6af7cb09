"""Heads hang on their taps, and fall off at export without a trace."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hkd.errors import UserError
from hkd.losses import ctc_loss
from hkd.student.config import HeadConfig, StudentConfig
from hkd.student.model import Head, StudentModel, describe, export_student


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 37, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([37, 18])


def test_heads_give_one_distribution_a_slot(make: Callable[..., StudentModel], config: StudentConfig) -> None:
    output = make(config)(*batch())
    assert output.logits_BTV.shape == (2, 10, 12)
    assert {name: tuple(x.shape) for name, x in output.heads.items()} == {
        "senone-hard": (2, 40, 30), "senone-aux": (2, 40, 30), "monophone-aux": (2, 10, 7),
    }  # fmt: skip
    slot_M = torch.tensor([3, 41])
    chosen = make(config)(*batch(), slots={"senone-aux": slot_M}).heads
    torch.testing.assert_close(chosen["senone-aux"], output.heads["senone-aux"].flatten(0, 1)[slot_M])
    torch.testing.assert_close(chosen["senone-hard"], output.heads["senone-hard"])


def test_a_head_teaches_its_layer_and_those_below_alone(
    make: Callable[..., StudentModel], config: StudentConfig
) -> None:
    student = make(config)
    student(*batch()).heads["senone-aux"].sin().sum().backward()
    for number, layer in enumerate(student.encoder.layers, start=1):
        taught = any(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())
        assert taught == (number <= 1)
    assert all(p.grad is None for p in student.main.parameters())


def test_export_is_the_none_student_and_bit_for_bit_the_trainers(
    make: Callable[..., StudentModel], config: StudentConfig
) -> None:
    student, none = make(config), make(replace(config, heads=()))
    exported = export_student(student)
    with torch.no_grad():
        assert torch.equal(exported(*batch()).logits_BTV, student(*batch()).logits_BTV)
    assert exported.num_parameters() == none.num_parameters() < student.num_parameters()
    assert exported.state_dict().keys() == none.state_dict().keys()
    assert exported(*batch()).heads == {}
    next(exported.parameters()).data.zero_()
    assert bool(next(student.parameters()).any())  # a copy


def test_one_seed_gives_one_beginning_whatever_the_heads(
    make: Callable[..., StudentModel], config: StudentConfig
) -> None:
    with_heads, without = make(config).state_dict(), make(replace(config, heads=())).state_dict()
    assert all(torch.equal(with_heads[name], value) for name, value in without.items())


def test_heads_do_not_disturb_dropout(make: Callable[..., StudentModel], config: StudentConfig) -> None:
    outputs = []
    for heads in (config.heads, ()):
        student = make(replace(config, heads=heads)).train()
        torch.manual_seed(9)
        outputs.append(student(*batch()).logits_BTV)
    assert torch.equal(*outputs)


def test_features_are_normalised_inside(make: Callable[..., StudentModel], config: StudentConfig) -> None:
    student = make(config)
    x_BTF, length_B = batch()
    mean_F, std_F = student.mean_F.clone(), student.std_F.clone()
    expected = student(x_BTF, length_B).logits_BTV
    student.set_cmvn(torch.zeros(16), torch.ones(16))
    torch.testing.assert_close(student((x_BTF - mean_F) / std_F, length_B).logits_BTV, expected)
    student.set_cmvn(torch.zeros(16), torch.zeros(16))  # a bin that never moves
    assert bool(torch.isfinite(student(x_BTF, length_B).logits_BTV).all())
    with pytest.raises(UserError, match="mean_F"):
        student.set_cmvn(torch.zeros(3), torch.ones(3))
    with pytest.raises(UserError, match="std_F"):
        student.set_cmvn(torch.zeros(16), torch.full((16,), float("nan")))


def test_senone_main_output_has_slots(make: Callable[..., StudentModel], config: StudentConfig) -> None:
    output = make(replace(config, main="senone", num_main_units=30))(*batch())
    assert output.logits_BTV.shape == (2, 40, 30)
    assert output.length_B.tolist() == [40, 20]


def test_learns(make: Callable[..., StudentModel], config: StudentConfig) -> None:
    """A few steps of CTC on one batch lower the loss a lot: gradients reach everything."""
    student = make(config).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    target_L, target_length_B = torch.tensor([1, 2, 3, 5, 5]), torch.tensor([3, 2])
    losses = []
    for _ in range(25):
        output = student(*batch())
        loss = ctc_loss(output.logits_BTV, output.length_B, target_L, target_length_B).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_bfloat16_autocast_gives_nearly_the_same(make: Callable[..., StudentModel], config: StudentConfig) -> None:
    student = make(config)
    full = student(*batch()).logits_BTV
    with torch.autocast("cpu", torch.bfloat16):
        half = student(*batch()).logits_BTV
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half[0].float(), full[0], atol=0.1, rtol=0.1)
    half.float().sin().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in student.encoder.parameters() if p.grad is not None)


# ----------------------------------------------------------------------------------------------------
# Slots of a frame and chosen slots.


def test_slots_of_a_frame_stand_in_order_and_chosen_ones_are_the_same() -> None:
    torch.manual_seed(0)
    head = Head(16, 9, slots=4, d_head=8)
    x_BTD = torch.randn(3, 5, 16)
    logits_BSV = head(x_BTD)
    assert logits_BSV.shape == (3, 20, 9)
    per_frame = head.place(head.norm(x_BTD[1, 2])).view(4, 8)
    torch.testing.assert_close(logits_BSV[1, 8:12], head.out(per_frame))
    slot_M = torch.tensor([0, 28, 59, 28])
    torch.testing.assert_close(head(x_BTD, slot_M), logits_BSV.flatten(0, 1)[slot_M])


def test_slots_share_one_output_matrix() -> None:
    shared = sum(p.numel() for p in Head(16, 1000, slots=4).parameters())
    single = sum(p.numel() for p in Head(16, 1000).parameters())
    assert shared - single == 16 * 64 + 64


# ----------------------------------------------------------------------------------------------------
# The drawing says what is there.


def test_drawing_names_layers_taps_heads_and_what_export_drops(config: StudentConfig) -> None:
    lines = describe(config).splitlines()
    place = {line.split(":")[0].strip(" ├└─"): n for n, line in enumerate(lines)}
    layer = {n: next(i for i, line in enumerate(lines) if line.strip().startswith(f"layer {n}")) for n in (1, 2, 3)}
    assert (
        layer[1]
        < place["senone-hard"]
        < place["senone-aux"]
        < layer[2]
        < place["monophone-aux"]
        < layer[3]
        < place["main"]
    )
    assert "30 units × 4 slots of 10 ms" in lines[place["senone-aux"]]
    assert "dropped at export" in lines[place["senone-aux"]]
    assert "dropped at export" not in lines[place["main"]]
    none = describe(replace(config, heads=()))
    exported = none.splitlines()[-1].split()[1].rstrip(":")
    assert f"{exported} exported, 0 in heads" in none
    assert f"{exported} exported" in lines[-1]


# ----------------------------------------------------------------------------------------------------
# Heads that condition: what was heard is an input of the layers above.


def conditioned(config: StudentConfig, *names: str) -> StudentConfig:
    return replace(config, heads=tuple(replace(head, condition=head.name in names) for head in config.heads))


@torch.no_grad()
def test_conditioning_is_the_formula_by_hand(make: Callable[..., StudentModel], config: StudentConfig) -> None:
    """Layer by layer: x + W mean(softmax(head(x))) of both heads at layer 1 and the one at layer 2; `alone` loses layer
    1's x."""
    student = make(conditioned(config, "senone-hard", "senone-aux", "monophone-aux"))
    x_BTF, length_B = batch()
    alone_B = torch.tensor([False, True])
    found = student(x_BTF, length_B, alone_B=alone_B, slots={"senone-aux": torch.tensor([41])})
    seen: list[torch.Tensor] = []
    encoder = student.encoder
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _module, _inputs, y_BTD: seen.append(y_BTD))
    student(x_BTF, length_B, alone_B=alone_B)
    p_senone = [
        student.heads[name](seen[0]).softmax(-1).view(2, 10, 4, 30).mean(2) @ student.condition[name].weight.T
        for name in ("senone-hard", "senone-aux")
    ]
    own_BTD = torch.stack([seen[0][0], torch.zeros_like(seen[0][1])])
    no_drop, frames_B = (lambda y: y), torch.tensor([10, 5])
    second, _ = encoder.above(own_BTD + sum(p_senone), frames_B, (), no_drop, {2: lambda y: y}, tap=1)
    torch.testing.assert_close(
        seen[1], encoder.above(own_BTD + sum(p_senone), frames_B, (2,), no_drop, {}, tap=1)[1][2]
    )
    assert not torch.allclose(second, seen[2])
    third = seen[1] + student.heads["monophone-aux"](seen[1]).softmax(-1) @ student.condition["monophone-aux"].weight.T
    top_BTD, _ = encoder.above(third, frames_B, (), no_drop, {}, tap=2)
    for b, length in enumerate(frames_B):
        torch.testing.assert_close(found.logits_BTV[b, :length], student.main(top_BTD)[b, :length])
    torch.testing.assert_close(found.heads["senone-aux"][0], student.heads["senone-aux"](seen[0])[1, 1])


@torch.no_grad()
def test_posteriors_are_read_as_the_layers_above_read_them_alone(
    make: Callable[..., StudentModel], config: StudentConfig
) -> None:
    student = make(conditioned(config, "senone-hard"))
    x_BTF, length_B = batch()
    heard = student(x_BTF, length_B, alone_B=torch.tensor([True, True]))
    p_BTV = heard.heads["senone-hard"].softmax(-1).view(2, 10, 4, 30).mean(2)
    read = student.read({"senone-hard": p_BTV}, torch.tensor([10, 5]))
    assert set(read.heads) == {"monophone-aux"}
    for b, length in enumerate(read.length_B):
        torch.testing.assert_close(read.logits_BTV[b, :length], heard.logits_BTV[b, :length])
        torch.testing.assert_close(read.heads["monophone-aux"][b, :length], heard.heads["monophone-aux"][b, :length])


def test_alone_the_loss_reaches_the_lower_layers_through_the_posteriors(
    make: Callable[..., StudentModel], config: StudentConfig
) -> None:
    student = make(conditioned(config, "senone-hard"))
    student(*batch(), alone_B=torch.tensor([True, True])).logits_BTV.sin().sum().backward()
    assert bool(student.heads["senone-hard"].out.weight.grad.any())
    assert student.heads["senone-aux"].out.weight.grad is None


def test_export_keeps_the_head_that_conditions_and_the_drawing_says_so(
    make: Callable[..., StudentModel], config: StudentConfig
) -> None:
    config = conditioned(config, "senone-hard")
    student = make(config)
    exported = export_student(student)
    with torch.no_grad():
        assert torch.equal(exported(*batch()).logits_BTV, student(*batch()).logits_BTV)
    assert list(exported.heads) == ["senone-hard"]
    plain = make(replace(config, heads=())).num_parameters()
    kept = sum(p.numel() for p in (*student.heads["senone-hard"].parameters(), *student.condition.parameters()))
    assert exported.num_parameters() == student.num_exported() == plain + kept < student.num_parameters()
    lines = describe(config).splitlines()
    [head] = [line for line in lines if "senone-hard" in line]
    assert "conditions the layers above" in head
    assert "dropped" not in head
    assert f"{exported.num_parameters():,} exported" in lines[-1]
    assert f"{student.num_parameters() - exported.num_parameters():,} in heads" in lines[-1]


def test_a_head_at_the_top_conditions_nothing(config: StudentConfig) -> None:
    with pytest.raises(UserError, match="'a' must condition layers above its own, but reads the top one, 3"):
        replace(config, heads=(HeadConfig(name="a", level="senone", num_units=3, tap=3, condition=True),))
