"""What the commands share: the project of the working folder, progress bars, and results for people or machines."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hkd.config import Project, merge, parse_overrides
from hkd.progress import Progress as ProgressCallback

Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there and was made of something else.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda. [auto]")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Any other setting; `hkd config show COMMAND` explains them. May be repeated."),
]

QUIET_INTERVAL_S = 10.0
FACTS_WIDTH = 60


def console() -> Console:
    """Stderr, where everything goes that is not the result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line for people, on stderr."""
    console().print(text, markup=False)


def emit(value: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """The result, on stdout: JSON for machines, else as `render` writes it for people."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")  # else \u escapes, which say the same to a machine
    sys.stdout.write((json.dumps(value, ensure_ascii=not is_unicode, indent=2) if as_json else render(value)) + "\n")
    sys.stdout.flush()


def project() -> Project:
    """The project of the working directory."""
    return Project.load(Path())


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def with_options(table: Mapping[str, Any], assignments: Sequence[str] | None, own: str, **options: Any) -> dict[str, Any]:
    """A table of hkd.toml, over it `--set` (where the table's name `own` may stand before), over that the options that were given."""
    return merge(merge(table, parse_overrides(assignments or (), own)), given(**options))


def show_facts(facts: Mapping[str, float | str]) -> str:
    """Progress facts in a line, loss and error rates first; numbers with four significant digits; what does not fit is left out."""
    shown = ""
    for name, value in sorted(facts.items(), key=lambda fact: not fact[0].endswith("wer") and fact[0] != "loss"):
        fact = f"{name}={value if isinstance(value, str) else format(value, '.4g')}"
        if len(shown) + len(fact) < FACTS_WIDTH:
            shown += f" {fact}"
    return shown.strip()


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """A bar with share, time gone and time to go on a terminal; elsewhere a line every ten seconds, on stderr."""
    terminal = console()
    if terminal.is_terminal:
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, TextColumn("{task.fields[facts]}"), console=terminal) as bar:
            task = bar.add_task(title, total=None, facts="")

            def draw(done: float, total: float, **facts: float | str) -> None:
                bar.update(task, completed=done, total=total, facts=show_facts(facts))

            yield draw
        return
    started = last = time.monotonic()

    def write(done: float, total: float, **facts: float | str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < QUIET_INTERVAL_S and done < total:
            return
        last = now
        share = done / total if total else 1.0
        to_go = (now - started) * (1 - share) / share if share else float("inf")
        say(f"{title}: {share:.0%} after {now - started:.0f} s, {to_go:.0f} s to go {show_facts(facts)}".rstrip())

    yield write
