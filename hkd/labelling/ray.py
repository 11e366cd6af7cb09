"""`--executor ray`: the shards of a dump handed out to the workers of a Ray cluster.

- A worker is an actor: it loads the teacher and opens the store as a local dump does, and writes its shards itself.
  What travels are shard numbers and small figures, so Ray's object store stays all but empty.
- This process, the driver, holds the queue and no teacher. A worker has one shard at a time, on disk before it answers:
  when a worker or its node dies, that shard goes to the front of the queue, and a new worker is asked for.
- The first worker opens the store alone, so that whatever is refused is refused once. A worker gets shards once it has
  opened the store, so none waits for one that the cluster has no room for.
"""

import logging
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from io import StringIO
from logging.handlers import BufferingHandler
from typing import Any, cast

import torch

from hkd import __version__
from hkd.errors import HkdError, MissingPackageError, Progress, UserError, check_setting, no_progress, one_line
from hkd.files import num_cores
from hkd.labelling.dump import DumpJob, DumpReport, DumpRun, WorkDone

logger = logging.getLogger(__name__)

MOST_DEATHS = 3  # of workers at one shard
POLL_S = 1.0
NOTICE_S = 60.0  # without a worker, until we say so
OBJECT_STORE_BYTES = 80 << 20  # of a cluster that is started here: Ray's least
LOCAL = "local"

Said = tuple[str, int, str]  # a warning: logger, level, text
Call = tuple[Any, ...]  # what a worker is asked: a method and its arguments


def _heard(method: Callable[..., Any]) -> Callable[..., tuple[Any, list[Said]]]:
    """The method's answer and its warnings, which the driver logs: a worker's own stderr is a file on its node. Raises
    HkdErrors as UserError or HkdError: a subclass may not survive the journey."""

    @wraps(method)
    def answer(*arguments: Any) -> tuple[Any, list[Said]]:
        listener, logger = BufferingHandler(1 << 20), logging.getLogger("hkd")
        listener.setLevel(logging.WARNING)
        logger.addHandler(listener)
        try:
            return method(*arguments), [(r.name, r.levelno, r.getMessage()) for r in listener.buffer]
        except HkdError as error:
            kind = UserError if error.exit_code == UserError.exit_code else HkdError
            raise kind(str(error)) from None
        finally:
            logger.removeHandler(listener)

    return answer


class Worker:
    """Does shards of one job. Its answers are small; the labels go to the store from here."""

    _run: DumpRun

    def __init__(self, job: DumpJob, *, threads: int, version: str) -> None:
        torch.set_num_threads(threads)
        if job.folder.is_dir():  # else the driver runs elsewhere, and Ray's own working folder is the one that is meant
            os.chdir(job.folder)
        self._job, self._version = job, version

    @_heard
    def open(self, overwrite: bool) -> None:
        """Load the teacher, and begin the store or go on with it."""
        if self._version != __version__:
            rule = f"hkd must be {self._version} on every node"
            raise UserError(f"{rule}, but is {__version__} on one. Install it there.")
        job = self._job
        self._run = DumpRun(job.manifest, job.out, job.load_teacher, **job.parts(), overwrite=overwrite)

    @_heard
    def pending(self) -> list[int]:
        return self._run.pending()

    @_heard
    def label(self, shard: int) -> WorkDone:
        return self._run.shards([shard])

    @_heard
    def report(self, work: WorkDone, workers: int, workers_lost: int) -> DumpReport:
        """Close the store; `work` is that of all workers."""
        return self._run.report(work, workers=workers, workers_lost=workers_lost)


def ray_dump(
    job: DumpJob, *, address: str = "", workers: int = 0, overwrite: bool = False, progress: Progress = no_progress
) -> DumpReport:
    """Do a dump on a Ray cluster, and close the store.

    `address`: "auto" (this machine's cluster), HOST:PORT, ray://HOST:PORT, "local" (a cluster of this machine's cores,
    for this dump alone); empty: the environment's RAY_ADDRESS, else "local". `workers`: 0 means one a GPU, else one a
    node. Raises as `hkd.labelling.dump.dump`, and HkdError for no such cluster or a shard that ends every worker.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers unless told not to
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise MissingPackageError("ray", "ray", "--executor ray") from None
    check_setting("workers", workers, "not be negative", workers >= 0)
    account = StringIO()  # of every death, which Ray prints to stdout, where results go
    with redirect_stdout(account), _cluster(ray, address or os.environ.get("RAY_ADDRESS") or LOCAL):
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        crew = _Crew(ray, job, share_of(nodes, job.device, workers), overwrite=overwrite)
        try:
            [pending] = crew.answers([("pending",)])
            started, work = time.monotonic(), WorkDone()
            for part in crew.answers([("label", shard) for shard in pending]):
                work += part
                progress(work.shards_done, len(pending), positions_per_s=work.positions / (time.monotonic() - started))
            work.seconds["total"] = time.monotonic() - started
            [report] = crew.answers([("report", work, crew.share.workers, crew.lost)])
            return cast(DumpReport, report)
        finally:
            crew.stop()
            logger.info("Ray says: %s", account.getvalue())


@contextmanager
def _cluster(ray: Any, address: str) -> Iterator[None]:
    """Connected to the cluster; to one that the process is connected to already, whatever the address."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"include_dashboard": False, "num_cpus": num_cores(), "object_store_memory": OBJECT_STORE_BYTES}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        why, remedy = one_line(error, 300), "Start one with `ray start --head`."
        raise HkdError(f"a Ray cluster must run at '{address}', but: {why} {remedy}") from None
    try:
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # which Ray took
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerResources:
    """How many workers there are to be, and what each takes of the cluster."""

    workers: int
    threads: int
    num_cpus: int
    num_gpus: int


def share_of(nodes: Sequence[dict[str, Any]], device: str, workers: int) -> WorkerResources:
    """What each worker gets: a GPU where `device` lets it, else as many cores as leave room for all workers. nodes: as
    `ray.nodes()` tells. Raises UserError for one GPU among several: Ray says which worker sees which."""
    check_setting("device", device, "be auto, cpu or cuda with the executor ray", not device.startswith("cuda:"))
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in resources]
    gpus = sum(int(node.get("GPU", 0)) for node in resources)
    if device == "cuda" or (device == "auto" and gpus):
        gpus = max(1, gpus)
        return WorkerResources(workers=workers or gpus, threads=max(1, sum(cpus) // gpus), num_cpus=1, num_gpus=1)
    workers = workers or max(1, sum(count > 0 for count in cpus))
    threads = next((t for t in range(max(cpus, default=1), 1, -1) if sum(count // t for count in cpus) >= workers), 1)
    return WorkerResources(workers=workers, threads=threads, num_cpus=threads, num_gpus=0)


class _Crew:
    """The workers and what each does; another one does again what a worker was at when it died."""

    def __init__(self, ray: Any, job: DumpJob, share: WorkerResources, *, overwrite: bool) -> None:
        self.share, self.lost = share, 0
        self._ray, self._job, self._overwrite = ray, job, overwrite
        once = {"max_restarts": 0, "max_task_retries": 0}
        self._actor = ray.remote(num_cpus=share.num_cpus, num_gpus=share.num_gpus, **once)(Worker)
        self._idle: list[Any] = []
        self._flying: dict[Any, tuple[Any, Call]] = {}  # by the reference of the answer: the worker and its call
        self._deaths: Counter[Call] = Counter()
        self._said: set[Said] = set()
        self._notice_at = time.monotonic() + NOTICE_S

    def stop(self) -> None:
        """End all workers now. The shards that they are at are lost, and no others."""
        for worker in [*self._idle, *(worker for worker, _ in self._flying.values())]:
            self._ray.kill(worker)

    def answers(self, calls: Iterable[Call]) -> Iterator[Any]:
        """Answers in the order in which they come. A call whose worker died goes to the front. Raises its errors."""
        waiting = deque(calls)
        unanswered = len(waiting)
        while unanswered:
            while len(self._idle) + len(self._flying) < min(self.share.workers, unanswered):
                worker = self._actor.remote(self._job, threads=self.share.threads, version=__version__)
                self._ask(worker, ("open", self._overwrite))
            while self._idle and waiting:
                self._ask(self._idle.pop(), waiting.popleft())
            for reference in self._ray.wait(list(self._flying), timeout=POLL_S)[0]:
                worker, call = self._flying.pop(reference)
                try:
                    value, said = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as error:
                    self._idle.append(worker)
                    is_own = isinstance(error.cause, HkdError | OSError | MemoryError)
                    raise (error.cause if is_own else error) from None
                except self._ray.exceptions.RayError as error:
                    self._lose(worker, call, error)
                    if call[0] != "open":  # the next worker opens it anyway
                        waiting.appendleft(call)
                    continue
                self._idle.append(worker)
                self._repeat(said)
                if call[0] == "open":
                    self._overwrite, self._notice_at = False, float("inf")
                    self._deaths.clear()
                else:
                    unanswered -= 1
                    yield value
            if time.monotonic() > self._notice_at:
                self._notice_at = float("inf")
                free = self._ray.available_resources()
                logger.warning("Still no worker: each needs %s; free is %s.", self.share, free)

    def _ask(self, worker: Any, call: Call) -> None:
        self._flying[getattr(worker, call[0]).remote(*call[1:])] = worker, call

    def _lose(self, worker: Any, call: Call, error: Exception) -> None:
        """A worker has died or cannot be reached. Raises HkdError where too many did at the same thing."""
        self._ray.kill(worker)
        self.lost += 1
        self._deaths[call[:2]] += 1
        what, reason = f"shard {call[1]}" if call[0] == "label" else f"the store's {call[0]}", one_line(error, 300)
        if self._deaths[call[:2]] >= MOST_DEATHS:
            remedy = "Give each more memory (fewer --workers), then run the same command again."
            raise HkdError(f"{what} must not end its worker, but has ended {MOST_DEATHS}: {reason} {remedy}")
        logger.warning("A worker ended at %s, which another one does again: %s", what, reason)

    def _repeat(self, said: Iterable[Said]) -> None:
        """Log a worker's warnings; what several say of the whole manifest, once."""
        new = {warning: None for warning in said if warning not in self._said}
        self._said |= set(new)
        for name, level, text in new:
            logging.getLogger(name).log(level, "%s", text)
