"""A block's numbers → its bytes and back, in compiled code. Nearly all time is spent here and in zstd.

- Kernels never raise. Their result says what cannot be right, and the callers put it in words.
- Their order of operations is fixed, so the bits are the same everywhere.
- A number from a file is checked before it is used as an index: a rank against K, a run against its block.
- Loops run over TILE positions, a constant, and over slices. So the compiler knows their length and that no index is
  negative, and uses vector instructions. The last tile begins earlier and does some positions twice.

Shape letters: N positions of a block, M of a batch, K kept ids, P positions of a tile (parts in `note_place` and
`row_places`, blocks in `gather`), A bytes, B utterances or runs, W narrow columns.
"""

from typing import Any

import numba
import numpy as np
from numba import types

from hkd.compiled import array_at, array_type, kernel

GRID_INF, F16_INF, F16_LARGEST = 0xFFFF, 0x7C00, 0x7BFF
TILE = 128
ABOVE_0 = np.float32(1e-3)  # float32 log-softmax may come out a little above 0
SMALLEST_NORMAL = 113 << 23  # the bits of 2^-14, the smallest half that is no subnormal
TWO_TO_23, TWO_TO_MINUS_14 = np.float32(2.0**23), np.float32(2.0**-14)
GRID, F16, TABLE = 0, 1, 2  # what the 16 bits of a log-probability are: steps, the half of −logp, a place in a table

u1, u2, u4, i4, i8, f4 = types.uint8, types.uint16, types.uint32, types.int32, types.int64, types.float32
U1_1, I4_1, F4_1, I8_1 = (array_type(dtype, 1) for dtype in (u1, i4, f4, i8))
U1_2, U2_2, U4_2, I4_2, F4_2, I8_2 = (array_type(dtype, 2) for dtype in (u1, u2, u4, i4, f4, i8))
OUT_U1_2, OUT_U1_3 = (array_type(u1, ndim, readonly=False) for ndim in (2, 3))
OUT_U2_2, OUT_U4_2, OUT_I4_2, OUT_I8_2 = (array_type(dtype, 2, readonly=False) for dtype in (u2, u4, i4, i8))


@numba.njit
def _to_half(logp: Any) -> Any:
    """float32 → the bits of its absolute value as a half, rounded half to even; finite values stay so (at most 65504).
    F. Giesen, "float->half variants": adding 0.5 makes the processor round what becomes a subnormal half."""
    bits = np.float32(logp).view(np.uint32) & 0x7FFFFFFF
    small = np.float32(np.uint32(bits).view(np.float32) + np.float32(0.5)).view(np.uint32) - 0x3F000000
    large = (bits - 0x37FFF001 + ((bits >> 13) & 1)) >> 13
    half = min(small if bits < SMALLEST_NORMAL else large, F16_LARGEST)
    return F16_INF if bits >= 0x7F800000 else half


@numba.njit
def _signed_half(logp: Any) -> Any:
    half = _to_half(logp)
    return 0 if half == 0 else half | 0x8000


@kernel(types.void(I4_2, F4_2, OUT_I8_2, i8))
def note_place(ids_NK: Any, logp_NK: Any, place_P3: Any, p: int) -> None:
    """Write down the addresses of a part's ids and log-probabilities, and how many positions it has."""
    place_P3[p, 0], place_P3[p, 1], place_P3[p, 2] = ids_NK.ctypes.data, logp_NK.ctypes.data, len(ids_NK)


@kernel(types.boolean(I8_2, i8, i8, OUT_I8_2))
def row_places(place_P3: Any, n: int, k: int, row_2N: Any) -> bool:
    """Addresses of the ids and log-probabilities of n positions, then the first one's again. False where not n."""
    i = 0
    for p in range(len(place_P3)):
        if not 0 <= place_P3[p, 2] <= n - i:
            return False
        for row in range(place_P3[p, 2]):
            row_2N[0, i], row_2N[1, i] = place_P3[p, 0] + 4 * k * row, place_P3[p, 1] + 4 * k * row
            i += 1
    for left in range(i, row_2N.shape[1]):
        row_2N[0, left], row_2N[1, left] = row_2N[0, 0], row_2N[1, 0]
    return bool(i == n)


@kernel(types.boolean(I8_2, i8, OUT_U1_3))
def split_ids(row_2N: Any, num_units: int, out_ANK: Any) -> bool:
    """Unit ids → their lowest A bytes. False where one is not below `num_units`."""
    _, n, k = out_ANK.shape
    largest = np.uint32(0)
    for i in range(n):
        ids_K = array_at(row_2N[0, i], k, np.uint32)
        for r in range(k):
            largest = max(largest, ids_K[r])
        for a in range(len(out_ANK)):
            out_K = out_ANK[a, i]
            for r in range(k):
                out_K[r] = ids_K[r] >> np.uint32(8 * a)
    return bool(largest < num_units)


@kernel(types.boolean(I8_2, i8, f4, f4, OUT_U1_3))
def split_codes(row_2N: Any, mode: int, lowest: float, per_nat: float, out_AKN: Any) -> bool:
    """Log-probabilities → the two bytes of their codes' differences in rank. False where one is none: above 0, or NaN.
    At least TILE positions. GRID: codes are log-probabilities, `lowest` at least, times `per_nat`."""
    _, k, n = out_AKN.shape
    wrong, code_K, pair_P = False, np.zeros(k, np.uint16), np.zeros(TILE, np.uint32)
    step_PQ = np.zeros((TILE, (k + 1) // 2), np.uint32)  # a pair of ranks at a time
    step_PK = step_PQ.view(np.uint16)
    for next_ in range(0, n, TILE):
        start = min(next_, n - TILE)
        for p in range(TILE):
            logp_K, step_K = array_at(row_2N[1, start + p], k, np.float32), step_PK[p]
            for r in range(k):
                wrong |= not logp_K[r] <= ABOVE_0
            if mode == GRID:
                for r in range(k):
                    code = np.float32(max(min(logp_K[r], np.float32(0)), lowest) * per_nat)
                    rounded = np.float32(code + TWO_TO_23).view(np.uint32)  # half to even; the code in its lowest bits
                    code_K[r] = GRID_INF if logp_K[r] == -np.inf else rounded
            else:
                for r in range(k):
                    code_K[r] = _to_half(min(logp_K[r], np.float32(0)))
            step_K[0] = code_K[0]
            for r in range(1, k):
                step_K[r] = code_K[r] - code_K[r - 1]
        for r in range(k):
            if r % 2 == 0:
                for p in range(TILE):
                    pair_P[p] = step_PQ[p, r // 2]
            else:
                for p in range(TILE):
                    pair_P[p] >>= np.uint32(16)
            low_P, high_P = out_AKN[0, r, start : start + TILE], out_AKN[1, r, start : start + TILE]
            for p in range(TILE):
                low_P[p] = pair_P[p]
            for p in range(TILE):
                high_P[p] = pair_P[p] >> np.uint32(8)
    return not wrong


@numba.njit
def _put(value_N: Any, out_AN: Any) -> None:
    for a in range(len(out_AN)):
        out_N = out_AN[a]
        for i in range(len(out_N)):
            out_N[i] = value_N[i] >> value_N.dtype.type(8 * a)


@kernel(types.boolean(I8_2, i8, I4_1, F4_1, F4_1, I4_1, I8_1, OUT_U1_2))
def split_narrow(
    row_2N: Any, k: int, gold_N: Any, gold_logp_N: Any, tail_N: Any, word_N: Any, offset_B1: Any, out_RN: Any
) -> bool:
    """Gold units, their log-probabilities, tails and words → their 16 bytes, a row each, in the order of NARROW. False
    for a log-probability above 0 or NaN, or utterances that are not those of N positions."""
    n = len(gold_N)
    if offset_B1[0] != 0 or offset_B1[-1] != n:
        return False
    tail_half_N, gold_half_N, wrong = np.empty(n, np.uint16), np.empty(n, np.uint16), False
    rank_N, unit_N, step_N = np.zeros(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.uint32)
    for i in range(n):
        wrong |= not (tail_N[i] <= ABOVE_0 and gold_logp_N[i] <= ABOVE_0)
        tail_half_N[i] = _signed_half(min(tail_N[i], np.float32(0)))
    for i in range(n):
        gold_logp, ids_K = min(gold_logp_N[i], np.float32(0)), array_at(row_2N[0, i], k, np.int32)
        for r in range(k):
            if ids_K[r] == gold_N[i]:
                logp = array_at(row_2N[1, i], k, np.float32)[r]
                rank_N[i] = r + 1 if min(logp, np.float32(0)) == gold_logp else 0
                break
    for i in range(n):
        unit_N[i] = 0 if rank_N[i] > 0 else gold_N[i] + 1
        gold_half_N[i] = 0 if rank_N[i] > 0 else _signed_half(min(gold_logp_N[i], np.float32(0)))
    for b in range(len(offset_B1) - 1):
        if not 0 <= offset_B1[b] <= offset_B1[b + 1] <= n:
            return False
        before = np.int32(-1)
        for i in range(offset_B1[b], offset_B1[b + 1]):
            step_N[i] = word_N[i] - before
            before = word_N[i]
    _put(tail_half_N, out_RN[0:2])
    _put(rank_N, out_RN[2:6])
    _put(unit_N, out_RN[6:10])
    _put(gold_half_N, out_RN[10:12])
    _put(step_N, out_RN[12:16])
    return not wrong


@kernel(types.float64(U1_1, i8))
def entropy(byte_U: Any, stride: int) -> float:
    """Entropy of every `stride`-th byte, in bits a byte."""
    count_4V, total = np.zeros((4, 256), np.int64), 0.0  # four counters in turn: equal bytes do not wait for each other
    for i in range(0, len(byte_U), stride):
        count_4V[i & 3, byte_U[i]] += 1
    count_V, num = count_4V.sum(0), count_4V.sum()
    for v in range(256):
        if count_V[v] > 0:
            total -= count_V[v] / num * np.log2(count_V[v] / num)
    return total


# Bytes → numbers ------------------------------------------------------------------------------------------------------


@numba.njit
def _from_half(half: Any) -> Any:
    bits = np.uint32(half & 0x7FFF) << 13
    tiny = np.float32(np.uint32(bits + SMALLEST_NORMAL).view(np.float32) - TWO_TO_MINUS_14).view(np.uint32)
    normal, endless = np.uint32(bits + (112 << 23)), np.uint32(bits + (224 << 23))
    found = tiny if bits < 0x00800000 else (endless if bits >= 0x0F800000 else normal)
    return np.uint32(found | (np.uint32(half & 0x8000) << 16))


@numba.njit
def _logp_bits(code: Any, mode: Any, step: Any, value_C: Any) -> Any:
    """16 bits of a log-probability → those of a float32; never −0."""
    if mode == GRID:
        logp = np.float32(np.float32(code) * -step) + np.float32(0)
        return np.float32(-np.inf if code == GRID_INF else logp).view(np.uint32)
    if mode == TABLE:
        return np.float32(value_C[code]).view(np.uint32)
    bits = np.uint32(_from_half(code) ^ 0x80000000)
    return np.uint32(0) if bits == 0x80000000 else bits


@kernel(types.uint32(U1_2, U1_2, i8, OUT_U2_2), types.uint32(U1_2, U1_2, i8, OUT_U4_2))
def join_ids(low_NK: Any, high_NK: Any, shift: int, out_NK: Any) -> Any:
    """Put two bytes of unit ids in place: the lowest (shift 0), else `shift` bits up. Returns the largest id so far."""
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
    """Bytes of differences → codes. At least TILE positions."""
    k, n = low_KN.shape
    whole = k // 4 * 4
    four_PQ = np.zeros((TILE, whole // 4), np.uint64)  # four ranks at a time
    four_P, code_P, code_PK = np.zeros(TILE, np.uint64), np.zeros(TILE, np.uint16), four_PQ.view(np.uint16)
    for next_ in range(0, n, TILE):
        start = min(next_, n - TILE)
        stop = start + TILE
        code_P[:] = 0
        for r in range(0, whole, 4):
            low0, low1 = low_KN[r, start:stop], low_KN[r + 1, start:stop]
            low2, low3 = low_KN[r + 2, start:stop], low_KN[r + 3, start:stop]
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


_NARROW = (U2_2, U1_2, I8_1, i8, f4, F4_1, i8, OUT_I4_2)


@kernel(types.boolean(U2_2, *_NARROW), types.boolean(U4_2, *_NARROW))
def join_narrow(
    unit_NK: Any,
    code_NK: Any,
    byte_RN: Any,
    offset_B1: Any,
    mode: int,
    step: float,
    value_C: Any,
    num_units: int,
    out_WN: Any,
) -> bool:
    """The inverse of `split_narrow` → the first four columns. value_C: of mode TABLE, for all 65,536 codes. False where
    a rank lies beyond K, a unit beyond the inventory, or an utterance beyond the block."""
    n, k = unit_NK.shape
    gold_N, logp_N, tail_N, word_N = out_WN[0], out_WN[1], out_WN[2], out_WN[3]
    rank_N, number_N, most, last = _numbers(byte_RN[2:6]), _numbers(byte_RN[6:10]), np.uint32(k), np.uint32(num_units)
    wrong = False
    for i in range(n):
        wrong |= (rank_N[i] > most) | ((rank_N[i] == 0) & (number_N[i] > last))
        gold_N[i] = number_N[i] - np.uint32(1)
    if wrong:
        return False
    _widen_halves(byte_RN[0:2], tail_N)
    _widen_halves(byte_RN[10:12], logp_N)
    for i in range(n):
        if rank_N[i] > 0:
            r = np.int64(rank_N[i]) - 1
            gold_N[i], logp_N[i] = unit_NK[i, r], _logp_bits(code_NK[i, r], mode, step, value_C)
    number_N = _numbers(byte_RN[12:16])
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


@kernel(types.boolean(I8_2, I8_2, i8, i8, f4, F4_1, OUT_I4_2, OUT_U4_2, OUT_I4_2))
def gather(
    block_P4: Any,
    run_B4: Any,
    id_bytes: int,
    mode: int,
    step: float,
    value_C: Any,
    ids_MK: Any,
    logp_MK: Any,
    narrow_WM: Any,
) -> bool:
    """Copy runs of blocks' positions (block, first, end, place in the batch) to M positions, widened. False for a run
    that lies outside. block_P4: `DecodedBlock.place_4` of each block. logp_MK: the bits of float32."""
    m, k = ids_MK.shape
    for b in range(len(run_B4)):
        p, start, stop, place = run_B4[b, 0], run_B4[b, 1], run_B4[b, 2], run_B4[b, 3]
        if start == stop:
            continue
        if not (0 <= p < len(block_P4) and 0 <= start < stop <= block_P4[p, 3] and 0 <= place <= m - (stop - start)):
            return False
        count, n = (stop - start) * k, block_P4[p, 3]
        ids_U = ids_MK[place : place + stop - start].reshape(-1)
        logp_U = logp_MK[place : place + stop - start].reshape(-1)
        if id_bytes == 2:
            _copy(array_at(block_P4[p, 0] + 2 * start * k, count, np.uint16), ids_U)
        else:
            _copy(array_at(block_P4[p, 0] + 4 * start * k, count, np.uint32), ids_U)
        code_U = array_at(block_P4[p, 1] + 2 * start * k, count, np.uint16)
        if mode == GRID:
            for i in range(len(logp_U)):
                logp_U[i] = _logp_bits(code_U[i], GRID, step, value_C)
        elif mode == F16:
            for i in range(len(logp_U)):
                logp_U[i] = _logp_bits(code_U[i], F16, step, value_C)
        else:
            for i in range(len(logp_U)):
                logp_U[i] = _logp_bits(code_U[i], TABLE, step, value_C)
        for w in range(len(narrow_WM)):
            column_U = array_at(block_P4[p, 2] + 4 * (w * n + start), stop - start, np.int32)
            _copy(column_U, narrow_WM[w, place : place + stop - start])
    return True
