"""What the library says to whoever called it: the exceptions that reach the user, and how far long work has come.

One line each: "`NAME` must RULE, but is VALUE instead. REMEDY." The command line prints the line and nothing else.
"""

import difflib
import math
import os
import traceback
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Protocol


class HkdError(Exception):
    """A failure with a sentence for the user. Exit 1: the world's fault (disk, network, memory)."""

    exit_code = 1


class UserError(HkdError):
    """What the user gave cannot be used. Exit 2."""

    exit_code = 2


class MissingPackageError(HkdError):
    """An optional package is absent."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        remedy = f"Run: pip install 'hkd[{extra}]'"
        super().__init__(f"{purpose} needs the package {package}, which is not installed. {remedy}")


class InternalError(HkdError):
    """A fault of hkd itself, in one line. `trace`: where it came from, for a report."""

    def __init__(self, line: str, trace: str) -> None:
        super().__init__(line, trace)
        self.trace = trace

    def __str__(self) -> str:
        return str(self.args[0])


def internal_error(error: BaseException) -> InternalError:
    """Any exception that nobody expected, as one line that names the place in hkd where it came from, and its trace."""
    message = str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # Worker processes of torch and Ray put their whole trace into the message: its last line is what happened.
    said = lines[-1 if "Traceback (most recent call last)" in message else 0] if lines else ""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parent
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    where = f", in {(own or frames)[-1].filename}:{(own or frames)[-1].lineno}" if frames else ""
    return InternalError(
        f"internal error: {type(error).__name__}: {said[:300]}{where.replace(f'{package.parent}{os.sep}', '')}. "
        "Please report it with the output of the same command with --verbose.",
        "".join(traceback.format_exception(error)),
    )


def explained(error: BaseException) -> HkdError:
    """Any exception as one with a sentence for the user."""
    if isinstance(error, HkdError):
        return error
    if isinstance(error, MemoryError):
        remedy = "Lower batch_seconds (training) or the token budget (labelling), or close other programs."
        return HkdError(f"the memory ran out. {remedy}")
    if isinstance(error, OSError) and error.strerror:
        return HkdError(f"{error.strerror}{f': {error.filename}' if error.filename else ''}.")
    return internal_error(error)


def some(names: Iterable[object], most: int = 3, between: str = ", ") -> str:
    """The first few of the names, and how many more there are."""
    shown = list(map(str, names))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return between.join(shown[:most]) + more


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """ " Did you mean 'NAME'?" of the known name likeliest meant: one that contains `name`, or a similar one; or ""."""
    names = list(islice(known, 100_000))
    near = [other for other in names if name and name in other][:1]
    near = near or difflib.get_close_matches(name, names[:5000], n=1, cutoff=cutoff)
    return f" Did you mean '{near[0]}'?" if near else ""


def check_setting(name: str, value: Any, rule: str, holds: bool, remedy: str = "") -> None:
    """Raises UserError where a setting breaks its rule, or is a number that is infinite or NaN."""
    if not holds or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{name} must {rule}, but is {value} instead.{remedy and ' '}{remedy}")


def check_settings(config: object, names: str, rule: str, holds: Callable[[Any], bool], where: str = "") -> None:
    """`check_setting` of several attributes, called `WHERE.NAME`."""
    for name in names.split():
        value = getattr(config, name)
        check_setting(f"`{where}{name}`", value, rule, holds(value))


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Raises UserError where a setting is none of the words that are known."""
    check_setting(name, f"'{value}'", f"be one of {', '.join(known)}", value in known)


class Progress(Protocol):
    """Called with what is done, what there is in all (same unit), and short facts to show beside (loss=1.2)."""

    def __call__(self, done: float, total: float, **facts: float | str) -> None: ...


def no_progress(done: float, total: float, **facts: float | str) -> None:
    """Says nothing."""


def one_line(error: BaseException, most: int = 200) -> str:
    """All that an exception says, in one line; what it is, where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def first_line(error: BaseException) -> str:
    """What an exception of another library says, in one line without a full stop."""
    said = str(error).strip().splitlines()
    return said[0].strip().rstrip(".:")[:300] if said else type(error).__name__
