"""`hkd run`: the stages of a pipeline, each after those whose files it reads; what is up to date is skipped.

- A pipeline is one TOML: an `hkd.toml` (tables for the components) plus which label stores, LMs and runs there are. Its
  working folder is a project of its own: every hkd command works in it.
- `stages/NAME.json` says with which settings a stage was started or finished, and the content of each file and folder
  that it read. The same settings and contents: the stage goes on, or is skipped. Others: the stage is refused, unless
  `overwrite` says that what it wrote may be replaced, and nothing else is. hkd's version plays no part.
- Stages run in worker processes, so that `jobs` of them use a core each. A worker ends when its parent does, and takes
  a lock on its stage, so a restart never writes beside a survivor.
"""

import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from hkd import manifest
from hkd.errors import HkdError, InternalError, Progress, UserError, did_you_mean, explained
from hkd.files import Contents, brief, differences, digest_of, lock, num_cores, write_json

WATCH_INTERVAL_S = 0.2
POLL_INTERVAL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step: `action(folder, settings, progress) -> summary` must be importable, resumable and idempotent."""

    name: str
    settings: Mapping[str, Any]
    outputs: tuple[str, ...]  # relative to the working folder
    action: Callable[[Path, Mapping[str, Any], Progress], str]
    # files, folders and patterns, of the working folder, else (and with ./) of the current one; or AUDIO
    inputs: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # other stages, which come first
    is_view: bool = False  # shows other stages' results and holds nothing of its own: replaced whenever they change


AUDIO = "audio of manifest.jsonl"  # as an input: all sound files that the manifest names


def linked(stages: Iterable[Stage]) -> dict[str, Stage]:
    """The stages by name; each needs those before it that write what it reads, or a part of that."""
    found: dict[str, Stage] = {}
    for stage in stages:
        needs = [name for name, other in found.items() if any(_meet(i, o) for i in stage.inputs for o in other.outputs)]
        found[stage.name] = replace(stage, needs=tuple(needs))
    return found


def needed(stages: Mapping[str, Stage], only: Iterable[str]) -> dict[str, Stage]:
    """The stages of these names, or patterns, and all that they need. Raises UserError where a pattern has none."""
    names: set[str] = set()
    for pattern in only:
        matching = [name for name in stages if fnmatch(name, pattern)]
        if not matching:
            hint = did_you_mean(pattern, stages) or f" There are {', '.join(stages)}."
            raise UserError(f"--only must name a stage, but '{pattern}' names none.{hint}")
        names.update(matching)
    for name in reversed(list(stages)):  # a stage comes after what it needs
        if name in names:
            names.update(stages[name].needs)
    return {name: stage for name, stage in stages.items() if name in names}


def _meet(read: str, written: str) -> bool:
    """Whether one path, or pattern, is the other or lies in it."""
    return all(fnmatch(part, pattern) for pattern, part in zip(read.split("/"), written.split("/"), strict=False))


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


class _Schedule:
    """Which stages are done, under way, and to do."""

    def __init__(self, folder: Path, stages: Mapping[str, Stage]) -> None:
        self.folder, self.stages = folder, stages
        self.done: set[str] = set()
        self.running: dict[Future[tuple[str, float]], str] = {}
        self._contents = Contents(folder / "stages" / "contents.json")
        self._digests: dict[str, str | None] = {}  # of inputs, until a stage has run

    def ready(self) -> list[Stage]:
        waiting = self.stages.keys() - self.done - set(self.running.values())
        return [stage for name, stage in self.stages.items() if name in waiting and self.done.issuperset(stage.needs)]

    def description(self, stage: Stage, *, with_inputs: bool = True) -> dict[str, Any]:
        """What a stage's result is made from, as its record has it."""
        found = {"settings": json.loads(json.dumps(dict(stage.settings))), "outputs": list(stage.outputs)}
        if with_inputs:
            found["inputs"] = {name: self._digest(name) for name in stage.inputs}
            self._contents.save()
        return found

    def up_to_date(self, stage: Stage) -> bool:
        record = _record(self.folder, stage.name)
        if record.get("state") != "finished" or not all((self.folder / output).exists() for output in stage.outputs):
            return False
        return not differences(_made_from(record), self.description(stage))

    def stale(self, stage: Stage, *, with_inputs: bool) -> str:
        """How what lies there differs from what is asked for; empty where there is nothing, or the stage may go on."""
        record = _record(self.folder, stage.name)
        then = _made_from(record)
        if not _outputs(self.folder, stage, record) or (stage.is_view and then):
            return ""
        if not then:
            what, are = ", ".join(stage.outputs), "is" if len(stage.outputs) == 1 else "are"
            return f"the stage {stage.name} of this version has not written {what}, which {are} there"
        now = self.description(stage, with_inputs=with_inputs)
        found = differences({name: then[name] for name in now}, now)
        if not found:
            return ""
        name, before, after = found[0]
        part, _, name = name.partition(".")
        if part == "inputs":
            return f"{name}, which the stage {stage.name} reads, has changed since"
        what = f"setting {name}" if part == "settings" else "list of files"
        return f"the stage {stage.name} was run with another {what}: {brief(before)}, now {brief(after)}"

    def finished(self, stage: Stage) -> None:
        self.done.add(stage.name)
        self._digests.clear()

    def _digest(self, name: str) -> str | None:
        if name not in self._digests:
            self._digests[name] = self._content(name)
        return self._digests[name]

    def _content(self, name: str) -> str | None:
        if name == AUDIO:
            utterances = manifest.read_lines(self.folder / "manifest.jsonl")
            paths = sorted({u.audio_filepath for u in utterances if u.audio_filepath})
            return digest_of(self._contents.of_files(Path(path) for path in paths if "://" not in path))
        if "*" in name:
            files = sorted(path for path in self.folder.glob(name) if path.is_file())
            names = [str(file.relative_to(self.folder)) for file in files]
            return digest_of(part for pair in zip(names, self._contents.of_files(files), strict=True) for part in pair)
        own = self.folder / name
        path = own if own.exists() and not name.startswith("./") else Path(name)
        return self._contents.digest(path, without=self.folder)


def run_stages(
    folder: Path, stages: Mapping[str, Stage], *, jobs: int, watcher: Watcher, overwrite: bool = False,
    command: str = "hkd run",
) -> PipelineReport:  # fmt: skip
    """Run what is not up to date, `jobs` stages at a time. Raises the first HkdError; the other stages finish or stop.

    Raises UserError where results of other settings or inputs lie there, before anything is done where that can be
    known by then; with `overwrite` they are removed instead. command: what the user typed, for the remedy.
    """
    began = time.monotonic()
    check_stages(folder, stages, overwrite=overwrite, command=command)
    schedule = _Schedule(folder, stages)
    ran, skipped = [], []
    context, threads = multiprocessing.get_context("spawn"), max(1, num_cores() // jobs)
    queue: Any = context.Queue()
    stop: Any = context.Event()
    told = (queue, stop, os.getpid(), threads)
    pool: ProcessPoolExecutor | None = None
    try:
        while len(schedule.done) < len(stages):
            for stage in schedule.ready():
                if schedule.up_to_date(stage):
                    schedule.done.add(stage.name)
                    skipped.append(stage.name)
                    watcher.skipped(stage.name)
                elif len(schedule.running) < jobs:
                    if not overwrite and (why := schedule.stale(stage, with_inputs=True)):
                        raise _refusal(folder, stages, {stage.name: why}, command)
                    _begin(folder, stage, schedule.description(stage))
                    pool = pool or ProcessPoolExecutor(jobs, context, _start_worker, told)
                    schedule.running[pool.submit(_work, folder, stage)] = stage.name
                    watcher.started(stage.name)
            if not schedule.running:
                continue
            finished, _ = wait(schedule.running, POLL_INTERVAL_S, FIRST_COMPLETED)
            while not queue.empty():
                watcher.progress(*queue.get())
            for future in finished:
                name = schedule.running.pop(future)
                try:
                    summary, seconds = future.result()
                except BrokenProcessPool:
                    under_way = ", ".join([name, *schedule.running.values()])
                    raise HkdError(
                        f"a process that ran a stage ({under_way}) was killed: is there memory enough? Run the same "
                        "command again, or with --jobs 1."
                    ) from None
                record = {**_record(folder, name), "state": "finished", "summary": summary}
                write_json(_record_path(folder, name), record)
                schedule.finished(stages[name])
                ran.append(name)
                watcher.finished(name, summary, seconds)
    finally:
        stop.set()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
    return PipelineReport(ran=tuple(ran), skipped=tuple(skipped), seconds=time.monotonic() - began)


def check_stages(folder: Path, stages: Mapping[str, Stage], *, overwrite: bool, command: str) -> None:
    """Raise UserError where results of other settings or inputs lie there, as far as that is known before any work."""
    if overwrite:
        return
    schedule = _Schedule(folder, stages)
    stale: dict[str, str] = {}
    for stage in stages.values():
        is_known = schedule.done.issuperset(stage.needs)
        if is_known and schedule.up_to_date(stage):
            schedule.done.add(stage.name)
        elif why := schedule.stale(stage, with_inputs=is_known):
            stale[stage.name] = why
    if stale:
        raise _refusal(folder, stages, stale, command)


def _refusal(folder: Path, stages: Mapping[str, Stage], stale: Mapping[str, str], command: str) -> UserError:
    affected = set(stale)
    for stage in stages.values():
        if affected.intersection(stage.needs):
            affected.add(stage.name)
    lost = [o for stage in stages.values() if stage.name in affected for o in stage.outputs if (folder / o).exists()]
    return UserError(
        f"{folder} must hold results of the same settings and inputs, but {next(iter(stale.values()))}. Nothing was "
        f"removed. Take another folder with --work, or replace what depends on it ({', '.join(lost)}): "
        f"{command} --overwrite"
    )


def _record_path(folder: Path, name: str) -> Path:
    return folder / "stages" / f"{name}.json"


def _record(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_record_path(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _made_from(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, outputs and inputs of a record; empty where there is none, or it is of a version that kept none."""
    wanted = ("settings", "outputs", "inputs")
    return {name: record[name] for name in wanted} if all(name in record for name in wanted) else {}


def _outputs(folder: Path, stage: Stage, record: Mapping[str, Any]) -> list[Path]:
    """What lies there of the stage's outputs, those of the record included."""
    names = dict.fromkeys([*stage.outputs, *record.get("outputs", ())])
    return [folder / name for name in names if (folder / name).exists()]


def _begin(folder: Path, stage: Stage, description: Mapping[str, Any]) -> None:
    """Note that the stage has started; remove what it wrote with other settings or inputs, as the caller has asked."""
    old = _record(folder, stage.name)
    if differences(_made_from(old), description):
        for path in _outputs(folder, stage, old):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    write_json(_record_path(folder, stage.name), {"state": "started", **description})


# In the worker process ------------------------------------------------------------------------------------------------

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
        with lock(folder / "stages" / f"{stage.name}.lock", wait=True):
            summary = stage.action(folder, stage.settings, progress)
    except Exception as error:  # by its line and exit code: not every exception can travel between processes
        known = explained(error)
        line = f"stage {stage.name}: {known}"
        if isinstance(known, InternalError):
            raise InternalError(line, known.trace) from None
        raise (UserError if known.exit_code == UserError.exit_code else HkdError)(line) from None
    return summary, time.monotonic() - began
