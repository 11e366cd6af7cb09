"""What the commands share: types of options, the project of the working folder, progress bars, results."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from rich import progress as rich
from rich.console import Console
from typer import Option

from hkd.config import ProjectSettings, merge, parse_overrides
from hkd.errors import Progress

Json = Annotated[bool, Option("--json", help="The result as JSON on stdout.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace what is there and was made of something else.")]
Device = Annotated[str | None, Option(help="auto, cpu or cuda. [auto]")]
_SET_HELP = "Any other setting; `hkd config show COMMAND` explains them. May be repeated."
Set = Annotated[list[str] | None, Option("--set", metavar="A.B=C", help=_SET_HELP)]

QUIET_INTERVAL_S = 10.0
FACTS_WIDTH = 60  # characters, where the terminal has room for them
NAME_WIDTH = 24
BAR_WIDTH, SHORT_BAR_WIDTH, BESIDE_BAR = 24, 8, 30  # BESIDE_BAR: share, time gone, time to go, and the blanks between


def console() -> Console:
    """Stderr, where everything goes that is not the result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line for people, on stderr."""
    console().print(text, markup=False)


def emit(value: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """The result, on stdout: JSON for machines, else as `render` writes it for people."""
    # else \u escapes, which say the same to a machine
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write((json.dumps(value, ensure_ascii=not is_unicode, indent=2) if as_json else render(value)) + "\n")
    sys.stdout.flush()


def project() -> ProjectSettings:
    """The project of the working directory."""
    return ProjectSettings.load(Path())


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def with_options(table: Mapping[str, Any], assignments: list[str] | None, own: str, **options: Any) -> dict[str, Any]:
    """A table of hkd.toml, over it `--set` (where the table's name `own` may stand before), over that given options."""
    return merge(merge(table, parse_overrides(assignments or (), own)), given(**options))


def show_facts(facts: Mapping[str, float | str], width: int = FACTS_WIDTH) -> str:
    """Progress facts in a line, loss and error rates first, numbers in four digits; what does not fit is left out."""
    shown = ""
    for name, value in sorted(facts.items(), key=lambda fact: not fact[0].endswith("wer") and fact[0] != "loss"):
        fact = f"{name}={value if isinstance(value, str) else format(value, '.4g')}"
        if len(shown) + len(fact) < width:
            shown += f" {fact}"
    return shown.strip()


class Bars:
    """Work under way, on stderr: on a terminal a bar each, with share and times; elsewhere a line every ten seconds."""

    def __init__(self, bars: rich.Progress | None, *, facts_width: int = FACTS_WIDTH) -> None:
        self._bars, self._facts_width = bars, facts_width
        self._tasks: dict[str, rich.TaskID] = {}
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._last: dict[str, tuple[float, float, Mapping[str, float | str]]] = {}  # of what is under way

    def begin(self, name: str) -> None:
        """Begin to show it, without a word."""
        self._began[name] = self._said[name] = time.monotonic()
        if self._bars is not None:
            self._tasks[name] = self._bars.add_task(name, total=None, facts="")

    def progress(self, name: str, done: float, total: float, facts: Mapping[str, float | str]) -> None:
        """How far it has come."""
        self._last[name] = done, total, facts
        if self._bars is not None:
            shown = show_facts(facts, self._facts_width - max(0, len(name) - NAME_WIDTH))
            self._bars.update(self._tasks[name], completed=done, total=total, facts=shown)
        elif done >= total or time.monotonic() - self._said[name] >= QUIET_INTERVAL_S:
            self._say(name, self._began[name])

    def _say(self, name: str, began: float) -> None:
        self._said[name] = now = time.monotonic()
        done, total, facts = self._last.get(name, (0.0, 0.0, {}))
        gone, share = now - began, done / total if total else 0.0
        to_go = f", {gone * (1 - share) / share:.0f} s to go" if share else ""
        say(f"{name}: {share:.0%} after {gone:.0f} s{to_go} {show_facts(facts)}".rstrip())

    def say_again(self) -> None:
        """How far that has come of which nothing has been heard for ten seconds."""
        for name, began in list(self._began.items()):  # a stage may end while another thread is here
            if time.monotonic() - self._said[name] >= QUIET_INTERVAL_S:
                self._say(name, began)

    def end(self, name: str) -> None:
        """It has come to its end."""
        self._began.pop(name)
        if self._bars is not None and name in self._last:
            self._bars.update(self._tasks[name], completed=self._last[name][1])

    def skipped(self, stage: str) -> None:
        """A stage that is up to date."""

    def started(self, stage: str) -> None:
        """A stage has started."""
        self.begin(stage)
        if self._bars is None:
            say(f"{stage}: started")

    def finished(self, stage: str, summary: str, seconds: float) -> None:
        """A stage has ended."""
        self._began.pop(stage, None)
        if self._bars is None:
            say(f"{stage}: {summary} ({seconds:.0f} s)")
        else:
            self._bars.remove_task(self._tasks.pop(stage))
            self._bars.console.print(f"✓ {stage}: {summary} ({seconds:.0f} s)", markup=False)


@contextmanager
def bars() -> Iterator[Bars]:
    """Bars while something is done."""
    terminal = console()
    if not terminal.is_terminal:
        plain, ended = Bars(None), threading.Event()

        def watch() -> None:
            while not ended.wait(1.0):
                plain.say_again()

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield plain
        finally:
            ended.set()
        return
    room = terminal.width - NAME_WIDTH - BESIDE_BAR
    width = BAR_WIDTH if room >= BAR_WIDTH + FACTS_WIDTH // 2 else SHORT_BAR_WIDTH
    name, facts = rich.TextColumn(f"{{task.description:<{NAME_WIDTH}}}"), rich.TextColumn("{task.fields[facts]}")
    times = rich.TimeElapsedColumn(), rich.TimeRemainingColumn()
    columns = (name, rich.BarColumn(bar_width=width), rich.TaskProgressColumn(), *times, facts)
    with rich.Progress(*columns, console=terminal) as shown:
        yield Bars(shown, facts_width=min(FACTS_WIDTH, room - width))


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """The bar of a command that does one thing."""
    with bars() as shown:
        shown.begin(title)
        yield lambda done, total, **facts: shown.progress(title, done, total, facts)
        shown.end(title)
