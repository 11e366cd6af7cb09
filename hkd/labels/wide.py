"""The wide planes of a block, K numbers a position: unit ids and log-probabilities ⇄ bytes. Nearly all time goes by here.

What makes it fast: memory that is used again, pieces that stay in the cache, and NumPy's and torch's vectorised loops alone.

Shape letters: N positions of a block, P positions of a piece, K kept ids.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.labels.memory import Allocate
from hkd.labels.schema import StoreSpec

GRID_INF, F16_INF, F16_LARGEST, F16_MINUS = 0xFFFF, 0x7C00, 0x7BFF, 0x8000
MAX_INT16 = 0x7FFF
TORCH_GRAIN = 32_000  # torch works with one thread below 32,768 elements
PIECE_VALUES = 1 << 17
TRANSPOSED_ROWS = 256  # NumPy transposes so many rows twice as fast as more at once
FOLDED_ROWS = 16
SPARSE = 4  # up to K / 4 ranks are done one by one


def convert(value: NDArray[Any], dtype: type[np.generic], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """float32 ⇄ float16 through torch, whose conversion is vectorised (NumPy's is not); in pieces too small for its threads."""
    source = np.array(value, order="C", copy=None if value.flags.writeable else True).reshape(-1)
    result = np.empty(value.shape, dtype) if out is None else out
    flat = result.reshape(-1)
    for start in range(0, len(source), TORCH_GRAIN):
        piece = slice(start, start + TORCH_GRAIN)
        torch.from_numpy(flat[piece]).copy_(torch.from_numpy(source[piece]))
    return result


def to_f16(value: NDArray[np.float32], out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
    """float32 → float16, rounded half to even; finite values stay finite, −0 becomes 0."""
    half: NDArray[np.float16] = convert(value, np.float16, out)
    bits = half.view(np.uint16)
    bits[bits == F16_MINUS] = 0
    if half.size and int((bits & 0x7FFF).max()) >= F16_INF:
        too_large = np.isinf(half)
        half[too_large] = np.where(np.isinf(value[too_large]), value[too_large], np.copysign(65504, value[too_large]))
    return half


def to_code(spec: StoreSpec, logp: NDArray[np.float32], scratch: Allocate = np.empty) -> NDArray[np.uint16]:
    """log-probabilities → 16-bit codes, same shape."""
    if spec.codec == "f16":
        bits: NDArray[np.uint16] = convert(logp, np.float16, scratch(logp.shape, np.float16)).view(np.uint16)
        bits &= np.uint16(0x7FFF)
        if bits.size and int(bits.max()) >= F16_INF:
            bits[(bits == F16_INF) & np.isfinite(logp)] = F16_LARGEST
        return bits
    lowest = np.float32(-65534 * spec.step)
    beyond = bool(logp.size) and bool(logp.min() < lowest)
    if beyond:
        logp = np.where(np.isinf(logp), logp, np.maximum(logp, lowest))
    scaled = np.multiply(logp, np.float32(-1 / spec.step), out=scratch(logp.shape, np.float32))
    np.rint(scaled, out=scaled)
    if beyond:
        scaled[np.isinf(scaled)] = GRID_INF
    code: NDArray[np.uint16] = scratch(logp.shape, np.uint16)
    np.copyto(code, scaled, casting="unsafe")
    return code


def from_code(spec: StoreSpec, code: NDArray[np.uint16]) -> NDArray[np.float32]:
    """16-bit codes → log-probabilities, same shape."""
    if spec.codec == "f16":
        half: NDArray[np.float32] = convert(code.view(np.float16), np.float32)
        half *= np.float32(-1)
        half += np.float32(0)  # −0 → 0
        return half
    logp: NDArray[np.float32] = np.multiply(code, np.float32(-spec.step), dtype=np.float32)
    logp += np.float32(0)  # −0 → 0
    if code.size and int(code.max()) == GRID_INF:
        logp[code == GRID_INF] = -np.inf
    return logp


def minus_codes(code: NDArray[np.uint16]) -> NDArray[np.int16] | NDArray[np.float32]:
    """Codes of `grid` → log-probabilities in steps: int16 in the same memory, or float32 where one is too large; 65535 → −∞."""
    if code.size == 0 or int(code.max()) <= MAX_INT16:
        return np.negative(code, out=code).view(np.int16)
    steps: NDArray[np.float32] = np.subtract(np.float32(0), code)
    steps[code == GRID_INF] = -np.inf
    return steps


def _any_bits(value_PK: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The bits that any row of a column has. Long rows first: NumPy is slow over short ones."""
    p, k = value_PK.shape
    whole = p - p % FOLDED_ROWS
    folded = np.bitwise_or.reduce(value_PK[:whole].reshape(-1, FOLDED_ROWS * k), axis=0).reshape(FOLDED_ROWS, k)
    bits: NDArray[np.uint16] = np.bitwise_or.reduce(folded, axis=0) | np.bitwise_or.reduce(value_PK[whole:], axis=0)
    return bits


def _transpose(value_PK: NDArray[Any], out_KP: NDArray[Any]) -> None:
    for start in range(0, len(value_PK), TRANSPOSED_ROWS):
        out_KP[:, start : start + TRANSPOSED_ROWS] = value_PK[start : start + TRANSPOSED_ROWS].T


def split_codes(
    spec: StoreSpec,
    logp_NK: NDArray[np.float32],
    low_KN: NDArray[np.uint8],
    high_KN: NDArray[np.uint8],
    scratch: Allocate = np.empty,
) -> None:
    """Log-probabilities → the low and the high bytes of their codes' differences in rank."""
    n, k = logp_NK.shape
    rows = max(1, PIECE_VALUES // k)
    for start in range(0, n, rows):
        code_PK = to_code(spec, logp_NK[start : start + rows], scratch)
        p = len(code_PK)
        piece = slice(start, start + p)
        step_PK = scratch((p, k), np.uint16)
        np.subtract(code_PK.reshape(-1)[1:], code_PK.reshape(-1)[:-1], out=step_PK.reshape(-1)[1:])
        step_PK[:, 0] = code_PK[:, 0]
        byte_PK = scratch((p, k), np.uint8)
        np.copyto(byte_PK, step_PK, casting="unsafe")
        _transpose(byte_PK, low_KN[:, piece])
        ranks = np.flatnonzero(_any_bits(step_PK) >> 8).tolist()
        if len(ranks) > k // SPARSE:
            np.copyto(byte_PK, np.right_shift(step_PK, 8, out=step_PK), casting="unsafe")
            _transpose(byte_PK, high_KN[:, piece])
        else:
            high_KN[:, piece] = 0
            for rank in ranks:
                np.right_shift(step_PK[:, rank], 8, out=high_KN[rank, piece], casting="unsafe")


def join_codes(
    low_KN: NDArray[np.uint8], high_KN: NDArray[np.uint8], allocate: Allocate = np.empty, scratch: Allocate = np.empty
) -> NDArray[np.uint16]:
    """The inverse, as far as codes, (N, K)."""
    k, n = low_KN.shape
    # Rows that lie a multiple of 4096 bytes apart fight for the same places in the cache, which makes transposing slow: hence | 32.
    code_KN = scratch((k, n | 32), np.uint16)[:, :n]
    ranks = np.flatnonzero(high_KN.max(axis=1, initial=0)).tolist()
    if len(ranks) > k // SPARSE:
        join_bytes(low_KN, high_KN, code_KN)
    else:
        np.copyto(code_KN, low_KN)
        for rank in ranks:
            code_KN[rank] |= np.left_shift(high_KN[rank], 8, dtype=np.uint16)
    for before_N, code_N in pairwise(code_KN):
        np.add(before_N, code_N, out=code_N)
    code_NK = allocate((n, k), np.uint16)
    np.copyto(code_NK, code_KN.T)
    return code_NK


def join_bytes(low: NDArray[np.uint8], high: NDArray[np.uint8], out: NDArray[Any]) -> NDArray[Any]:
    """Two byte planes → numbers."""
    np.copyto(out, high)
    np.left_shift(out, 8, out=out)
    np.bitwise_or(out, low, out=out)
    return out


def split_numbers(value: NDArray[Any], planes: Sequence[NDArray[np.uint8]], scratch: Allocate = np.empty) -> None:
    """(N, K) whole numbers → their lowest bytes, a plane each."""
    rows = max(1, PIECE_VALUES // max(1, value.shape[1]))
    for start in range(0, len(value), rows):
        piece = value[start : start + rows]
        left = scratch(piece.shape, np.uint16 if len(planes) == 2 else np.uint32)
        np.copyto(left, piece, casting="unsafe")
        for byte, plane in enumerate(planes):
            if byte:
                np.right_shift(left, 8, out=left)
            np.copyto(plane[start : start + rows], left, casting="unsafe")
