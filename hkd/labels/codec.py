"""How top-k rows become bytes: the codecs `f16` and `grid`. Back: `hkd.labels.decoding`.

- Both turn a log-probability into a 16-bit code that does not fall with −log p. `f16`: the bits of −log p as a float16. `grid`: −log p
  in steps of `step` nats, rounded half to even; 65535 is −∞.
- Codes are stored as differences in rank modulo 2^16: rows fall, so the differences are small and compress well.
- Every value is cut into byte planes, low byte first. Codes are stored rank-major (all positions' first rank, then all second
  ranks ...), since a rank's differences are alike; unit ids are stored position-major, since they are not and transposing costs time.
- The gold unit is stored as its rank among the kept ids where its log-probability is that id's, bit for bit (0: it is not; then
  the unit's id + 1 and its float16 log-probability stand in their own planes, which are zero otherwise).
- The tails stay float16 (of log, so −∞ survives), the temperatures' log-sum-exps float32.

Shape letters: N positions of a block, R rows of a plane, K kept ids, J temperatures, V units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hkd.errors import HkdError
from hkd.labels import encoding_kernels as kernels
from hkd.labels.encoding_kernels import F16, GRID, TILE
from hkd.labels.schema import StoreSpec
from hkd.sparse import NO_GOLD, TopK

Planes = dict[str, NDArray[Any]]
# Rows of the narrow planes, as the kernels make them.
NARROW = {"tail": (0, 2), "gold_rank": (2, 6), "gold": (6, 10), "gold_logp": (10, 12), "word": (12, 16)}


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
    return _layout(spec.selection, spec.width, len(spec.temperatures), spec.id_bytes)


@lru_cache
def _layout(selection: str, k: int, j: int, id_bytes: int) -> Mapping[str, Plane]:
    rows_of = {"code.0": k, "code.1": k}
    if selection == "sample":
        rows_of |= {"count.0": k, "count.1": k}
    rows_of |= {"tail": 2, "gold_rank": 4, "gold": 4, "gold_logp": 2, "word": 4}
    if j:
        rows_of |= {"lse_t": 4 * j, "tail_t": 2 * j}
    byte = np.dtype("u1")
    units = {f"unit.{i}": Plane(dtype=byte, rows=k, axis=0) for i in range(id_bytes)}
    return MappingProxyType(units | {name: Plane(dtype=byte, rows=rows, axis=1) for name, rows in rows_of.items()})


def mode_of(spec: StoreSpec) -> int:
    """What 16 bits of a log-probability are, as the kernels call it."""
    return {"f16": F16, "grid": GRID}[spec.codec]


def _refuse_logp(name: str, logp: NDArray[np.float32]) -> NoReturn:
    largest = float(logp.max())  # NaN where there is one
    raise HkdError(f"`{name}` must hold log-probabilities (at most 0, no NaN), but its largest is {largest} instead.")


def _refuse_ids(spec: StoreSpec) -> NoReturn:
    v = len(spec.inventory)
    raise HkdError(f"unit ids must lie in an inventory of {v} units, but some do not. Check the teacher's inventory.")


def _halves(name: str, logp: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Log-probabilities → the bits of float16; finite ones stay finite, −0 becomes 0. Raises HkdError where one is none."""
    half: NDArray[np.uint16] = np.empty(logp.shape, np.uint16)
    if not kernels.to_halves(np.ascontiguousarray(logp, np.float32).reshape(-1), half.reshape(-1)):
        _refuse_logp(name, logp)
    return half


def _bytes_of(value_RN: NDArray[Any]) -> NDArray[np.uint8]:
    """(R, N) of b-byte numbers → (b · R, N) bytes, low byte first."""
    value_RN = np.ascontiguousarray(value_RN)
    rows, n = value_RN.shape
    size = value_RN.dtype.itemsize
    parts = value_RN.astype(value_RN.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(rows, n, size)
    return np.ascontiguousarray(parts.transpose(2, 0, 1)).reshape(size * rows, n)


def encode(spec: StoreSpec, parts: Sequence[TopK], word_N: NDArray[np.int32], offset_B1: NDArray[np.int64]) -> Planes:
    """The rows of whole utterances → planes. The wide columns are read where they lie.

    parts: one or more, which hold the rows in order. Raises HkdError for rows that the store cannot hold.
    """
    _check_rows(spec, parts)
    planes = _bytes(spec, parts, word_N, offset_B1)
    return {name: planes[name].reshape(plane.shape(len(word_N))) for name, plane in layout(spec).items()}


def _bytes(spec: StoreSpec, parts: Sequence[TopK], word_N: NDArray[np.int32], offset_B1: NDArray[np.int64]) -> Planes:
    n, k, offset_B1 = len(word_N), spec.width, np.asarray(offset_B1, np.int64)
    row_2N, _held = _rows(spec, parts, n)
    _check_ids(spec, gold_N := _column(parts, "gold_N", np.int32), least=NO_GOLD)
    unit_ANK = np.empty((spec.id_bytes, n, k), np.uint8)
    if not kernels.split_ids(row_2N, len(spec.inventory), unit_ANK):
        _refuse_ids(spec)
    code_AKN = np.empty((2, k, max(n, TILE)), np.uint8)
    lowest, per_nat = np.float32(-65534 * spec.step), np.float32(-1 / spec.step)
    if n and not kernels.split_codes(row_2N, mode_of(spec), lowest, per_nat, code_AKN):
        _refuse_logp("logp", _column(parts, "logp_NK", np.float32))
    word_N = np.ascontiguousarray(word_N, np.int32)
    gold_logp_N, tail_N = (_column(parts, name, np.float32) for name in ("gold_logp_N", "tail_N"))
    byte_RN = np.empty((16, n), np.uint8)
    if not kernels.split_narrow(row_2N, k, gold_N, gold_logp_N, tail_N, word_N, offset_B1, byte_RN):
        _refuse_logp(*(("tail", tail_N) if not (tail_N <= kernels.ABOVE_0).all() else ("gold_logp", gold_logp_N)))
    found: Planes = {name: byte_RN[first:end] for name, (first, end) in NARROW.items()}
    if spec.temperatures:
        lse_NJ, tail_NJ = (_column(parts, name, np.float32) for name in ("lse_NJ", "tail_NJ"))
        found |= {"lse_t": _bytes_of(lse_NJ.T.astype("<f4")), "tail_t": _bytes_of(_halves("tail_t", tail_NJ.T))}
    found |= {f"unit.{byte}": unit_NK for byte, unit_NK in enumerate(unit_ANK)}
    found |= {f"code.{byte}": code_KN[:, :n] for byte, code_KN in enumerate(code_AKN)}
    if spec.selection == "sample":
        found["count.0"], found["count.1"] = _bytes_of(_column(parts, "count_NK", "<u2").T).reshape(2, k, n)
    return found


def _column(parts: Sequence[TopK], name: str, dtype: Any) -> NDArray[Any]:
    """A column of all parts."""
    return np.ascontiguousarray(np.concatenate([*map(attrgetter(name), parts)]), dtype)


def _rows(spec: StoreSpec, parts: Sequence[TopK], n: int) -> tuple[NDArray[np.int64], Sequence[TopK]]:
    """Where each position's ids and log-probabilities lie, at least a tile's, and who holds them meanwhile."""
    place_P3, row_2N = np.empty((len(parts), 3), np.int64), np.zeros((2, max(n, TILE)), np.int64)
    try:
        for p, part in enumerate(parts):
            kernels.note_place(part.ids_NK, part.logp_NK, place_P3, p)
    except TypeError:  # not contiguous, or of other types
        whole = TopK.concatenate(parts)
        _check_ids(spec, whole.ids_NK)
        ids_NK, logp_NK = np.ascontiguousarray(whole.ids_NK, np.int32), np.ascontiguousarray(whole.logp_NK, np.float32)
        parts, place_P3 = [replace(whole, ids_NK=ids_NK, logp_NK=logp_NK)], place_P3[:1]
        kernels.note_place(ids_NK, logp_NK, place_P3, 0)
    if not kernels.row_places(place_P3, n, parts[0].k, row_2N):
        raise ValueError(f"parts must hold {n} positions, but do not")
    return row_2N, parts


def _check_rows(spec: StoreSpec, parts: Sequence[TopK]) -> None:
    """Raises HkdError where rows are not of the store's shape or have other gold units than its inventory's."""
    wanted = spec.width, len(spec.temperatures), spec.selection == "sample"
    for k, j, counted in {(part.ids_NK.shape[1], part.lse_NJ.shape[1], part.count_NK is not None) for part in parts} - {wanted}:
        raise HkdError(
            f"a row of this store must have k = {spec.width}, {len(spec.temperatures)} temperatures and the selection {spec.selection}, "
            f"but has k = {k}, {j} temperatures and {'counts' if counted else 'no counts'} instead."
        )


def _check_ids(spec: StoreSpec, id_N: NDArray[Any], *, least: int = 0) -> None:
    """Raises HkdError for a unit beyond the inventory."""
    if id_N.size and not least <= int(id_N.min()) <= int(id_N.max()) < len(spec.inventory):
        _refuse_ids(spec)
