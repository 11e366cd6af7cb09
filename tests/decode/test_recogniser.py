"""Cutting long sound, and choosing a device."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hkd.decode.recogniser import choose_device, cut_at_quiet
from hkd.errors import UserError


@given(st.integers(1, 16_000 * 9), st.integers(0, 5))
def test_pieces_are_short_enough_and_make_up_the_whole(num_samples: int, seed: int) -> None:
    wave_S = np.random.default_rng(seed).normal(size=num_samples).astype(np.float32)
    pieces = cut_at_quiet(wave_S, max_piece_s=2.0)
    assert all(0 < len(piece) <= 32_000 for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), wave_S)


def test_the_cut_lies_in_the_pause() -> None:
    wave_S = np.random.default_rng(0).normal(size=48_000).astype(np.float32)
    wave_S[24_000:28_000] = 0  # a quarter of a second from 1.5 s on
    first = cut_at_quiet(wave_S, max_piece_s=2.0)[0]
    assert 24_000 <= len(first) <= 28_000


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="device must be auto, cpu or cuda"):
        choose_device("tpu")
