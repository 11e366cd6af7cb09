"""Bytes → top-k rows, and batches of them: the inverse of `hkd.labels.codec`, whose shape letters hold here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hkd.errors import HkdError
from hkd.labels import decoding_kernels as kernels
from hkd.labels.codec import NARROW, Planes, layout, mode_of
from hkd.labels.encoding_kernels import TILE
from hkd.labels.schema import StoreSpec
from hkd.sparse import TopK


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A block as it lies in the reader's cache: positions first, log-probabilities in 16 bits, so that it takes half the memory."""

    unit_NK: NDArray[Any]  # uint16 or uint32
    code_NK: NDArray[np.uint16]
    count_NK: NDArray[np.uint16] | None
    narrow_WN: NDArray[np.int32]  # 32 bits each: gold, gold_logp, tail, word, lse_t, tail_t
    num_bytes: int  # in memory
    place_4: tuple[int, ...] = field(init=False)  # addresses of units, codes and narrow columns, and the number of positions

    def __post_init__(self) -> None:
        lie = (array.ctypes.data for array in (self.unit_NK, self.code_NK, self.narrow_WN))
        object.__setattr__(self, "place_4", (*lie, len(self.code_NK)))

    @property
    def gold_N(self) -> NDArray[np.int32]:
        """The gold units."""
        gold_N: NDArray[np.int32] = self.narrow_WN[0]
        return gold_N


def decoded_bytes(spec: StoreSpec) -> int:
    """Bytes of a position in memory, decoded."""
    wide = spec.id_bytes + 2 + (2 if spec.selection == "sample" else 0)
    return spec.width * wide + 4 * (4 + 2 * len(spec.temperatures))


def decode(spec: StoreSpec, planes: Planes, offset_B1: NDArray[np.int64]) -> Decoded:
    """Planes → a decoded block. Raises HkdError where a number cannot be right."""
    n, j = int(offset_B1[-1]), len(spec.temperatures)
    if any(planes[name].shape != plane.shape(n) for name, plane in layout(spec).items()):
        _refuse_block("a plane is not of its utterances' length")
    narrow_WN = np.empty((4 + 2 * j, n), np.int32)
    real_WN = narrow_WN.view(np.float32)
    unit_NK, code_NK, count_NK = _joined(spec, planes, n)
    _join_narrow(spec, planes, offset_B1, unit_NK, code_NK, narrow_WN)
    if j:
        real_WN[4 : 4 + j], real_WN[4 + j :] = (
            _from_bytes(planes[name], dtype) for name, dtype in (("lse_t", "<f4"), ("tail_t", "<f2"))
        )
    num_bytes = n * decoded_bytes(spec)
    return Decoded(unit_NK=unit_NK, code_NK=code_NK, count_NK=count_NK, narrow_WN=narrow_WN, num_bytes=num_bytes)


def _from_bytes(plane: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """(b · R, N) bytes, low byte first → (R, N) numbers of b bytes."""
    size = np.dtype(dtype).itemsize
    low_RN, *higher = plane.reshape(size, plane.shape[0] // size, plane.shape[1])
    bits_RN = low_RN.astype(f"<u{size}")
    for byte, plane_RN in enumerate(higher, 1):
        if size == 2 or plane_RN.any():  # most numbers of four bytes are small
            bits_RN |= np.left_shift(plane_RN, 8 * byte, dtype=bits_RN.dtype)
    return bits_RN.view(dtype)


def _tiled(value_NX: NDArray[Any]) -> NDArray[Any]:
    """At least a tile of rows, as the kernels want them: zeros at the end."""
    missing = max(0, TILE - len(value_NX))
    return np.pad(value_NX, ((0, missing), (0, 0))) if missing else value_NX


_Wide = tuple[NDArray[Any], NDArray[np.uint16], NDArray[np.uint16] | None]


def _joined(spec: StoreSpec, planes: Planes, n: int) -> _Wide:
    """Units, codes and counts, from their bytes. Raises HkdError for a unit id beyond the inventory."""
    k, v, largest = spec.width, len(spec.inventory), -1
    unit_NK = np.empty((n, k), f"u{spec.id_bytes}")
    for byte in range(0, spec.id_bytes, 2):
        largest = kernels.join_ids(planes[f"unit.{byte}"], planes[f"unit.{byte + 1}"], 8 * byte, unit_NK)
    if unit_NK.size and largest >= v:
        _refuse_block(f"a stored unit id lies beyond the inventory of {v} units")
    low_KN, high_KN = (_tiled(planes[name].T).T if n < TILE else planes[name] for name in ("code.0", "code.1"))
    code_NK = np.empty((max(n, TILE), k), np.uint16)
    kernels.join_codes(np.ascontiguousarray(low_KN), np.ascontiguousarray(high_KN), code_NK)
    if spec.selection == "topk":
        return unit_NK, code_NK[:n], None
    count_KN = _from_bytes(np.concatenate([planes["count.0"], planes["count.1"]]), "<u2")
    return unit_NK, code_NK[:n], np.ascontiguousarray(count_KN.T)


def _join_narrow(
    spec: StoreSpec,
    planes: Planes,
    offset_B1: NDArray[np.int64],
    unit_NK: NDArray[Any],
    code_NK: NDArray[np.uint16],
    narrow_WN: NDArray[np.int32],
) -> None:
    """Gold units, their log-probabilities, tails and words. Raises HkdError where a rank or a unit cannot be right."""
    plane_5 = [planes[name] for name in NARROW]
    numbers = mode_of(spec), np.float32(spec.step), len(spec.inventory)
    if not kernels.join_narrow(unit_NK, code_NK, *plane_5, np.asarray(offset_B1, np.int64), *numbers, narrow_WN):
        _refuse_block("a gold unit's rank lies beyond the kept ids, or the unit beyond the inventory")


def _refuse_block(reason: str) -> NoReturn:
    raise HkdError(f"{reason}: the shard is damaged. Run `hkd labels verify`.")


def gather(
    spec: StoreSpec,
    blocks: Sequence[Decoded],
    run_B3: NDArray[np.int64],
    offset_B1: NDArray[np.int64],
) -> tuple[TopK, NDArray[np.int32]]:
    """Runs of positions → (TopK, word_N), each number written once.

    run_B3: the block's place among `blocks`, the first position and the one behind the last; the run's place in the batch is in `offset_B1`.
    Raises HkdError for a run that lies outside its block.
    """
    n, k, j = int(offset_B1[-1]), spec.width, len(spec.temperatures)
    ids_NK, logp_NK, narrow_WN = np.empty((n, k), np.int32), np.empty((n, k), np.float32), np.empty((4 + 2 * j, n), np.int32)
    block_P4 = np.array([block.place_4 for block in blocks], np.int64).reshape(-1, 4)
    numbers = spec.id_bytes, mode_of(spec), np.float32(spec.step)
    if not kernels.gather(block_P4, run_B3, offset_B1, *numbers, ids_NK, logp_NK.view(np.uint32), narrow_WN):
        _refuse_block("an utterance lies outside its block")
    count_NK = None
    if spec.selection == "sample":
        counts = (blocks[block].count_NK[start:stop] for block, start, stop in run_B3.tolist() if start < stop)
        count_NK = np.concatenate([np.empty((0, k), np.uint16), *counts])
    gold_N, word_N, real_WN = narrow_WN[0], narrow_WN[3], narrow_WN.view(np.float32)
    topk = TopK(
        ids_NK=ids_NK,
        logp_NK=logp_NK,
        tail_N=real_WN[2],
        gold_N=gold_N,
        gold_logp_N=real_WN[1],
        lse_NJ=np.ascontiguousarray(real_WN[4 : 4 + j].T),
        tail_NJ=np.ascontiguousarray(real_WN[4 + j :].T),
        count_NK=count_NK,
    )
    return topk, word_N
