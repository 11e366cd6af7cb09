"""Memory that is used again once nobody holds a view of it: fresh pages cost more than the work that is done in them.

Both kinds are safe to use from several threads. New buffers are cut from slabs, for which NumPy asks for huge pages: a fault of 4 KiB
costs as much as decoding ten positions.
"""

import math
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]  # shape, dtype → memory, as np.empty
SMALL_BYTES, LARGE_BYTES = 1 << 16, 1 << 24  # below, the allocator has pages at hand; above, too much would be held
SLAB_BYTES, ALIGNMENT = 1 << 24, 64
HUGE_PAGE = 1 << 21  # only where a whole one fits is it used
UNUSED_REFERENCES = 2  # the list's and getrefcount's own: no view's base


class _Pool(ABC):
    """Up to `count` buffers."""

    def __init__(self, count: int = 12) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._buffers: list[NDArray[np.uint8]] = []
        self._slab = memoryview(b"")  # what is left of it

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Like np.empty."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if not SMALL_BYTES <= num_bytes <= LARGE_BYTES:
            return np.empty(shape, dtype)
        with self._lock:
            return np.ndarray(shape, dtype, self._buffer(num_bytes))

    def _new(self, num_bytes: int) -> NDArray[np.uint8]:
        """A buffer that keeps a slab alive; views of its views have it as their base, since the slab is no array to NumPy."""
        wanted = num_bytes + num_bytes // 8  # the next one may be a little larger
        if len(self._slab) < wanted:
            slab = np.empty(max(SLAB_BYTES, wanted) + HUGE_PAGE, np.uint8)
            self._slab = memoryview(slab)[-slab.ctypes.data % HUGE_PAGE :]  # type: ignore[arg-type]
        part, self._slab = self._slab[:wanted], self._slab[-(-wanted // ALIGNMENT) * ALIGNMENT :]
        return np.frombuffer(part, np.uint8)

    @abstractmethod
    def _buffer(self, num_bytes: int) -> NDArray[np.uint8]:
        """One of so many bytes or more that nobody uses; under the lock."""


class Buffers(_Pool):
    """For what lives shortly: finds out by itself when a buffer is free again."""

    def _buffer(self, num_bytes: int) -> NDArray[np.uint8]:
        place = _unused(self._buffers, num_bytes)
        if place is not None:
            return self._buffers[place]
        if len(self._buffers) == self._count:
            self._buffers.pop(0)
        self._buffers.append(self._new(num_bytes))
        return self._buffers[-1]


class Spares(_Pool):
    """For what lives long: holds only what was handed back."""

    def _buffer(self, num_bytes: int) -> NDArray[np.uint8]:
        place = _unused(self._buffers, num_bytes)
        return self._new(num_bytes) if place is None else self._buffers.pop(place)

    def give(self, array: NDArray[Any]) -> None:
        """Use the memory below an array of `allocate` again once nobody has a view of it. Other arrays are left alone."""
        buffer = array.base
        part = buffer.base if isinstance(buffer, np.ndarray) else None
        if isinstance(part, memoryview) and isinstance(part.obj, np.ndarray):  # no file's
            with self._lock:
                if not any(buffer is spare for spare in self._buffers):
                    self._buffers.append(buffer)
                    del self._buffers[: -self._count]


def _unused(buffers: list[NDArray[np.uint8]], num_bytes: int) -> int | None:
    for place in range(len(buffers)):
        if buffers[place].nbytes >= num_bytes and sys.getrefcount(buffers[place]) == UNUSED_REFERENCES:
            return place
    return None
