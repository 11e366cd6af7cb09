"""Functions in compiled code, by numba.

A function is compiled once a machine and kept beside the source, else in the user's cache; where neither can be
written, each process compiles it. It does not hold Python's lock, so several threads run it at once.
"""

from collections.abc import Callable
from typing import Any

import numba
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
