"""Functions in compiled code, by numba; and the k likeliest units of rows of logits, which `select_topk` runs on CPU.

A function is compiled once a machine and kept beside the source, else in the user's cache; where neither can be
written, each process compiles it. It does not hold Python's lock, so several threads run it at once.

- A row is read once and becomes integers in the order of its scores. The maxima of groups give a bound below the k-th
  largest, so that few candidates are sorted. One pass then sums the exponentials of all units that are not kept.
- Each row is done by itself, in a fixed order of operations, so its bits do not depend on other rows.

Shape letters: N rows, V units, K kept ids, G groups, E excluded units, T temperatures, C candidates.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic


@intrinsic
def _pointer(_typing: Any, _address: Any) -> Any:
    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), made


@numba.njit
def array_at(address: Any, count: Any, dtype: Any) -> Any:
    """In kernels: `count` numbers at an address. For data in many arrays, which the caller must keep alive."""
    return numba.carray(_pointer(address), (count,), dtype)  # type: ignore[attr-defined, call-arg]


def array_type(dtype: Any, ndim: int, *, readonly: bool = True) -> Any:
    """A contiguous array in signatures. `readonly`: the kernel only reads it; writable arrays are taken, too."""
    return types.Array(dtype, ndim, "C", readonly=readonly)


def kernel(*signatures: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile for these types of arguments (numba's signatures and options), or load what was compiled before."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(list(signatures), cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no folder to keep it in
            return numba.njit(list(signatures), nogil=True, **options)(function)

    return compiled


_NONE = np.int32(-(2**31))  # the order of what is no candidate: below that of −inf
_MAGNITUDE = np.int32(2**31 - 1)
_NEVER = np.int32(np.int32(-8388608) ^ _MAGNITUDE)  # the order of −inf
_UNIT = np.uint64(0xFFFFFFFF)  # the part of a key that is its unit
_PIECE = 4096  # exponentials that are summed in single precision
_TINY = 1e-30  # sums below what the exponentials give exactly


def _part(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    inside: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled: Callable[[Callable[..., Any]], Any] = numba.njit(error_model="numpy", **inside, **options)
    return compiled


@_part()
def _order(bits: Any) -> Any:
    """A float32's bits → an integer that is ordered as the numbers are."""
    return np.int32(bits ^ (np.int32(bits >> np.int32(31)) & _MAGNITUDE))


@_part()
def _score(order: Any) -> Any:
    return np.int32(order ^ (np.int32(order >> np.int32(31)) & _MAGNITUDE)).view(np.float32)


@_part()
def _unit(key: Any) -> Any:
    return np.int32(key & _UNIT)


@_part()
def _exp(x: Any) -> Any:
    """exp(x) of a float32 that is at most 0, to 1e-7; about 1e-38 below −87. Cephes' expf, without branches."""
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    n = np.int32(x * np.float32(1.44269504088896341) - np.float32(0.5))
    r = (x - np.float32(n) * np.float32(0.693359375)) - np.float32(n) * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * (r * r) + r + np.float32(1.0)
    return y * np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@_part(fastmath={"reassoc", "contract"})
def _mass(order_V: Any, top: Any, inverse: Any) -> Any:
    total = 0.0
    for start in range(0, len(order_V), _PIECE):
        part = order_V[start : start + _PIECE]
        of_part = np.float32(0.0)
        for i in range(len(part)):
            of_part += _exp((_score(part[i]) - top) * np.float32(inverse))
        total += np.float64(of_part)
    return total


@_part()
def _largest(order_V: Any, best_G: Any) -> None:
    """The largest of each group: group g holds the units g, g + G, g + 2 G …"""
    for g in range(len(best_G)):
        best_G[g] = order_V[g]
    for start in range(len(best_G), len(order_V), len(best_G)):
        part = order_V[start : start + len(best_G)]
        for g in range(len(part)):
            best_G[g] = max(best_G[g], part[g])


@_part()
def _bound(best_G: Any, k: Any) -> Any:
    """A value that at least k groups reach (all, of fewer groups), and seldom more than 1.5 k, found by halving."""
    low = high = np.int64(_NONE) + 1
    for g in range(len(best_G)):
        high = max(high, np.int64(best_G[g]) + 1)
    while high - low > 1:
        middle = np.int32((low + high) >> 1)
        count = np.int32(0)
        for g in range(len(best_G)):
            count += np.int32(best_G[g] >= middle)
        if count < k:
            high = np.int64(middle)
            continue
        low = np.int64(middle)
        if count <= k + (k >> 1):
            break
    return np.int32(low)


@_part()
def _candidates(order_V: Any, best_G: Any, bound: Any, key_C: Any) -> None:
    """The keys of the units that reach the bound, by falling score, equal ones by id."""
    count = 0
    for g in range(len(best_G)):
        if best_G[g] >= bound:
            for v in range(g, len(order_V), len(best_G)):
                if order_V[v] >= bound:
                    below = np.uint64(np.int64(_MAGNITUDE) - np.int64(order_V[v]))
                    key_C[count] = (below << np.uint64(32)) | np.uint64(v)
                    count += 1
    key_C[:count].sort()


@_part()
def _ties_by_id(ids_K: Any, logp_K: Any) -> None:
    """Sort nearly sorted units by log-probability, then by id: different scores may round to one log-probability."""
    for place in range(1, len(ids_K)):
        unit, logp, at = ids_K[place], logp_K[place], place
        while at and (logp_K[at - 1] < logp or (logp_K[at - 1] == logp and ids_K[at - 1] > unit)):
            ids_K[at], logp_K[at] = ids_K[at - 1], logp_K[at - 1]
            at -= 1
        ids_K[at], logp_K[at] = unit, logp


@_part()
def _keep(order_V: Any, key_C: Any, gold: Any, ids_K: Any, kept_K: Any) -> None:
    """Take the first K candidates out of the row; gold replaces the last one where it is not among them."""
    k = len(ids_K)
    missing = k > 0 and gold >= 0
    for place in range(k):
        ids_K[place] = _unit(key_C[place])
        missing &= ids_K[place] != gold
    if missing:
        ids_K[k - 1] = gold
    for place in range(k):
        kept_K[place] = order_V[ids_K[place]]
        order_V[ids_K[place]] = _NEVER


@_part()
def _log_masses(rest_V: Any, kept_K: Any, top: Any, inverse: Any) -> Any:
    """log Σ_v exp((score_v − top) / temperature), and the log share of the units that are not kept in it."""
    rest = _mass(rest_V, top, inverse)
    mass = np.log(rest + _mass(kept_K, top, inverse))
    if not rest < _TINY:
        return mass, np.log(rest) - mass
    highest = _NEVER
    for v in range(len(rest_V)):
        highest = max(highest, rest_V[v])
    if highest == _NEVER:
        return mass, -np.inf
    own = _score(highest)  # as reference
    apart = np.float64(own) - np.float64(top)
    return mass, np.log(_mass(rest_V, own, inverse)) + apart * inverse - mass


_i4, _f4, _f8 = types.int32, types.float32, types.float64
_GIVEN = _i4[:, ::1], _i4[::1], _i4[::1], _f8[::1], types.int64
_FILLED_IN = _i4[:, ::1], _f4[:, ::1], _f4[::1], _f8[:, ::1], _f8[:, ::1]


@kernel(types.void(*_GIVEN, *_FILLED_IN), error_model="numpy")
def select_rows(
    bits_NV: Any, gold_N: Any, excluded_E: Any, inverse_T: Any, groups: Any,
    ids_NK: Any, logp_NK: Any, gold_logp_N: Any, mass_NT: Any, tail_NT: Any,
) -> None:  # fmt: skip
    """For each row of float32 scores (their bits) fill in the K ids, their log-probabilities, gold's (−1: none), and at
    each temperature log Σ_v exp((score_v − best) / T) and the log share of what is not kept in it. Unchecked: gold and
    excluded units must exist, and at least K units must not be excluded."""
    size, k = bits_NV.shape[1], ids_NK.shape[1]
    order_V, best_G = np.empty(size, np.int32), np.empty(groups, np.int32)
    key_C, kept_K = np.empty(size, np.uint64), np.empty(k, np.int32)
    for n in range(len(bits_NV)):
        bits_V = bits_NV[n]
        for v in range(size):
            order_V[v] = _order(bits_V[v])
        for unit in excluded_E:
            order_V[unit] = _NONE
        _largest(order_V, best_G)
        _candidates(order_V, best_G, _bound(best_G, k), key_C)
        highest = order_V[_unit(key_C[0])] if k else _NEVER
        for unit in excluded_E:
            order_V[unit] = _order(bits_V[unit])
            highest = max(highest, order_V[unit])
        top, gold = _score(highest), gold_N[n]
        _keep(order_V, key_C, gold, ids_NK[n], kept_K)
        for t in range(len(inverse_T)):
            mass_NT[n, t], tail_NT[n, t] = _log_masses(order_V, kept_K, top, inverse_T[t])
        lse = np.float64(top) + mass_NT[n, 0]
        gold_logp = np.float64(_score(_order(bits_V[gold]))) - lse if gold >= 0 else -np.inf
        gold_logp_N[n] = np.float32(gold_logp)
        for place in range(k):
            logp_NK[n, place] = np.float32(np.float64(_score(kept_K[place])) - lse)
        _ties_by_id(ids_NK[n], logp_NK[n])


def number_of_groups(v: int, k: int) -> int:
    """Groups of √(v / k) units: searching for the best groups, and inside them, then costs the same."""
    return -(-v // (1 << max(0, round(math.log2(v / max(1, k)) / 2))))
