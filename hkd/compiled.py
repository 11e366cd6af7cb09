"""Functions in compiled code, by numba.

Compiled once for a machine and kept beside the source, else in the user's cache, else made anew by each process. They hold no lock of
Python's, so that several threads run them at once.
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
    """For kernels: so many numbers that lie at an address, which somebody holds meanwhile. For what comes in many arrays."""
    return numba.carray(_pointer(address), (count,), dtype)  # type: ignore[attr-defined, call-arg]


def array_type(dtype: Any, ndim: int, *, readonly: bool = True) -> Any:
    """A contiguous array in signatures. `readonly`: only read; such a kernel takes others, too."""
    return types.Array(dtype, ndim, "C", readonly=readonly)


def kernel(*signatures: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile for these types of arguments (numba's signatures and options), or take what was compiled before."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(list(signatures), cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no folder to keep it in
            return numba.njit(list(signatures), nogil=True, **options)(function)

    return compiled
