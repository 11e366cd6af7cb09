"""How top-k rows become bytes: the codecs `f16` and `grid`.

- Both turn a log-probability into a 16-bit code that does not fall with −log p. `f16`: the bits of −log p as a float16. `grid`: −log p
  in steps of `step` nats, rounded half to even; 65535 is −∞.
- Codes are stored as differences in rank modulo 2^16: rows fall, so the differences are small and compress well.
- Every value is cut into byte planes, low byte first. Codes are stored rank-major (all positions' first rank, then all second
  ranks ...), since a rank's differences are alike; unit ids are stored position-major, since they are not and transposing costs time.
- The gold unit is stored as its rank among the kept ids where its log-probability is that id's, bit for bit (0: it is not; then
  the unit's id + 1 and its float16 log-probability stand in their own planes, which are zero otherwise).
- The tails stay float16 (of log, so −∞ survives), the temperatures' log-sum-exps float32.
- `compression: none` (codec `f16` alone) stores plain arrays instead, position-major, so that a reader maps them without a copy.

Shape letters: N positions of a block, R rows of a plane, K kept ids, J temperatures, V units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.errors import HkdError
from hkd.labels.schema import StoreSpec
from hkd.topk import TopK

Planes = dict[str, NDArray[Any]]
U16_INF_GRID = 65535
TORCH_GRAIN = 32_000  # torch works with one thread below 32,768 elements
POSITIVE_TOLERANCE = 1e-3  # float32 log-softmax may come out a little above 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """One stored array: `rows` values a position, each of `dtype`; `axis` is that of the positions."""

    dtype: np.dtype[Any]
    rows: int
    axis: int

    def shape(self, num_positions: int) -> tuple[int, int]:
        """The array's shape for so many positions."""
        return (num_positions, self.rows) if self.axis == 0 else (self.rows, num_positions)

    def num_bytes(self, num_positions: int) -> int:
        """Bytes for so many positions."""
        return self.rows * num_positions * self.dtype.itemsize


def layout(spec: StoreSpec) -> dict[str, Plane]:
    """The planes of a store, by name, in the order in which they are stored."""
    k, j = spec.width, len(spec.temperatures)
    id_type = "<u2" if spec.id_bytes == 2 else "<u4"
    if spec.compression == "none":
        plain = {"unit": (id_type, k), "logp": ("<f2", k), "tail": ("<f2", 1), "gold": ("<i4", 1), "gold_logp": ("<f2", 1)}
        plain["word"] = ("<i4", 1)
        if j:
            plain |= {"lse_t": ("<f4", j), "tail_t": ("<f2", j)}
        if spec.selection == "sample":
            plain["count"] = ("<u2", k)
        return {name: Plane(dtype=np.dtype(dtype), rows=rows, axis=0) for name, (dtype, rows) in plain.items()}
    rows_of = {"code.0": k, "code.1": k}
    if spec.selection == "sample":
        rows_of |= {"count.0": k, "count.1": k}
    rows_of |= {"tail": 2, "gold_rank": 4, "gold": 4, "gold_logp": 2, "word": 4}
    if j:
        rows_of |= {"lse_t": 4 * j, "tail_t": 2 * j}
    byte = np.dtype("u1")
    units = {f"unit.{i}": Plane(dtype=byte, rows=k, axis=0) for i in range(spec.id_bytes)}
    return units | {name: Plane(dtype=byte, rows=rows, axis=1) for name, rows in rows_of.items()}


def _check_logp(name: str, logp: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = float(logp.max()) if logp.size else 0.0  # NaN where there is one
    if not largest <= POSITIVE_TOLERANCE:
        raise HkdError(f"`{name}` must hold log-probabilities (at most 0, no NaN), but its largest is {largest} instead.")
    return logp if largest <= 0 else np.minimum(logp, np.float32(0))


def _convert(value: NDArray[Any], dtype: type[np.generic], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """float32 ⇄ float16 through torch, whose conversion is vectorised (NumPy's is not); in pieces too small for its threads."""
    source = np.array(value, order="C", copy=None if value.flags.writeable else True).reshape(-1)
    result = np.empty(value.shape, dtype) if out is None else out
    flat = result.reshape(-1)
    for start in range(0, len(source), TORCH_GRAIN):
        piece = slice(start, start + TORCH_GRAIN)
        torch.from_numpy(flat[piece]).copy_(torch.from_numpy(source[piece]))
    return result


def _to_f16(value: NDArray[np.float32]) -> NDArray[np.float16]:
    """float32 → float16, rounded half to even; finite values stay finite, −0 becomes 0."""
    half: NDArray[np.float16] = _convert(value, np.float16)
    bits = half.view(np.uint16)
    bits[bits == 0x8000] = 0
    too_large = np.isinf(half)
    if too_large.any():
        half[too_large] = np.where(np.isinf(value[too_large]), value[too_large], np.copysign(65504, value[too_large]))
    return half


def _from_f16(value: NDArray[np.float16]) -> NDArray[np.float32]:
    """float16 → float32."""
    return _convert(value, np.float32)


def to_code(spec: StoreSpec, logp: NDArray[np.float32]) -> NDArray[np.uint16]:
    """log-probabilities → 16-bit codes, same shape."""
    if spec.codec == "f16":
        return _to_f16(logp).view(np.uint16) & np.uint16(0x7FFF)
    lowest = np.float32(-65534 * spec.step)
    beyond = bool(logp.size) and bool(logp.min() < lowest)
    if beyond:
        logp = np.where(np.isinf(logp), logp, np.maximum(logp, lowest))
    scaled = logp * np.float32(-1 / spec.step)
    np.rint(scaled, out=scaled)
    if beyond:
        scaled[np.isinf(scaled)] = U16_INF_GRID
    return scaled.astype(np.uint16)


def from_code(spec: StoreSpec, code: NDArray[np.uint16]) -> NDArray[np.float32]:
    """16-bit codes → log-probabilities, same shape."""
    if spec.codec == "f16":
        logp = _from_f16(code.view(np.float16))
        np.subtract(np.float32(0), logp, out=logp)
        return logp
    logp = np.multiply(code, np.float32(-spec.step), dtype=np.float32)
    logp += np.float32(0)  # −0 → 0
    if code.size and int(code.max()) == U16_INF_GRID:
        logp[code == U16_INF_GRID] = -np.inf
    return logp


def _bytes_of(value_RN: NDArray[Any]) -> NDArray[np.uint8]:
    """(R, N) of b-byte numbers → (b · R, N) bytes, low byte first."""
    value_RN = np.ascontiguousarray(value_RN)
    rows, n = value_RN.shape
    size = value_RN.dtype.itemsize
    parts = value_RN.astype(value_RN.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(rows, n, size)
    return np.ascontiguousarray(parts.transpose(2, 0, 1)).reshape(size * rows, n)


def _from_bytes(plane: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """The inverse of `_bytes_of`."""
    size = np.dtype(dtype).itemsize
    rows, n = plane.shape[0] // size, plane.shape[1]
    parts = plane.reshape(size, rows, n).transpose(1, 2, 0)
    return np.ascontiguousarray(parts).view(np.dtype(dtype)).reshape(rows, n)


def _split(name: str, value: NDArray[Any], size: int) -> Planes:
    """Whole numbers → their `size` lowest bytes, a plane each."""
    return {f"{name}.{byte}": (value >> (8 * byte)).astype(np.uint8) for byte in range(size)}


def _join_bytes(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.uint16]:
    joined = high.astype(np.uint16)
    joined <<= 8
    joined |= low
    return joined


def _word_steps(word_N: NDArray[np.int32], offset_B1: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Word numbers → differences modulo 2^32; each utterance starts anew from −1."""
    before_N = np.empty_like(word_N)
    before_N[1:] = word_N[:-1]
    starts = offset_B1[:-1][np.diff(offset_B1) > 0]
    before_N[starts] = -1
    return word_N.astype(np.uint32) - before_N.astype(np.uint32)


def _words(step_N: NDArray[np.uint32], offset_B1: NDArray[np.int64]) -> NDArray[np.int32]:
    total_N = np.cumsum(step_N, dtype=np.uint32)
    length_B = np.diff(offset_B1)
    starts = offset_B1[:-1][length_B > 0]
    base = np.where(starts > 0, total_N[starts - 1], np.uint32(0))
    word_N: NDArray[np.int32] = (total_N - np.repeat(base, length_B[length_B > 0]) - np.uint32(1)).view(np.int32)
    return word_N


def encode(spec: StoreSpec, topk: TopK, word_N: NDArray[np.int32], offset_B1: NDArray[np.int64]) -> Planes:
    """The rows of whole utterances → planes. Raises HkdError for rows that the store cannot hold."""
    n, v = len(topk), len(spec.inventory)
    if (
        topk.k != spec.width
        or topk.lse_NJ.shape[1] != len(spec.temperatures)
        or (topk.count_NK is None) != (spec.selection == "topk")
    ):
        raise HkdError(
            f"a row of this store must have k = {spec.width}, {len(spec.temperatures)} temperatures and the selection {spec.selection}, "
            f"but has k = {topk.k}, {topk.lse_NJ.shape[1]} temperatures and {'no counts' if topk.count_NK is None else 'counts'} instead."
        )
    ids = topk.ids_NK
    if n and not (
        int(ids.min(initial=0)) >= 0
        and int(ids.max(initial=0)) < v
        and int(topk.gold_N.min()) >= -1
        and int(topk.gold_N.max()) < v
    ):
        raise HkdError(f"unit ids must lie in an inventory of {v} units, but some do not. Check the teacher's inventory.")
    logp_NK, gold_logp_N = _check_logp("logp", topk.logp_NK), _check_logp("gold_logp", topk.gold_logp_N)
    tail_N, tail_NJ = _check_logp("tail", topk.tail_N), _check_logp("tail_t", topk.tail_NJ)
    if spec.compression == "none":
        planes: Planes = {"unit": ids, "logp": _to_f16(logp_NK), "tail": _to_f16(tail_N)[:, None], "gold": topk.gold_N[:, None]}
        planes |= {"gold_logp": _to_f16(gold_logp_N)[:, None], "word": word_N[:, None]}
        if spec.temperatures:
            planes |= {"lse_t": topk.lse_NJ, "tail_t": _to_f16(tail_NJ)}
        if topk.count_NK is not None:
            planes["count"] = topk.count_NK
        return {name: np.ascontiguousarray(planes[name], p.dtype) for name, p in layout(spec).items()}
    code_KN = np.ascontiguousarray(to_code(spec, logp_NK).T)
    step_KN = code_KN.copy()
    step_KN[1:] -= code_KN[:-1]
    rank_N = (ids == topk.gold_N[:, None]).argmax(1)
    row = np.arange(n)
    found_N = (ids[row, rank_N] == topk.gold_N) & (logp_NK[row, rank_N] == gold_logp_N)
    rank_N = np.where(found_N, rank_N + 1, 0).astype(np.uint32)
    outside_N = rank_N == 0
    tail_bits, gold_bits = _to_f16(tail_N).view(np.uint16), _to_f16(gold_logp_N).view(np.uint16)
    planes = {
        "tail": _bytes_of(tail_bits[None]),
        "gold_rank": _bytes_of(rank_N[None]),
        "gold": _bytes_of(np.where(outside_N, topk.gold_N + 1, 0).astype(np.uint32)[None]),
        "gold_logp": _bytes_of(np.where(outside_N, gold_bits, np.uint16(0))[None]),
        "word": _bytes_of(_word_steps(word_N, offset_B1)[None]),
    }
    planes |= _split("unit", ids, spec.id_bytes) | _split("code", step_KN, 2)
    if topk.count_NK is not None:
        planes |= _split("count", np.ascontiguousarray(topk.count_NK.T), 2)
    if spec.temperatures:
        planes["lse_t"] = _bytes_of(topk.lse_NJ.T.astype("<f4"))
        planes["tail_t"] = _bytes_of(_to_f16(tail_NJ.T))
    return {name: planes[name] for name in layout(spec)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A block as it lies in the reader's cache: positions first, still in 16-bit codes, so that it takes half the memory."""

    columns: dict[str, NDArray[Any]]
    has_inf: bool  # whether a code of `grid` stands for −∞

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return sum(column.nbytes for column in self.columns.values())


def _checked(spec: StoreSpec, columns: dict[str, NDArray[Any]], has_inf: bool = False) -> Decoded:
    """Raises HkdError for a unit id beyond the inventory."""
    v, ids, gold = len(spec.inventory), columns["unit"], columns["gold"]
    if ids.size and (int(ids.max()) >= v or int(gold.max()) >= v or int(gold.min()) < -1):
        raise HkdError(f"a stored unit id lies beyond the inventory of {v} units: the shard is damaged. Run `hkd labels verify`.")
    return Decoded(columns=columns, has_inf=has_inf)


def decode(spec: StoreSpec, planes: Planes, offset_B1: NDArray[np.int64]) -> Decoded:
    """Planes → columns (positions first). Raises HkdError where a number cannot be right."""
    if spec.compression == "none":
        columns = {name: plane[:, 0] if plane.shape[1] == 1 and name in _FLAT else plane for name, plane in planes.items()}
        return _checked(spec, columns)
    id_NK: NDArray[Any] = _join_bytes(planes["unit.0"], planes["unit.1"])
    if spec.id_bytes == 4:
        id_NK = id_NK | (_join_bytes(planes["unit.2"], planes["unit.3"]).astype(np.uint32) << 16)
    code_KN = _join_bytes(planes["code.0"], planes["code.1"])
    for rank in range(1, len(code_KN)):
        np.add(code_KN[rank - 1], code_KN[rank], out=code_KN[rank])
    rank_N = _from_bytes(planes["gold_rank"], "<u4")[0]
    if rank_N.size and int(rank_N.max()) > spec.width:
        raise HkdError("a gold unit's rank lies beyond the kept ids: the block is damaged. Run `hkd labels verify`.")
    code_NK = np.ascontiguousarray(code_KN.T)
    columns = {
        "unit": id_NK,
        "code": code_NK,
        "tail": _from_bytes(planes["tail"], "<f2")[0],
        "word": _words(_from_bytes(planes["word"], "<u4")[0], offset_B1),
    }
    gold_N = (_from_bytes(planes["gold"], "<u4")[0] - np.uint32(1)).view(np.int32)
    gold_logp_N = _from_bytes(planes["gold_logp"], "<f2")[0].astype(np.float32)
    row = np.flatnonzero(rank_N)
    picked = rank_N[row].astype(np.int64) - 1
    gold_N[row] = id_NK[row, picked]
    gold_logp_N[row] = from_code(spec, code_NK[row, picked])
    columns |= {"gold": gold_N, "gold_logp": gold_logp_N}
    if spec.temperatures:
        columns["lse_t"] = np.ascontiguousarray(_from_bytes(planes["lse_t"], "<f4").T)
        columns["tail_t"] = np.ascontiguousarray(_from_bytes(planes["tail_t"], "<f2").T)
    if spec.selection == "sample":
        columns["count"] = np.ascontiguousarray(_join_bytes(planes["count.0"], planes["count.1"]).T)
    has_inf = spec.codec == "grid" and bool(code_KN.size) and int(code_KN.max()) == U16_INF_GRID
    return _checked(spec, columns, has_inf)


_FLAT = ("tail", "gold", "gold_logp", "word")


Part = tuple[Decoded, int, int]  # the positions [start, stop) of a block
Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]


def gather(spec: StoreSpec, parts: Sequence[Part], allocate: Allocate = np.empty) -> tuple[TopK, NDArray[np.int32]]:
    """Runs of positions → (TopK, word_N), each number written once. `allocate(shape, dtype)` gives the memory for the wide arrays."""
    n, k, j = sum(stop - start for _, start, stop in parts), spec.width, len(spec.temperatures)

    def fill(name: str, out: NDArray[Any]) -> NDArray[Any]:
        at = 0
        for decoded, start, stop in parts:
            out[at : at + stop - start] = decoded.columns[name][start:stop]
            at += stop - start
        return out

    logp_NK = allocate((n, k), np.float32)
    if spec.codec == "f16":
        half = allocate((n, k), np.uint16)
        half = fill("logp", half.view(np.float16)) if spec.compression == "none" else fill("code", half).view(np.float16)
        _convert(half, np.float32, out=logp_NK)
        if spec.compression != "none":
            np.subtract(np.float32(0), logp_NK, out=logp_NK)
    else:
        fill("code", logp_NK)
        logp_NK *= np.float32(-spec.step)
        logp_NK += np.float32(0)  # −0 → 0
        if any(decoded.has_inf for decoded, _, _ in parts):
            logp_NK[logp_NK == np.float32(U16_INF_GRID) * np.float32(-spec.step)] = -np.inf
    topk = TopK(
        ids_NK=fill("unit", allocate((n, k), np.int32)),
        logp_NK=logp_NK,
        tail_N=_convert(fill("tail", np.empty(n, np.float16)), np.float32),
        gold_N=fill("gold", np.empty(n, np.int32)),
        gold_logp_N=fill("gold_logp", np.empty(n, np.float32)),
        lse_NJ=fill("lse_t", np.empty((n, j), np.float32)) if j else np.zeros((n, 0), np.float32),
        tail_NJ=fill("tail_t", np.empty((n, j), np.float32)) if j else np.zeros((n, 0), np.float32),
        count_NK=fill("count", allocate((n, k), np.uint16)) if spec.selection == "sample" else None,
    )
    return topk, fill("word", np.empty(n, np.int32))
