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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import HkdError
from hkd.labels.memory import Allocate
from hkd.labels.schema import StoreSpec
from hkd.labels.wide import (
    convert,
    from_code,
    join_bytes,
    join_codes,
    minus_codes,
    split_codes,
    split_numbers,
    to_f16,
)
from hkd.topk import TopK

Planes = dict[str, NDArray[Any]]
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


def layout(spec: StoreSpec) -> Mapping[str, Plane]:
    """The planes of a store, by name, in the order in which they are stored."""
    return _layout(spec.compression, spec.selection, spec.width, len(spec.temperatures), spec.id_bytes)


@lru_cache
def _layout(compression: str, selection: str, k: int, j: int, id_bytes: int) -> Mapping[str, Plane]:
    if compression == "none":
        id_type = "<u2" if id_bytes == 2 else "<u4"
        plain = {"unit": (id_type, k), "logp": ("<f2", k), "tail": ("<f2", 1), "gold": ("<i4", 1), "gold_logp": ("<f2", 1)}
        plain["word"] = ("<i4", 1)
        if j:
            plain |= {"lse_t": ("<f4", j), "tail_t": ("<f2", j)}
        if selection == "sample":
            plain["count"] = ("<u2", k)
        found = {name: Plane(dtype=np.dtype(dtype), rows=rows, axis=0) for name, (dtype, rows) in plain.items()}
        return MappingProxyType(found)
    rows_of = {"code.0": k, "code.1": k}
    if selection == "sample":
        rows_of |= {"count.0": k, "count.1": k}
    rows_of |= {"tail": 2, "gold_rank": 4, "gold": 4, "gold_logp": 2, "word": 4}
    if j:
        rows_of |= {"lse_t": 4 * j, "tail_t": 2 * j}
    byte = np.dtype("u1")
    units = {f"unit.{i}": Plane(dtype=byte, rows=k, axis=0) for i in range(id_bytes)}
    return MappingProxyType(units | {name: Plane(dtype=byte, rows=rows, axis=1) for name, rows in rows_of.items()})


def _check_logp(name: str, logp: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = float(logp.max()) if logp.size else 0.0  # NaN where there is one
    if not largest <= POSITIVE_TOLERANCE:
        raise HkdError(f"`{name}` must hold log-probabilities (at most 0, no NaN), but its largest is {largest} instead.")
    return logp if largest <= 0 else np.minimum(logp, np.float32(0))


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
    low_RN, *higher = plane.reshape(size, plane.shape[0] // size, plane.shape[1])
    bits_RN = low_RN.astype(f"<u{size}")
    for byte, plane_RN in enumerate(higher, 1):
        if size == 2 or plane_RN.any():  # most numbers of four bytes are small
            bits_RN |= np.left_shift(plane_RN, 8 * byte, dtype=bits_RN.dtype)
    return bits_RN.view(dtype)


def _word_steps(word_N: NDArray[np.int32], offset_B1: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Word numbers → differences modulo 2^32; each utterance starts anew from −1."""
    before_N = np.empty_like(word_N)
    before_N[1:] = word_N[:-1]
    starts = offset_B1[:-1][np.diff(offset_B1) > 0]
    before_N[starts] = -1
    return word_N.astype(np.uint32) - before_N.astype(np.uint32)


def _words(step_N: NDArray[np.uint32], offset_B1: NDArray[np.int64]) -> NDArray[np.int32]:
    total_N1 = np.zeros(len(step_N) + 1, np.uint32)
    np.cumsum(step_N, out=total_N1[1:])
    before_B = total_N1[offset_B1[:-1]] + np.uint32(1)
    word_N: NDArray[np.int32] = (total_N1[1:] - np.repeat(before_B, np.diff(offset_B1))).view(np.int32)
    return word_N


def encode(
    spec: StoreSpec,
    topk: TopK,
    word_N: NDArray[np.int32],
    offset_B1: NDArray[np.int64],
    allocate: Allocate = np.empty,
    scratch: Allocate = np.empty,
) -> Planes:
    """The rows of whole utterances → planes, in memory that `allocate` gives. Raises HkdError for rows that the store cannot hold."""
    _check_rows(spec, topk)
    planes: Planes = {name: allocate(plane.shape(len(topk)), plane.dtype) for name, plane in layout(spec).items()}
    if spec.compression == "none":
        _store_plain(planes, topk, word_N)
    else:
        _store_bytes(spec, planes, topk, word_N, offset_B1, scratch)
    return planes


def _store_plain(out: Planes, topk: TopK, word_N: NDArray[np.int32]) -> None:
    to_f16(_check_logp("logp", topk.logp_NK), out["logp"])
    narrow: dict[str, NDArray[Any]] = {"unit": topk.ids_NK, "gold": topk.gold_N, "word": word_N, "lse_t": topk.lse_NJ}
    narrow["tail"] = to_f16(_check_logp("tail", topk.tail_N))
    narrow["gold_logp"] = to_f16(_check_logp("gold_logp", topk.gold_logp_N))
    narrow["tail_t"] = to_f16(_check_logp("tail_t", topk.tail_NJ))
    if topk.count_NK is not None:
        narrow["count"] = topk.count_NK
    for name in out.keys() & narrow.keys():
        np.copyto(out[name], narrow[name].reshape(out[name].shape), casting="unsafe")


def _store_bytes(
    spec: StoreSpec, out: Planes, topk: TopK, word_N: NDArray[np.int32], offset_B1: NDArray[np.int64], scratch: Allocate
) -> None:
    logp_NK, gold_logp_N = _check_logp("logp", topk.logp_NK), _check_logp("gold_logp", topk.gold_logp_N)
    row = np.arange(len(topk))
    hit_NK = np.equal(topk.ids_NK, topk.gold_N[:, None], out=scratch(logp_NK.shape, np.bool_))
    rank_N = hit_NK.argmax(1)
    found_N = hit_NK[row, rank_N] & (logp_NK[row, rank_N] == gold_logp_N)
    split_numbers(topk.ids_NK, [out[f"unit.{byte}"] for byte in range(spec.id_bytes)], scratch)
    split_codes(spec, logp_NK, out["code.0"], out["code.1"], scratch)
    if topk.count_NK is not None:
        split_numbers(topk.count_NK.T, [out["count.0"], out["count.1"]])
    narrow: dict[str, NDArray[Any]] = {
        "tail": to_f16(_check_logp("tail", topk.tail_N)),
        "gold_rank": np.where(found_N, rank_N + 1, 0).astype(np.uint32),
        "gold": np.where(found_N, 0, topk.gold_N + 1).astype(np.uint32),
        "gold_logp": np.where(found_N, np.uint16(0), to_f16(gold_logp_N).view(np.uint16)),
        "word": _word_steps(word_N, offset_B1),
        "lse_t": topk.lse_NJ.T.astype("<f4"),
        "tail_t": to_f16(_check_logp("tail_t", topk.tail_NJ.T)),
    }
    for name in out.keys() & narrow.keys():
        out[name][...] = _bytes_of(np.atleast_2d(narrow[name]))


def _check_rows(spec: StoreSpec, topk: TopK) -> None:
    """Raises HkdError where rows are not of the store's shape or hold other units than its inventory's."""
    v = len(spec.inventory)
    if (
        topk.k != spec.width
        or topk.lse_NJ.shape[1] != len(spec.temperatures)
        or (topk.count_NK is None) != (spec.selection == "topk")
    ):
        raise HkdError(
            f"a row of this store must have k = {spec.width}, {len(spec.temperatures)} temperatures and the selection {spec.selection}, "
            f"but has k = {topk.k}, {topk.lse_NJ.shape[1]} temperatures and {'no counts' if topk.count_NK is None else 'counts'} instead."
        )
    ids, gold = topk.ids_NK, topk.gold_N
    if len(topk) and not (int(ids.view(f"u{ids.itemsize}").max(initial=0)) < v and int(gold.min()) >= -1 and int(gold.max()) < v):
        raise HkdError(f"unit ids must lie in an inventory of {v} units, but some do not. Check the teacher's inventory.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A block as it lies in the reader's cache: positions first, log-probabilities in 16 bits, so that it takes half the memory.

    `columns`: unit, logp (float16 as mapped; else −logp as float16, or logp / step as int16, in float32 where a number is too large),
    count where there is one; gold, word, gold_logp, tail, lse_t and tail_t are views of `narrow_NW`, 32 bits each in that order, so
    that they are gathered in one go.
    """

    columns: dict[str, NDArray[Any]]
    narrow_NW: NDArray[np.int32]
    num_bytes: int  # in memory


def decode(
    spec: StoreSpec, planes: Planes, offset_B1: NDArray[np.int64], allocate: Allocate = np.empty, scratch: Allocate = np.empty
) -> Decoded:
    """Planes → columns, in memory that `allocate` gives. Raises HkdError where a number cannot be right."""
    if spec.compression == "none":
        wide: Planes = {name: planes[name] for name in ("unit", "logp", "count") if name in planes}
        return _decoded(spec, wide, {name: planes[name] for name in planes if name not in wide}, allocate, mapped=True)
    n = planes["unit.0"].shape[0]
    wide = {"unit": join_bytes(planes["unit.0"], planes["unit.1"], allocate((n, spec.width), f"u{spec.id_bytes}"))}
    if spec.id_bytes == 4:
        wide["unit"] |= join_bytes(planes["unit.2"], planes["unit.3"], scratch((n, spec.width), np.uint32)) << 16
    code_NK = join_codes(planes["code.0"], planes["code.1"], allocate, scratch)
    rank_N = _from_bytes(planes["gold_rank"], "<u4")[0]
    if rank_N.size and int(rank_N.max()) > spec.width:
        raise HkdError("a gold unit's rank lies beyond the kept ids: the block is damaged. Run `hkd labels verify`.")
    ranked_N = rank_N > 0
    place_N = np.arange(0, n * spec.width, spec.width) + (rank_N - ranked_N)
    gold_N = np.where(ranked_N, wide["unit"].reshape(-1).take(place_N), _from_bytes(planes["gold"], "<u4")[0] - np.uint32(1))
    gold_logp_N = from_code(spec, code_NK.reshape(-1).take(place_N))
    np.copyto(gold_logp_N, _from_bytes(planes["gold_logp"], "<f2")[0], where=~ranked_N)
    wide["logp"] = code_NK.view(np.float16) if spec.codec == "f16" else minus_codes(code_NK)
    if spec.selection == "sample":
        count_KN = join_bytes(planes["count.0"], planes["count.1"], scratch((spec.width, n), np.uint16))
        wide["count"] = np.ascontiguousarray(count_KN.T)
    narrow = {"gold": gold_N.view(np.int32), "gold_logp": gold_logp_N, "tail": _from_bytes(planes["tail"], "<f2")[0]}
    narrow["word"] = _words(_from_bytes(planes["word"], "<u4")[0], offset_B1)
    if spec.temperatures:
        narrow |= {"lse_t": _from_bytes(planes["lse_t"], "<f4").T, "tail_t": _from_bytes(planes["tail_t"], "<f2").T}
    return _decoded(spec, wide, narrow, allocate)


def _narrow_columns(spec: StoreSpec, narrow_NW: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    real_NW, j = narrow_NW.view(np.float32), len(spec.temperatures)
    columns = {"gold": narrow_NW[:, 0], "word": narrow_NW[:, 1], "gold_logp": real_NW[:, 2], "tail": real_NW[:, 3]}
    return columns | {"lse_t": real_NW[:, 4 : 4 + j], "tail_t": real_NW[:, 4 + j : 4 + 2 * j]}


def _decoded(spec: StoreSpec, wide: Planes, narrow: Planes, allocate: Allocate, *, mapped: bool = False) -> Decoded:
    """Raises HkdError for a unit id beyond the inventory."""
    v, ids, gold = len(spec.inventory), wide["unit"], narrow["gold"]
    if ids.size and (int(ids.max()) >= v or int(gold.max()) >= v or int(gold.min()) < -1):
        raise HkdError(f"a stored unit id lies beyond the inventory of {v} units: the shard is damaged. Run `hkd labels verify`.")
    narrow_NW = allocate((len(ids), 4 + 2 * len(spec.temperatures)), np.int32)
    columns = _narrow_columns(spec, narrow_NW)
    for name, column in narrow.items():
        columns[name][...] = column.reshape(columns[name].shape)
    return Decoded(
        columns=wide | columns,
        narrow_NW=narrow_NW,
        num_bytes=narrow_NW.nbytes + (0 if mapped else sum(column.nbytes for column in wide.values())),
    )


Part = tuple[Decoded, int, int]  # the positions [start, stop) of a block


def gather(spec: StoreSpec, parts: Sequence[Part], allocate: Allocate = np.empty) -> tuple[TopK, NDArray[np.int32]]:
    """Runs of positions → (TopK, word_N), each number written once. `allocate` gives the memory for the wide arrays."""
    n, k = sum(stop - start for _, start, stop in parts), spec.width

    def fill(name: str, out: NDArray[Any]) -> NDArray[Any]:
        if parts:
            np.concatenate([decoded.columns[name][start:stop] for decoded, start, stop in parts], out=out, casting="same_kind")
        return out

    logp_NK = allocate((n, k), np.float32)
    if spec.codec == "grid":
        fill("logp", logp_NK)
        logp_NK *= np.float32(spec.step)
    else:
        convert(fill("logp", allocate((n, k), np.float16)), np.float32, out=logp_NK)
        if spec.compression != "none":
            np.subtract(np.float32(0), logp_NK, out=logp_NK)  # 0 stays 0
    narrow_NW = np.empty((n, 4 + 2 * len(spec.temperatures)), np.int32)
    if parts:
        np.concatenate([decoded.narrow_NW[start:stop] for decoded, start, stop in parts], out=narrow_NW)
    narrow = {name: np.ascontiguousarray(column) for name, column in _narrow_columns(spec, narrow_NW).items()}
    topk = TopK(
        ids_NK=fill("unit", allocate((n, k), np.int32)),
        logp_NK=logp_NK,
        tail_N=narrow["tail"],
        gold_N=narrow["gold"],
        gold_logp_N=narrow["gold_logp"],
        lse_NJ=narrow["lse_t"],
        tail_NJ=narrow["tail_t"],
        count_NK=fill("count", allocate((n, k), np.uint16)) if spec.selection == "sample" else None,
    )
    return topk, narrow["word"]
