"""How long work tells how far it has come: the library calls, the command line draws."""

from typing import Protocol


class Progress(Protocol):
    """Called with what is done, what there is in all (same unit), and short facts to show beside (loss=1.2, kept="98
    %")."""

    def __call__(self, done: float, total: float, **facts: float | str) -> None: ...


def no_progress(done: float, total: float, **facts: float | str) -> None:
    """Says nothing."""
