"""How top-k rows become bytes and come back: the codecs `f16` and `grid`, and the cutting of shards into blocks.

- Both turn a log-probability into a 16-bit code that does not fall with −log p (`Half` and `Grid` of format.py). Codes
  are stored as differences in rank modulo 2^16: rows fall, so the differences are small and compress well.
- Every value is cut into byte planes, low byte first. Codes are stored rank-major (all positions' first rank, then all
  second ranks ...), since a rank's differences are alike; unit ids, which are not, position-major: no transposing.
- The gold unit is stored as its rank among the kept ids where its log-probability is that id's, bit for bit. Else the
  rank is 0, and two planes of their own, zero otherwise, hold the unit's id + 1 and its float16 log-probability.
- Tails are float16 logarithms (so −∞ survives), the temperatures' log-sum-exps float32.

Shape letters: N positions of a block, R rows of a plane, K kept ids, J temperatures, V units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from hkd.errors import HkdError
from hkd.labels import kernels
from hkd.labels.format import CODECS, Planes, ShardFile, StoreSpec, Utterances
from hkd.labels.kernels import TILE
from hkd.sparse import NO_GOLD, TopK

# Rows of the narrow planes, as the kernels make them.
NARROW = {"tail": (0, 2), "gold_rank": (2, 6), "gold": (6, 10), "gold_logp": (10, 12), "word": (12, 16)}


class Plane(NamedTuple):
    """One stored array of bytes: `rows` a position; `axis` is that of the positions."""

    rows: int
    axis: int

    def shape(self, num_positions: int) -> tuple[int, int]:
        """The array's shape for so many positions."""
        return (num_positions, self.rows) if self.axis == 0 else (self.rows, num_positions)

    def num_bytes(self, num_positions: int) -> int:
        return self.rows * num_positions


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
    units = {f"unit.{i}": Plane(rows=k, axis=0) for i in range(id_bytes)}
    return MappingProxyType(units | {name: Plane(rows=rows, axis=1) for name, rows in rows_of.items()})


def _code_numbers(spec: StoreSpec) -> tuple[int, np.float32, NDArray[np.float32]]:
    """How the kernels read codes: mode, step, table. Raises ValueError for a codec's table of another length."""
    codec = CODECS[spec.codec]
    if codec.mode is not None:
        return codec.mode, np.float32(spec.step), np.zeros(0, np.float32)
    value_C = np.ascontiguousarray(codec.values(spec.step), np.float32)
    if value_C.shape != (1 << 16,):
        raise ValueError(f"the codec {spec.codec} must give 65536 values, but gives {value_C.shape}")
    return kernels.TABLE, np.float32(spec.step), value_C


def _at_most_0(name: str, logp: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities, without what rounding put above 0. Raises HkdError where one is none."""
    if not (logp <= kernels.ABOVE_0).all():
        largest, rule = float(logp.max()), "must hold log-probabilities (at most 0, no NaN)"  # NaN where there is one
        raise HkdError(f"`{name}` {rule}, but its largest is {largest} instead.")
    return np.minimum(logp, 0)


def _split_by_codec(spec: StoreSpec, logp_NK: NDArray[np.float32], out_AKN: NDArray[np.uint8]) -> None:
    """As `kernels.split_codes`, for a codec that the kernels do not know. Raises HkdError for no log-probability."""
    code_NK = CODECS[spec.codec].codes(_at_most_0("logp", logp_NK), spec.step).astype(np.uint16)
    step_KN = np.diff(code_NK, axis=1, prepend=np.zeros((len(code_NK), 1), np.uint16)).T
    out_AKN[0, :, : len(code_NK)], out_AKN[1, :, : len(code_NK)] = step_KN & 0xFF, step_KN >> 8


def _halves(name: str, logp: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Log-probabilities → the bits of float16; finite ones stay so, −0 becomes 0. Raises HkdError where one is none."""
    bits = CODECS["f16"].codes(_at_most_0(name, logp), 0)
    return np.where(bits > 0, bits | 0x8000, 0).astype(np.uint16)


def _bytes_of(value_RN: NDArray[Any]) -> NDArray[np.uint8]:
    """(R, N) of b-byte numbers → (b · R, N) bytes, low byte first."""
    (rows, n), size = value_RN.shape, value_RN.dtype.itemsize
    byte_RNA = np.ascontiguousarray(value_RN, value_RN.dtype.newbyteorder("<")).view(np.uint8).reshape(rows, n, size)
    return np.ascontiguousarray(byte_RNA.transpose(2, 0, 1)).reshape(size * rows, n)


def encode(spec: StoreSpec, parts: Sequence[TopK], word_N: NDArray[np.int32], offset_B1: NDArray[np.int64]) -> Planes:
    """The rows of whole utterances → planes. The wide columns are read where they lie. parts: one or more, which hold
    the rows in order. Raises HkdError for rows that the store cannot hold."""
    _check_rows(spec, parts)
    n, k, offset_B1 = len(word_N), spec.width, np.asarray(offset_B1, np.int64)
    row_2N, _held = _rows(spec, parts, n)
    _check_ids(spec, gold_N := _column(parts, "gold_N", np.int32), least=NO_GOLD)
    unit_ANK = np.empty((spec.id_bytes, n, k), np.uint8)
    if not kernels.split_ids(row_2N, len(spec.inventory), unit_ANK):
        _check_ids(spec, _column(parts, "ids_NK", np.int32))
    code_AKN = np.empty((2, k, max(n, TILE)), np.uint8)
    lowest, per_nat = np.float32(-65534 * spec.step), np.float32(-1 / spec.step)
    mode = CODECS[spec.codec].mode
    if mode is None:
        _split_by_codec(spec, _column(parts, "logp_NK", np.float32), code_AKN)
    elif n and not kernels.split_codes(row_2N, mode, lowest, per_nat, code_AKN):
        _at_most_0("logp", _column(parts, "logp_NK", np.float32))
    word_N = np.ascontiguousarray(word_N, np.int32)
    gold_logp_N, tail_N = (_column(parts, name, np.float32) for name in ("gold_logp_N", "tail_N"))
    byte_RN = np.empty((16, n), np.uint8)
    if not kernels.split_narrow(row_2N, k, gold_N, gold_logp_N, tail_N, word_N, offset_B1, byte_RN):
        _at_most_0("tail", tail_N)
        _at_most_0("gold_logp", gold_logp_N)
        raise ValueError(f"the utterances must cover {n} positions in order, but do not")
    found: Planes = {name: byte_RN[first:end] for name, (first, end) in NARROW.items()}
    if spec.temperatures:
        lse_NJ, tail_NJ = (_column(parts, name, np.float32) for name in ("lse_NJ", "tail_NJ"))
        found |= {"lse_t": _bytes_of(lse_NJ.T.astype("<f4")), "tail_t": _bytes_of(_halves("tail_t", tail_NJ.T))}
    found |= {f"unit.{byte}": unit_NK for byte, unit_NK in enumerate(unit_ANK)}
    found |= {f"code.{byte}": code_KN[:, :n] for byte, code_KN in enumerate(code_AKN)}
    if spec.selection == "sample":
        found["count.0"], found["count.1"] = _bytes_of(_column(parts, "count_NK", "<u2").T).reshape(2, k, n)
    return {name: found[name].reshape(plane.shape(n)) for name, plane in layout(spec).items()}


def _column(parts: Sequence[TopK], name: str, dtype: Any) -> NDArray[Any]:
    return np.ascontiguousarray(np.concatenate([*map(attrgetter(name), parts)]), dtype)


def _rows(spec: StoreSpec, parts: Sequence[TopK], n: int) -> tuple[NDArray[np.int64], Sequence[TopK]]:
    """The addresses of each position's ids and log-probabilities, at least a tile's; and the rows to keep alive."""
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
    """Raises HkdError where rows are not of the store's shape."""
    shapes = {(part.ids_NK.shape[1], part.lse_NJ.shape[1], part.count_NK is not None) for part in parts}
    for k, j, counted in shapes - {(spec.width, len(spec.temperatures), spec.selection == "sample")}:
        raise HkdError(
            f"a row of this store must have k = {spec.width}, {len(spec.temperatures)} temperatures and the selection "
            f"{spec.selection}, but has k = {k}, {j} temperatures and {'counts' if counted else 'no counts'} instead."
        )


def _check_ids(spec: StoreSpec, id_N: NDArray[Any], *, least: int = 0) -> None:
    v, remedy = len(spec.inventory), "Check the teacher's inventory."
    if id_N.size and not least <= int(id_N.min()) <= int(id_N.max()) < v:
        raise HkdError(f"unit ids must lie in an inventory of {v} units, but some do not. {remedy}")


# Bytes → rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedBlock:
    """A block in the reader's cache: positions first, log-probabilities as 16-bit codes, which take half the memory."""

    unit_NK: NDArray[Any]  # uint16 or uint32
    code_NK: NDArray[np.uint16]
    count_NK: NDArray[np.uint16] | None
    narrow_WN: NDArray[np.int32]  # 32 bits each: gold, gold_logp, tail, word, lse_t, tail_t
    num_bytes: int  # in memory
    place_4: tuple[int, ...] = field(init=False)  # addresses of units, codes, narrow columns; number of positions

    def __post_init__(self) -> None:
        lie = (array.ctypes.data for array in (self.unit_NK, self.code_NK, self.narrow_WN))
        object.__setattr__(self, "place_4", (*lie, len(self.code_NK)))


def decoded_bytes(spec: StoreSpec) -> int:
    """Bytes of a position in memory, decoded."""
    wide = spec.id_bytes + 2 + (2 if spec.selection == "sample" else 0)
    return spec.width * wide + 4 * (4 + 2 * len(spec.temperatures))


def decode(spec: StoreSpec, planes: Planes, offset_B1: NDArray[np.int64]) -> DecodedBlock:
    """Planes → a decoded block. Raises HkdError where a number cannot be right."""
    n, j = int(offset_B1[-1]), len(spec.temperatures)
    if any(planes[name].shape != plane.shape(n) for name, plane in layout(spec).items()):
        _refuse_block("a plane is not of its utterances' length")
    narrow_WN = np.empty((4 + 2 * j, n), np.int32)
    real_WN = narrow_WN.view(np.float32)
    unit_NK, code_NK, count_NK = _joined(spec, planes, n)
    numbers = *_code_numbers(spec), len(spec.inventory)
    byte_RN = np.concatenate([planes[name] for name in NARROW])
    if not kernels.join_narrow(unit_NK, code_NK, byte_RN, np.asarray(offset_B1, np.int64), *numbers, narrow_WN):
        _refuse_block("a gold unit's rank lies beyond the kept ids, or the unit beyond the inventory")
    if j:
        real_WN[4 : 4 + j], real_WN[4 + j :] = _from_bytes(planes["lse_t"], "<f4"), _from_bytes(planes["tail_t"], "<f2")
    size = n * decoded_bytes(spec)
    return DecodedBlock(unit_NK=unit_NK, code_NK=code_NK, count_NK=count_NK, narrow_WN=narrow_WN, num_bytes=size)


def decode_block(spec: StoreSpec, file: ShardFile, block: int) -> DecodedBlock:
    """A block of a shard. Raises DamagedShardError, and as `decode`."""
    length_B = file.utterances.length_B[file.cuts[block] : file.cuts[block + 1]]
    return decode(spec, file.planes(block), np.concatenate([[0], np.cumsum(length_B)]))


def _from_bytes(plane: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """(b · R, N) bytes, low byte first → (R, N) numbers of b bytes."""
    size = np.dtype(dtype).itemsize
    low_RN, *higher = plane.reshape(size, plane.shape[0] // size, plane.shape[1])
    bits_RN = low_RN.astype(f"<u{size}")
    for byte, plane_RN in enumerate(higher, 1):
        bits_RN |= np.left_shift(plane_RN, 8 * byte, dtype=bits_RN.dtype)
    return bits_RN.view(dtype)


def _joined(
    spec: StoreSpec, planes: Planes, n: int
) -> tuple[NDArray[Any], NDArray[np.uint16], NDArray[np.uint16] | None]:
    """Units, codes and counts, from their bytes. Raises HkdError for a unit id beyond the inventory."""
    k, v, largest = spec.width, len(spec.inventory), -1
    unit_NK = np.empty((n, k), f"u{spec.id_bytes}")
    for byte in range(0, spec.id_bytes, 2):
        largest = kernels.join_ids(planes[f"unit.{byte}"], planes[f"unit.{byte + 1}"], 8 * byte, unit_NK)
    if unit_NK.size and largest >= v:
        _refuse_block(f"a stored unit id lies beyond the inventory of {v} units")
    byte_AKN = [planes["code.0"], planes["code.1"]]
    if n < TILE:  # at least a tile, as the kernel wants it
        byte_AKN = [np.pad(byte_KN, ((0, 0), (0, TILE - n))) for byte_KN in byte_AKN]
    code_NK = np.empty((max(n, TILE), k), np.uint16)
    kernels.join_codes(*map(np.ascontiguousarray, byte_AKN), code_NK)
    if spec.selection == "topk":
        return unit_NK, code_NK[:n], None
    count_KN = _from_bytes(np.concatenate([planes["count.0"], planes["count.1"]]), "<u2")
    return unit_NK, code_NK[:n], np.ascontiguousarray(count_KN.T)


def _refuse_block(reason: str) -> NoReturn:
    raise HkdError(f"{reason}: the shard is damaged. Run `hkd labels verify`.")


def gather(
    spec: StoreSpec, blocks: Sequence[DecodedBlock], run_B4: NDArray[np.int64], n: int
) -> tuple[TopK, NDArray[np.int32]]:
    """Runs of n positions in all → (TopK, word_N). run_B4: the block's index in `blocks`, first position there, end,
    place in the result. Raises HkdError for a run that lies outside its block."""
    k, j = spec.width, len(spec.temperatures)
    ids_NK, logp_NK = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    narrow_WN = np.empty((4 + 2 * j, n), np.int32)
    block_P4 = np.array([block.place_4 for block in blocks], np.int64).reshape(-1, 4)
    out = ids_NK, logp_NK.view(np.uint32), narrow_WN
    if not kernels.gather(block_P4, run_B4, spec.id_bytes, *_code_numbers(spec), *out):
        _refuse_block("an utterance lies outside its block")
    count_NK = None
    if spec.selection == "sample":
        counts = (blocks[block].count_NK[start:stop] for block, start, stop, _ in run_B4.tolist() if start < stop)
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


# Blocks ---------------------------------------------------------------------------------------------------------------


def block_cuts(length_B: NDArray[np.int64], block_positions: int) -> list[int]:
    """Runs of whole utterances: a block ends with the utterance that brings it to `block_positions` or more."""
    cuts, total = [0], 0
    for row, length in enumerate(length_B.tolist()):
        total += length
        if total >= block_positions and row + 1 < len(length_B):
            cuts.append(row + 1)
            total = 0
    return [*cuts, len(length_B)] if len(length_B) else [0]


def recut(spec: StoreSpec, utterances: Utterances, parts: list[Planes]) -> list[Planes]:
    """Blocks cut in any way → blocks cut as `block_cuts` says."""
    cuts = block_cuts(utterances.length_B, spec.block_positions)
    if len(parts) == len(cuts) - 1:
        return parts
    whole, planes = join(spec, parts), layout(spec)
    ends = pairwise(utterances.offset_B1[cuts].tolist())
    return [{n: whole[n][a:b] if p.axis == 0 else whole[n][:, a:b] for n, p in planes.items()} for a, b in ends]


def join(spec: StoreSpec, parts: list[Planes]) -> Planes:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts], axis=p.axis) for name, p in layout(spec).items()}
