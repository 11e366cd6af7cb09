"""A block's bytes → its numbers, and batches from blocks, in compiled code. See `hkd.labels.encoding_kernels`, of which it is the inverse.

What comes from a file is looked nothing up with before it was checked: a rank is held against K first, a run against its block.

Shape letters: N positions of a block, M of a batch, K kept ids, P positions of a tile (of blocks in `gather`), B utterances or runs,
W narrow columns.
"""

from typing import Any

import numba
import numpy as np
from numba import types

from hkd.compiled import array_at, array_type, kernel
from hkd.labels.encoding_kernels import F16, GRID, GRID_INF, SMALLEST_NORMAL, TILE

TWO_TO_MINUS_14 = np.float32(2.0**-14)

u1, u2, u4, i4, i8, f4, mode_ = types.uint8, types.uint16, types.uint32, types.int32, types.int64, types.float32, types.int64
U1_2, U2_2, U4_2, I8_2, I8_1 = *(array_type(dtype, 2) for dtype in (u1, u2, u4, i8)), array_type(i8, 1)
OUT_U2_2, OUT_U4_2, OUT_I4_2 = (array_type(dtype, 2, readonly=False) for dtype in (u2, u4, i4))


@numba.njit
def _from_half(half: Any) -> Any:
    """A half's bits → those of a float32."""
    bits = np.uint32(half & 0x7FFF) << 13
    tiny = np.float32(np.uint32(bits + SMALLEST_NORMAL).view(np.float32) - TWO_TO_MINUS_14).view(np.uint32)
    normal, endless = np.uint32(bits + (112 << 23)), np.uint32(bits + (224 << 23))
    found = tiny if bits < 0x00800000 else (endless if bits >= 0x0F800000 else normal)
    return np.uint32(found | (np.uint32(half & 0x8000) << 16))


@numba.njit
def _logp_bits(code: Any, mode: Any, step: Any) -> Any:
    """16 bits of a log-probability → those of a float32; never −0."""
    if mode == GRID:
        logp = np.float32(np.float32(code) * -step) + np.float32(0)
        return np.float32(-np.inf if code == GRID_INF else logp).view(np.uint32)
    bits = np.uint32(_from_half(code) ^ 0x80000000)
    return np.uint32(0) if bits == 0x80000000 else bits


@kernel(types.uint32(U1_2, U1_2, i8, OUT_U2_2), types.uint32(U1_2, U1_2, i8, OUT_U4_2))
def join_ids(low_NK: Any, high_NK: Any, shift: int, out_NK: Any) -> Any:
    """Two bytes of unit ids: the lowest ones (shift 0), or `shift` bits up over what stands there; the largest."""
    low_U, high_U, out_U = low_NK.reshape(-1), high_NK.reshape(-1), out_NK.reshape(-1)
    largest = out_U.dtype.type(0)
    if shift == 0:
        for i in range(len(out_U)):
            out_U[i] = low_U[i] | np.uint16(high_U[i]) << np.uint16(8)
    else:
        for i in range(len(out_U)):
            out_U[i] |= np.uint32(low_U[i] | np.uint16(high_U[i]) << np.uint16(8)) << shift
    for i in range(len(out_U)):
        largest = max(largest, out_U[i])
    return largest


@kernel(types.void(U1_2, U1_2, OUT_U2_2))
def join_codes(low_KN: Any, high_KN: Any, out_NK: Any) -> None:
    """The inverse of `split_codes`, as far as codes. At least TILE positions."""
    k, n = low_KN.shape
    whole = k // 4 * 4
    four_PQ = np.zeros((TILE, whole // 4), np.uint64)  # four ranks at a time
    four_P, code_P, code_PK = np.zeros(TILE, np.uint64), np.zeros(TILE, np.uint16), four_PQ.view(np.uint16)
    for next_ in range(0, n, TILE):
        start = min(next_, n - TILE)
        stop = start + TILE
        code_P[:] = 0
        for r in range(0, whole, 4):
            low0, low1, low2, low3 = (
                low_KN[r, start:stop],
                low_KN[r + 1, start:stop],
                low_KN[r + 2, start:stop],
                low_KN[r + 3, start:stop],
            )
            high0, high1 = high_KN[r, start:stop], high_KN[r + 1, start:stop]
            high2, high3 = high_KN[r + 2, start:stop], high_KN[r + 3, start:stop]
            for p in range(TILE):
                a = np.uint16(code_P[p] + (low0[p] | (high0[p] << 8)))
                b = np.uint16(a + (low1[p] | (high1[p] << 8)))
                c = np.uint16(b + (low2[p] | (high2[p] << 8)))
                d = np.uint16(c + (low3[p] | (high3[p] << 8)))
                ab, cd = np.uint64(a) | np.uint64(b) << np.uint64(16), np.uint64(c) | np.uint64(d) << np.uint64(16)
                four_P[p] = ab | cd << np.uint64(32)
                code_P[p] = d
            for p in range(TILE):
                four_PQ[p, r // 4] = four_P[p]
        for p in range(TILE):
            out_K, code_K = out_NK[start + p], code_PK[p]
            for r in range(whole):
                out_K[r] = code_K[r]
        for r in range(whole, k):
            for p in range(TILE):
                code_P[p] += low_KN[r, start + p] | (high_KN[r, start + p] << 8)
                out_NK[start + p, r] = code_P[p]


@numba.njit
def _numbers(plane_4N: Any) -> Any:
    """Four bytes each, low first."""
    byte0_N, byte1_N, byte2_N, byte3_N = plane_4N[0], plane_4N[1], plane_4N[2], plane_4N[3]
    number_N = np.empty(len(byte0_N), np.uint32)
    for i in range(len(number_N)):
        low = np.uint32(byte0_N[i]) | np.uint32(byte1_N[i]) << np.uint32(8)
        number_N[i] = low | np.uint32(byte2_N[i]) << np.uint32(16) | np.uint32(byte3_N[i]) << np.uint32(24)
    return number_N


@numba.njit
def _widen_halves(plane_2N: Any, out_N: Any) -> None:
    low_N, high_N = plane_2N[0], plane_2N[1]
    for i in range(len(out_N)):
        out_N[i] = _from_half(np.uint16(low_N[i]) | np.uint16(high_N[i]) << np.uint16(8))


_NARROW = (U2_2, U1_2, U1_2, U1_2, U1_2, U1_2, I8_1, mode_, f4, i8, OUT_I4_2)


@kernel(types.boolean(U2_2, *_NARROW), types.boolean(U4_2, *_NARROW))
def join_narrow(
    unit_NK: Any,
    code_NK: Any,
    tail_2N: Any,
    rank_4N: Any,
    gold_4N: Any,
    gold_logp_2N: Any,
    word_4N: Any,
    offset_B1: Any,
    mode: int,
    step: float,
    num_units: int,
    narrow_WN: Any,
) -> bool:
    """Gold units, their log-probabilities, tails and words → the first four columns.

    False where a rank lies beyond K, a unit beyond the inventory, or an utterance beyond the block.
    """
    n, k = unit_NK.shape
    gold_N, logp_N, tail_N, word_N = narrow_WN[0], narrow_WN[1], narrow_WN[2], narrow_WN[3]
    rank_N, number_N, most, last = _numbers(rank_4N), _numbers(gold_4N), np.uint32(k), np.uint32(num_units)
    wrong = False
    for i in range(n):
        wrong |= (rank_N[i] > most) | ((rank_N[i] == 0) & (number_N[i] > last))
        gold_N[i] = number_N[i] - np.uint32(1)
    if wrong:
        return False
    _widen_halves(tail_2N, tail_N)
    _widen_halves(gold_logp_2N, logp_N)
    for i in range(n):
        if rank_N[i] > 0:
            r = np.int64(rank_N[i]) - 1
            gold_N[i], logp_N[i] = unit_NK[i, r], _logp_bits(code_NK[i, r], mode, step)
    number_N = _numbers(word_4N)
    for b in range(len(offset_B1) - 1):
        if not 0 <= offset_B1[b] <= offset_B1[b + 1] <= n:
            return False
        word = np.int32(-1)
        for i in range(offset_B1[b], offset_B1[b + 1]):
            word = np.int32(word + np.int32(number_N[i]))
            word_N[i] = word
    return True


@numba.njit
def _copy(from_U: Any, to_U: Any) -> None:
    for i in range(len(to_U)):
        to_U[i] = from_U[i]


@kernel(types.boolean(I8_2, I8_2, I8_1, i8, mode_, f4, OUT_I4_2, OUT_U4_2, OUT_I4_2))
def gather(
    block_P4: Any,
    run_B3: Any,
    offset_B1: Any,
    id_bytes: int,
    mode: int,
    step: float,
    ids_MK: Any,
    logp_MK: Any,
    narrow_WM: Any,
) -> bool:
    """Runs of blocks' positions (block, first, end), which begin at `offset_B1` → M positions, widened. False where one lies outside.

    block_P4: where a block's units, codes and narrow columns lie in memory, and how many positions it has. logp_MK: the bits of float32.
    """
    m, k = ids_MK.shape
    for b in range(len(run_B3)):
        p, start, stop, place = run_B3[b, 0], run_B3[b, 1], run_B3[b, 2], offset_B1[b]
        if start == stop:
            continue
        if not (0 <= p < len(block_P4) and 0 <= start < stop <= block_P4[p, 3] and 0 <= place <= m - (stop - start)):
            return False
        count, n = (stop - start) * k, block_P4[p, 3]
        ids_U, logp_U = ids_MK[place : place + stop - start].reshape(-1), logp_MK[place : place + stop - start].reshape(-1)
        if id_bytes == 2:
            _copy(array_at(block_P4[p, 0] + 2 * start * k, count, np.uint16), ids_U)
        else:
            _copy(array_at(block_P4[p, 0] + 4 * start * k, count, np.uint32), ids_U)
        code_U = array_at(block_P4[p, 1] + 2 * start * k, count, np.uint16)
        if mode == GRID:
            for i in range(len(logp_U)):
                logp_U[i] = _logp_bits(code_U[i], GRID, step)
        else:
            for i in range(len(logp_U)):
                logp_U[i] = _logp_bits(code_U[i], F16, step)
        for w in range(len(narrow_WM)):
            _copy(
                array_at(block_P4[p, 2] + 4 * (w * n + start), stop - start, np.int32), narrow_WM[w, place : place + stop - start]
            )
    return True
