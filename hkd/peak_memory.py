"""The most memory that this process has held, in megabytes of 2²⁰ bytes."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"  # proc(5): the peak becomes what is held now


def peak_mb() -> float:
    """Since the process began, or since `forget_peak`. On Linux not ru_maxrss, which counts the process that started this one, too."""
    if _STATUS.exists():
        return int(_STATUS.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def forget_peak() -> float:
    """Count anew from what is held now, where the system lets a process say so (Linux), and return that; what is free goes back to the
    system first."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_CLEAR_PEAK)
    return peak_mb()
