"""`hkd run`: a pipeline's stages in their order, side by side where they do not need each other, skipped where up to date.

- A pipeline is one TOML: an `hkd.toml` (tables for the components) plus which label stores, LMs and runs there are. Its working
  folder is a project of its own: every hkd command works in it.
- A stage's digest covers its settings, hkd's version and the digests of the stages that it needs. `stages/NAME.json` says
  "started" or "finished" under which digest. Same digest: go on, or skip. Another one: what that stage wrote is removed first.
- Stages run in worker processes, so that `jobs` of them use a core each. A worker ends when its parent does, and takes a lock on its
  stage, so a restart never writes beside a survivor.
"""

import fcntl
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hkd import __version__
from hkd.errors import HkdError, UserError
from hkd.files import digest_of_json, write_json
from hkd.progress import Progress

WATCH_INTERVAL_S = 0.2
POLL_INTERVAL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step: `action(folder, settings, progress) -> summary` must be importable, resumable and idempotent."""

    name: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    outputs: tuple[str, ...]  # relative to the working folder
    action: Callable[[Path, Mapping[str, Any], Progress], str]


class Watcher(Protocol):
    """Told what happens: a stage was skipped, started, came further, or finished."""

    def skipped(self, stage: str) -> None: ...
    def started(self, stage: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, facts: Mapping[str, float | str]) -> None: ...
    def finished(self, stage: str, summary: str, seconds: float) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineReport:
    """What `run_stages` did."""

    ran: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float


@dataclass
class _Schedule:
    """Which stages are done, under way, and to do."""

    folder: Path
    stages: dict[str, Stage]
    digests: dict[str, str]
    done: set[str] = field(default_factory=set)
    running: dict[Future[tuple[str, float]], str] = field(default_factory=dict)

    def ready(self) -> Iterator[Stage]:
        under_way = set(self.running.values())
        for stage in self.stages.values():
            if stage.name not in self.done | under_way and self.done.issuperset(stage.needs):
                yield stage

    def up_to_date(self, stage: Stage) -> bool:
        record = _record(self.folder, stage.name)
        finished = record.get("state") == "finished" and record.get("digest") == self.digests[stage.name]
        return finished and all((self.folder / output).exists() for output in stage.outputs)


def digests(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Each stage's digest: settings, outputs, hkd's version, and the digests of what it needs. Stages come after their needs."""
    found: dict[str, str] = {}
    for name, stage in stages.items():
        needs = {need: found[need] for need in stage.needs}
        value = {
            "hkd": __version__,
            "stage": name,
            "settings": dict(stage.settings),
            "outputs": list(stage.outputs),
            "needs": needs,
        }
        found[name] = digest_of_json(value)
    return found


def run_stages(folder: Path, stages: Mapping[str, Stage], *, jobs: int, watcher: Watcher) -> PipelineReport:
    """Run what is not up to date, `jobs` stages at a time. Raises the first stage's HkdError; the others finish or stop."""
    began = time.monotonic()
    schedule = _Schedule(folder, dict(stages), digests(stages))
    ran: list[str] = []
    skipped: list[str] = []
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    stop: Any = context.Event()
    pool: ProcessPoolExecutor | None = None
    try:
        while len(schedule.done) < len(stages):
            for stage in list(schedule.ready()):
                if schedule.up_to_date(stage):
                    schedule.done.add(stage.name)
                    skipped.append(stage.name)
                    watcher.skipped(stage.name)
                elif len(schedule.running) < jobs:
                    _begin(folder, stage, schedule.digests[stage.name])
                    pool = pool or ProcessPoolExecutor(jobs, context, _start_worker, (queue, stop, os.getpid(), _threads(jobs)))
                    schedule.running[pool.submit(_work, folder, stage)] = stage.name
                    watcher.started(stage.name)
            if not schedule.running:
                continue
            finished, _ = wait(schedule.running, POLL_INTERVAL_S, FIRST_COMPLETED)
            _forward(queue, watcher)
            for future in finished:
                name = schedule.running.pop(future)
                try:
                    summary, seconds = future.result()
                except BrokenProcessPool:
                    under_way = ", ".join([name, *schedule.running.values()])
                    raise HkdError(
                        f"a process that ran a stage ({under_way}) was killed: is there memory enough? Run the same command again, or with "
                        "--jobs 1."
                    ) from None
                record = {"digest": schedule.digests[name], "state": "finished", "summary": summary}
                write_json(_record_path(folder, name), record)
                schedule.done.add(name)
                ran.append(name)
                watcher.finished(name, summary, seconds)
    finally:
        stop.set()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
    return PipelineReport(ran=tuple(ran), skipped=tuple(skipped), seconds=time.monotonic() - began)


def _threads(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


def _record_path(folder: Path, name: str) -> Path:
    return folder / "stages" / f"{name}.json"


def _record(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_record_path(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _begin(folder: Path, stage: Stage, digest: str) -> None:
    """Note that the stage has started under this digest; remove what it wrote under another one."""
    old = _record(folder, stage.name)
    if old and old.get("digest") != digest:
        for output in stage.outputs:
            path = folder / output
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_json(_record_path(folder, stage.name), {"digest": digest, "state": "started"})


def _forward(queue: Any, watcher: Watcher) -> None:
    while not queue.empty():
        watcher.progress(*queue.get())


# In the worker process -------------------------------------------------------------------------------------------------------

_queue: Any = None


def _start_worker(queue: Any, stop: Any, parent: int, threads: int) -> None:
    """Set the threads of this worker, and end it when its parent has gone or says stop."""
    global _queue
    _queue = queue
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent and not stop.is_set():
            time.sleep(WATCH_INTERVAL_S)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _work(folder: Path, stage: Stage) -> tuple[str, float]:
    """Run a stage; HkdErrors travel back as themselves, by their sentence and exit code."""
    began = last = time.monotonic()

    def progress(done: float, total: float, **facts: float | str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= POLL_INTERVAL_S or done >= total:
            last = now
            _queue.put((stage.name, done, total, facts))

    try:
        with _locked(folder / "stages" / f"{stage.name}.lock"):
            summary = stage.action(folder, stage.settings, progress)
    except HkdError as error:
        kind = UserError if error.exit_code == UserError.exit_code else HkdError
        raise kind(f"stage {stage.name}: {error}") from None
    return summary, time.monotonic() - began
