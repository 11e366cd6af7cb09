"""Small pipeline stages for tests of the runner: they count slowly into a file, and go on where they were."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hkd.errors import Progress, UserError
from hkd.files import write_bytes
from hkd.pipeline.runner import PipelineReport, Stage, linked, run_stages


def count(folder: Path, settings: Mapping[str, Any], progress: Progress) -> str:
    """Append the numbers below settings["to"] to settings["file"], atomically one after the other."""
    path = folder / settings["file"]
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number in range(len(lines), settings["to"]):
        time.sleep(settings.get("pause_s", 0.0))
        lines.append(str(number).encode())
        write_bytes(path, b"".join(line + b"\n" for line in lines))
        progress(number + 1, settings["to"])
    return f"{len(lines)} lines"


def fail(folder: Path, settings: Mapping[str, Any], progress: Progress) -> str:
    """Refuse."""
    raise UserError("to must be positive, but is 0 instead.")


def break_down(folder: Path, settings: Mapping[str, Any], progress: Progress) -> str:
    """Fail as a fault of hkd's own does, with an exception that cannot travel between processes."""

    class UnknownError(Exception):
        def __init__(self, one: str, other: str) -> None:
            super().__init__(f"{one}\n{other}")

    raise UnknownError("planted", "in a stage")


def die(folder: Path, settings: Mapping[str, Any], progress: Progress) -> str:
    """End as a process ends that the system kills for its memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def counting_stages(*, to: int = 20, pause_s: float = 0.0) -> dict[str, Stage]:
    """Two counters side by side and one that needs both."""

    def stage(name: str, *needs: str) -> Stage:
        settings = {"file": f"{name}.txt", "to": to, "pause_s": pause_s}
        inputs = tuple(f"{need}.txt" for need in needs) or ("source.txt",)
        return Stage(name=name, settings=settings, outputs=(f"{name}.txt",), action=count, inputs=inputs)

    return linked([stage("left"), stage("right"), stage("both", "left", "right")])


class Record:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def skipped(self, stage: str) -> None:
        """Note it."""
        self.events.append(("skipped", stage))

    def started(self, stage: str) -> None:
        """Note it."""
        self.events.append(("started", stage))

    def progress(self, stage: str, done: float, total: float, facts: Mapping[str, float | str]) -> None:
        """Note it."""
        self.events.append(("progress", stage))

    def finished(self, stage: str, summary: str, seconds: float) -> None:
        """Note it."""
        self.events.append(("finished", stage))


def run_counting(folder: Path, *, to: int = 20, pause_s: float = 0.0, overwrite: bool = False) -> PipelineReport:
    """Run the counting stages: what a test starts in a process of its own, to kill it."""
    return run_stages(folder, counting_stages(to=to, pause_s=pause_s), jobs=2, watcher=Record(), overwrite=overwrite)
