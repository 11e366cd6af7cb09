"""Labels of positions → labels of slots. Stored per position, placed at load, so that speed perturbation re-times them.

A slot takes the label of the position that covers its middle frame (`timebase.slot_middles`; where the signal ends before it, of the
last frame). Shape letters: U positions, S slots, M labelled slots.
"""

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Positions
from hkd.timebase import SUBSAMPLING, retime, slot_middles


def place(
    positions: Positions, *, num_frames: int, slots: int, speed: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(slot_M, position_M): the slots of an utterance of `num_frames` frames (at that speed) that a position covers, and by which one.

    Positions are in order and do not overlap; empty ones and those between slot middles cover none.
    """
    width = SUBSAMPLING // slots
    middle_S = np.minimum(slot_middles(num_frames, slots), num_frames - 1)[: -(-num_frames // width)]
    return covering(positions, middle_S, speed=speed)


def covering(
    positions: Positions, middle_S: NDArray[np.int64], *, speed: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(slot_M, position_M): which of the slots with these middle frames (10 ms, at that speed) a position covers, and by which one."""
    start_U, stop_U = positions.start_U.astype(np.int64), positions.stop_U.astype(np.int64)
    if speed != 1:
        start_U, stop_U = retime(start_U, speed), retime(stop_U, speed)
    filled = np.flatnonzero(stop_U > start_U)
    if not len(filled):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    nearest_S = np.searchsorted(start_U[filled], middle_S, side="right") - 1
    position_S = filled[np.maximum(nearest_S, 0)]
    covered_S = (nearest_S >= 0) & (middle_S < stop_U[position_S])
    return np.flatnonzero(covered_S), position_S[covered_S]
