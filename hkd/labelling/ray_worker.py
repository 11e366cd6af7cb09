"""What runs in a Ray actor: a teacher, the open store, and the shards that the driver asks for. Nothing here knows Ray."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hkd import __version__
from hkd.errors import HkdError, UserError
from hkd.labelling.dump import DumpRun, open_dump
from hkd.labelling.dump_report import DumpReport, Work
from hkd.labelling.executors import DumpJob

Said = tuple[str, int, str]  # logger, level, text


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a worker's method gave, and the warnings on the way."""

    value: Any
    said: list[Said]


class Worker:
    """Does shards of one job. Its answers are small; the labels go to the store from here."""

    def __init__(self, job: DumpJob, *, threads: int, version: str) -> None:
        torch.set_num_threads(threads)
        if job.folder.is_dir():  # else the driver runs elsewhere, and Ray's own working folder is the one that is meant
            os.chdir(job.folder)
        self._job, self._version = job, version
        self._run: DumpRun | None = None

    def open(self, overwrite: bool) -> Answer:
        """Load the teacher, and begin the store or go on with it → the shards that are to be done."""

        def value() -> list[int]:
            if self._version != __version__:
                raise UserError(f"hkd must be {self._version} on every node, but is {__version__} on one. Install it there.")
            job = self._job
            self._run = open_dump(job.manifest, job.out, job.load_teacher, **job.parts(), overwrite=overwrite)
            return self._run.pending()

        return _answer(value)

    def label(self, shard: int) -> Answer:
        """Write a shard → the Work that it was."""

        def value() -> Work:
            assert self._run is not None
            self._run.shards([shard])
            return self._run.work

        return _answer(value)

    def report(self, work: Work, workers: int, workers_lost: int) -> Answer:
        """Close the store → DumpReport of all workers' `work`."""

        def value() -> DumpReport:
            assert self._run is not None
            return self._run.report(work, workers=workers, workers_lost=workers_lost)

        return _answer(value)


class _Listener(logging.Handler):
    """Keeps warnings, which the driver then logs: a worker's own stderr is a file on its node."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[Said] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.name, record.levelno, record.getMessage()))


def _answer(value: Callable[[], Any]) -> Answer:
    """Call it. Raises HkdErrors as UserError or HkdError itself: a subclass may not survive the journey."""
    listener = _Listener()
    logger = logging.getLogger("hkd")
    logger.addHandler(listener)
    try:
        return Answer(value=value(), said=listener.said)
    except HkdError as error:
        kind = UserError if error.exit_code == UserError.exit_code else HkdError
        raise kind(str(error)) from None
    finally:
        logger.removeHandler(listener)
