"""Placement against a search frame by frame."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.align.alignment import Positions
from hkd.stream.place import place
from hkd.timebase import num_encoder_frames, retime


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=20),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.9, 1.0, 1.1]),
    st.integers(0, 5),
)
def test_a_slot_carries_the_position_over_its_middle_frame(
    runs: list[tuple[int, int]], slots: int, speed: float, after: int
) -> None:
    start_U, stop_U, now = [], [], 0
    for gap, length in runs:
        start_U.append(now + gap)
        now += gap + length
        stop_U.append(now)
    found = Positions(
        unit_U=np.zeros(len(runs), np.int32), start_U=np.array(start_U, np.int32), stop_U=np.array(stop_U, np.int32)
    )
    num_frames = max(1, int(retime(np.array([now + after]), speed)[0]))
    slot_M, position_M = place(found, num_frames=num_frames, slots=slots, speed=speed)
    expected = {}
    width = 4 // slots
    for s in range(num_encoder_frames(num_frames) * slots):
        middle = min(s * width + width // 2, num_frames - 1)
        for u, (start, stop) in enumerate(zip(start_U, stop_U, strict=True)):
            bounds = retime(np.array([start, stop]), speed)
            if s * width < num_frames and bounds[0] <= middle < bounds[1]:
                expected[s] = u
    assert dict(zip(slot_M.tolist(), position_M.tolist(), strict=True)) == expected


def test_at_ten_milliseconds_every_frame_is_its_own_slot() -> None:
    found = Positions(unit_U=np.array([5, 6]), start_U=np.array([1, 3]), stop_U=np.array([3, 4]))
    slot_M, position_M = place(found, num_frames=6, slots=4)
    assert slot_M.tolist() == [1, 2, 3]
    assert position_M.tolist() == [0, 0, 1]
