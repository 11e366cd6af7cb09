"""What a run leaves beside its checkpoints: whose folder it is, metrics.jsonl, timing.jsonl, the lock, and the stop
signals.

- metrics.jsonl holds nothing that differs between a disturbed and an undisturbed run (no clock); resuming cuts it back
  to the checkpoint's length. Times go to timing.jsonl, which only grows.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hkd.artefact import check_same
from hkd.errors import HkdError
from hkd.files import digest_of_json, lock, sync, write_json

IDENTITY = "identity.json"


def begun_with(folder: Path) -> dict[str, Any]:
    """What a run's folder says it began with; nothing where it did not begin."""
    path = folder / IDENTITY
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def claim(folder: Path, identity: Mapping[str, Any]) -> str:
    """Write identity.json, or compare it with the one that exists; returns the digest. Raises UserError naming what
    differs."""
    identity = json.loads(json.dumps(identity))
    if not (folder / IDENTITY).exists():
        write_json(folder / IDENTITY, identity)
    remedy = "Undo the change or take another folder."
    check_same(f"the run in {folder} must go on as it began", begun_with(folder), identity, remedy)
    return digest_of_json(identity)


def finished(folder: Path, identity: Mapping[str, Any]) -> dict[str, float] | None:
    """The metrics of a run that is done, or None. Raises UserError where the folder holds another run."""
    if not (folder / "done.json").exists():
        return None
    digest = claim(folder, identity)
    done = json.loads((folder / "done.json").read_text())
    return dict(done["metrics"]) if done["digest"] == digest else None


def steps_done(folder: Path) -> int:
    """The steps that a finished run took: fewer than it might, where it stopped for want of better figures."""
    return int(json.loads((folder / "done.json").read_text())["steps"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second process; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock", wait=False) as held:
        if not held:
            raise HkdError(f"{folder} is being trained in by another process. Wait for it, or take another folder.")
        yield


class Metrics:
    """metrics.jsonl and timing.jsonl. Only the main process writes (`active`)."""

    def __init__(self, folder: Path, *, active: bool) -> None:
        self._path, self._timing, self._active = folder / "metrics.jsonl", folder / "timing.jsonl", active

    @property
    def num_bytes(self) -> int:
        """Length of metrics.jsonl now."""
        return self._path.stat().st_size if self._path.exists() else 0

    def write(self, row: Mapping[str, Any], *, timing: bool = False) -> None:
        """Append a row, to metrics.jsonl or to timing.jsonl."""
        if self._active:
            with (self._timing if timing else self._path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def cut(self, num_bytes: int) -> None:
        """Cut metrics.jsonl back to a length."""
        if self._active and self._path.exists():
            os.truncate(self._path, num_bytes)

    def sync(self) -> None:
        """See to it that the rows are on the disk."""
        if self._active and self._path.exists():
            sync(self._path)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that gets the number of the first SIGTERM or SIGINT; a second SIGINT interrupts at once. Main thread
    only."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
