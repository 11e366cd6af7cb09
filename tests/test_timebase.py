"""The one rounding rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd import timebase


@given(st.integers(0, 10**9), st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]))
def test_samples_survive_the_way_through_seconds(samples: int, rate: int) -> None:
    assert timebase.seconds_to_samples(samples / rate, rate) == samples


def test_half_a_sample_goes_up() -> None:
    assert [timebase.seconds_to_samples(t, 2) for t in (0.0, 0.24, 0.25, 0.5, 0.74, 0.75)] == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(("samples", "frames"), [(0, 1), (159, 1), (160, 1), (319, 1), (320, 2), (16_000, 100)])
def test_frames_are_whole_hops_and_at_least_one(samples: int, frames: int) -> None:
    assert timebase.samples_to_frames(samples) == frames


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=30), st.floats(0.5, 2.0))
def test_retiming_keeps_the_order_of_boundaries(boundaries: list[int], speed: float) -> None:
    moved = timebase.retime(np.array(sorted(boundaries)), speed)
    assert (np.diff(moved) >= 0).all()
    assert np.array_equal(timebase.retime(np.array(boundaries), 1.0), boundaries)
    assert (np.abs(moved - np.array(sorted(boundaries)) / speed) <= 0.5 + 1e-6).all()


@given(st.integers(1, 5000), st.sampled_from([1, 2, 4]))
def test_slots_lie_in_order_and_cover_the_encoder_frames(frames: int, slots: int) -> None:
    middles = timebase.slot_middles(frames, slots)
    width = timebase.SUBSAMPLING // slots
    assert len(middles) == timebase.num_encoder_frames(frames) * slots
    assert (np.diff(middles) == width).all()
    assert np.array_equal(middles // width, np.arange(len(middles)))
    assert timebase.num_encoder_frames(frames) == -(-frames // 4)


def test_slots_must_divide_an_encoder_frame() -> None:
    with pytest.raises(ValueError, match="divide"):
        timebase.slot_middles(10, 3)


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=30))
def test_boundaries_are_the_nearest_frames(samples: list[int]) -> None:
    sample_U1 = np.array(sorted(samples))
    frame_U1 = timebase.samples_to_boundaries(sample_U1)
    assert (np.diff(frame_U1) >= 0).all()
    assert (2 * np.abs(frame_U1 * 160 - sample_U1) <= 160).all()


@given(st.integers(2000, 10**6), st.sampled_from([1, 2, 3, 4]), st.booleans())
def test_frames_of_another_front_end_lie_where_its_windows_do(samples: int, ratio: int, snip_edges: bool) -> None:
    whole = 1 + (samples - 400) // 160 if snip_edges else (samples + 80) // 160  # Kaldi's two rules
    frames = -(-whole // ratio)
    bound_T1 = timebase.foreign_boundaries(frames, samples, shift_samples=160 * ratio, window_samples=400)
    assert (np.diff(bound_T1) == 160 * ratio).all()
    assert bound_T1[0] in (0, 120)
    if ratio == 1:  # subsampled, the two rules may give as many frames
        assert bound_T1[0] == (120 if snip_edges else 0)
        assert abs(bound_T1[-1] - samples) <= 280


@given(st.integers(1, 400), st.lists(st.tuples(st.integers(1, 10), st.integers(1, 5)), min_size=1, max_size=4))
def test_convolutions_turn_the_covering_samples_into_that_many_frames(
    frames: int, layers: list[tuple[int, int]]
) -> None:
    window, shift = 1, 1
    for kernel, stride in layers:
        window, shift = window + (kernel - 1) * shift, shift * stride
    samples = timebase.covering_samples(frames, shift_samples=shift, window_samples=window)

    def convolved(length: int) -> int:
        for kernel, stride in layers:
            length = (length - kernel) // stride + 1
        return length

    assert convolved(samples) == frames
    assert convolved(samples - 1) == frames - 1  # and not a sample more than that
