"""Work in chunks over several processes: resumable, in order, and unharmed by a worker that crashes.

- A finished chunk is a file named by the digest of its task; a run that was killed finds it again. Order and number of processes leave no trace.
- When a worker dies, the chunks in flight are done again item by item, each in a process of its own: the item that kills it is a failed row.
- Workers end with their parent, even where that one was killed.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_sentinels
from pathlib import Path
from typing import Any

from hkd.files import digest_of_json, write_json
from hkd.progress import Progress, no_progress

Row = dict[str, Any]
Task = dict[str, Any]  # its "utterances" are the items, each with an "id"; the rest is common to them
Worker = Callable[[Task], list[Row]]  # one row an item, in order; a module-level function

CRASHED = "the aligner crashed on it"


class ChunkResults:
    """The finished rows, chunk by chunk, read from the work folder as they are asked for."""

    def __init__(self, paths: Sequence[Path], folder: Path, jobs: int) -> None:
        self._paths, self._folder, self.jobs = paths, folder, jobs

    def __iter__(self) -> Iterator[list[Row]]:
        for path in self._paths:
            yield json.loads(path.read_text(encoding="utf-8"))

    def clear(self) -> None:
        """Remove the work folder: the result stands elsewhere now."""
        shutil.rmtree(self._folder, ignore_errors=True)


def run_chunks(
    tasks: Sequence[Task], *, worker: Worker, folder: Path, key: str, jobs: int = 0, progress: Progress = no_progress
) -> ChunkResults:
    """Run `worker` over all tasks in `jobs` processes (0: one a core). `key`: whatever else the rows depend on."""
    jobs = jobs or _cores()
    paths = [folder / f"{digest_of_json([key, task])}.json" for task in tasks]
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(len(task["utterances"]) for task in tasks)
    done = failed = 0

    def finish(row_path: Path, rows: list[Row]) -> None:
        nonlocal done, failed
        write_json(row_path, rows)
        done += len(rows)
        failed += sum("reason" in row for row in rows)
        progress(done, total, failed=failed)

    pending: list[tuple[Path, Task]] = []
    for path, task in zip(paths, tasks, strict=True):
        if path.exists():
            done += len(task["utterances"])
        else:
            pending.append((path, task))
    if done:
        progress(done, total)
    while pending:
        suspects = _run_pool(pending, worker, min(jobs, len(pending)), finish)
        for path, task in suspects:
            finish(path, _run_isolated(task, worker))
        pending = [(path, task) for path, task in pending if not path.exists()]
    return ChunkResults(paths, folder, jobs)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _executor(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)


def _run_pool(
    pending: Sequence[tuple[Path, Task]], worker: Worker, jobs: int, finish: Callable[[Path, list[Row]], None]
) -> list[tuple[Path, Task]]:
    """Run until all is done, [], or a worker died: then the tasks that were in flight."""
    waiting = iter(pending)
    flying: dict[Future[list[Row]], tuple[Path, Task]] = {}
    executor = _executor(jobs)
    try:
        while True:
            while len(flying) < jobs + 1 and (item := next(waiting, None)) is not None:
                flying[executor.submit(worker, item[1])] = item
            if not flying:
                return []
            ready, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in ready:
                rows = future.result()  # a dead worker raises here, and the future stays among those in flight
                finish(flying[future][0], rows)
                del flying[future]
    except BrokenProcessPool:
        return list(flying.values())
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _run_isolated(task: Task, worker: Worker) -> list[Row]:
    """One item at a time, in a fresh process after each that dies."""
    rows: list[Row] = []
    executor = _executor(1)
    try:
        for item in task["utterances"]:
            try:
                rows += executor.submit(worker, {**task, "utterances": [item]}).result()
            except BrokenProcessPool:
                rows.append({"id": item["id"], "reason": CRASHED})
                executor.shutdown(wait=True)
                executor = _executor(1)
    finally:
        executor.shutdown(wait=True)
    return rows


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends: a pool's workers would otherwise wait for ever for one that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_sentinels([sentinel])
    os._exit(1)
