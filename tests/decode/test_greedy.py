"""Greedy CTC against torch's own collapsing and hand-made paths."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hkd.decode.greedy import collapse, greedy_ctc


def oracle(path: list[int]) -> list[int]:
    """torch.unique_consecutive, then the blank out."""
    return [c - 1 for c in torch.unique_consecutive(torch.tensor(path, dtype=torch.long)).tolist() if c]


@given(st.lists(st.integers(0, 4), max_size=12))
def test_collapse_equals_unique_consecutive(path: list[int]) -> None:
    assert collapse(path) == oracle(path)


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_batch_decodes_like_its_utterances_whatever_the_padding_holds(paths: list[list[int]], random) -> None:  # type: ignore[no-untyped-def]
    width = max(map(len, paths))
    padded = [p + [random.randrange(5) for _ in range(width - len(p))] for p in paths]
    logits_BTV = torch.nn.functional.one_hot(torch.tensor(padded), 5).float()
    decoded = greedy_ctc(logits_BTV, torch.tensor([len(p) for p in paths]))
    assert decoded == [oracle(p) for p in paths]


def test_repeated_units_need_a_blank_between() -> None:
    assert collapse([0, 2, 2, 0, 2, 1, 1, 0]) == [1, 1, 0]


def test_another_blank_moves_only_the_classes_above_it() -> None:
    assert collapse([0, 3, 3, 4, 3, 0], blank=3) == [0, 3, 0]


def test_no_frames_no_units() -> None:
    assert greedy_ctc(torch.zeros(2, 3, 4), torch.tensor([0, 3])) == [[], []]


def test_lengths_past_the_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="length_B must lie within 0 and 3"):
        greedy_ctc(torch.zeros(1, 3, 4), torch.tensor([4]))
    with pytest.raises(ValueError, match="blank must be one of 4 classes"):
        greedy_ctc(torch.zeros(1, 3, 4), torch.tensor([3]), blank=4)
