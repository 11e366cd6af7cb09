"""The thread that compresses and writes shards while the teacher scores the next ones."""

import logging
import queue
import threading
import time
from types import TracebackType

import numpy as np

from hkd.labelling.quality import quality_sums
from hkd.labels.format import UtteranceLabels
from hkd.labels.writer import LabelWriter
from hkd.sparse import TopK

log = logging.getLogger(__name__)

WAITING_SHARDS = 2

_Item = tuple[int, list[UtteranceLabels]]


class WriterThread:
    """Writes shards behind a bounded queue. Whatever ends the thread is raised by the next `put` or by `close`, at once."""

    def __init__(self, writer: LabelWriter) -> None:
        self._writer = writer
        self._queue: queue.Queue[_Item | None] = queue.Queue(maxsize=WAITING_SHARDS)
        self._error: BaseException | None = None
        self.seconds = 0.0  # spent on quality, compression and writing
        self._thread = threading.Thread(target=self._work, name="hkd-writer", daemon=True)

    def __enter__(self) -> "WriterThread":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Above, all is well or something was raised (SIGTERM and Ctrl-C too): what was handed over is written in any case."""
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()

    def put(self, shard: int, rows: list[UtteranceLabels]) -> None:
        """Hand over a shard; waits while the queue is full. Raises the thread's error."""
        self._hand_over((shard, rows))

    def close(self) -> None:
        """Wait until all is written. Raises the thread's error."""
        self._hand_over(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _hand_over(self, item: _Item | None) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                started = time.monotonic()
                self._write(*item)
                self.seconds += time.monotonic() - started
        except BaseException as error:
            self._error = error

    def _write(self, shard: int, rows: list[UtteranceLabels]) -> None:
        sums = quality_sums(TopK.concatenate([row.topk for row in rows]))
        self._writer.write_shard(shard, rows, quality={key: float(np.float64(value)) for key, value in sums.items()})
