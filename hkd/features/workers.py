"""Errors of DataLoader's workers, raised in the process that asked, as they would be without workers."""

import pickle
from collections.abc import Iterable, Iterator
from typing import TypeVar

from hkd.errors import HkdError, UserError

T = TypeVar("T")


def portable(error: Exception) -> Exception:
    """The error as an item to send to the other process: its sentence and exit code alone where it cannot be pickled."""
    try:
        same = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        same = False
    if same:
        return error
    if isinstance(error, HkdError):
        return (UserError if error.exit_code == UserError.exit_code else HkdError)(str(error))
    return HkdError(f"{type(error).__name__}: {error}")


def raised(items: Iterable[T]) -> Iterator[T]:
    """The items; one that is an error is raised. Raises HkdError where a worker was killed."""
    rest = iter(items)
    while True:
        try:
            item = next(rest)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise HkdError(
                f"a worker process ended ({str(error).splitlines()[0][:200]}). It may have had too little memory (shared memory in a "
                "container): take fewer `workers`, or 0."
            ) from None
        if isinstance(item, Exception):
            raise item
        yield item
