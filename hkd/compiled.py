"""Functions in compiled code, by numba.

Compiled once for a machine and kept beside the source, else in the user's cache, else made anew by each process. They hold no lock of
Python's, so that several threads run them at once.
"""

from collections.abc import Callable
from typing import Any

import numba


def kernel(*signatures: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile for these types of arguments (numba's signatures and options), or take what was compiled before."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(list(signatures), cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no folder to keep it in
            return numba.njit(list(signatures), nogil=True, **options)(function)

    return compiled
