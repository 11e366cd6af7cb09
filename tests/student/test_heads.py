"""Slots of a frame and chosen slots."""

import torch

from hkd.student.heads import Head


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
