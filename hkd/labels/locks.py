"""Locks between processes of one machine: flock on a file that is made for it and removed after."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock on a file, made for it and removed after; False where another holds it and `wait` is false.

    The folder goes too where it is empty then. The lock of a killed process is free. Raises OSError.
    """
    handle = None
    while handle is None:
        with contextlib.suppress(FileExistsError):  # exist_ok raises where the folder goes at that moment
            path.parent.mkdir(parents=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder went with the last lock
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(handle).st_ino != path.stat().st_ino:  # removed by the one who held it
                raise FileNotFoundError
        except BlockingIOError:
            os.close(handle)
            yield False
            return
        except FileNotFoundError:
            os.close(handle)
            handle = None
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):  # others are in it
            path.parent.rmdir()
