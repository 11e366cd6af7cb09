"""What other processes do in tests: module-level functions, since a spawned process must be able to import them."""

import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from hkd.files import lock
from hkd.labels.format import StoreSpec, UtteranceLabels
from hkd.labels.store import LabelReader, LabelWriter
from hkd.testing.store import random_rows, spec_for

Task = dict[str, Any]


def two_processes() -> tuple[str, ...]:
    """torchrun's command for two processes of what follows it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}")
    return (sys.executable, *module)


def doubling_worker(task: Task) -> list[dict[str, Any]]:
    """{"id", "double"} of each item; appends the ids to the file that the task names in "log"."""
    with Path(task["log"]).open("a") as file:
        file.writelines(f"{item['id']}\n" for item in task["utterances"])
    return [{"id": item["id"], "double": 2 * item["value"]} for item in task["utterances"]]


def crashing_worker(task: Task) -> list[dict[str, Any]]:
    """As `doubling_worker`, but an item with a negative value kills its process as a segmentation fault would."""
    for item in task["utterances"]:
        if item["value"] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return doubling_worker(task)


def slow_worker(task: Task) -> list[dict[str, Any]]:
    """As `doubling_worker`, a tenth of a second an item."""
    time.sleep(0.1 * len(task["utterances"]))
    return doubling_worker(task)


def sum_of_labels(url: str, ids: list[str], queue: Any, environment: dict[str, str]) -> None:
    """Put the sum of a store's log-probabilities of these utterances into the queue. environment: of the test, which a
    fork server may lack."""
    os.environ.update(environment)
    queue.put(float(LabelReader.open(url).block(ids).topk.logp_NK.sum()))


def die_holding_lock(path: str, ready: Any) -> None:
    """Take a lock, set the event, and end without letting go."""
    with lock(Path(path), wait=True):
        ready.set()
        os._exit(errno.EOWNERDEAD)


def write_in_another_process(path: str, log: str) -> None:
    """Write the store of `killed_rows`, a line in `log` a shard that is published. For tests that kill it."""
    spec, rows = killed_rows()
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, b"ready\n")
    writer = LabelWriter.open(path, spec, rows)
    for shard in writer.pending():
        with writer.claim(shard) as mine:
            if mine:
                writer.write_shard(shard, [rows[name] for name in writer.shard_ids(shard)])
                os.write(handle, f"{shard}\n".encode())
    writer.finish()
    os.write(handle, b"finished\n")


def killed_rows() -> tuple[StoreSpec, dict[str, UtteranceLabels]]:
    """Forty utterances in twenty shards."""
    spec = spec_for(utterances_per_shard=2)
    return spec, random_rows(spec, [9] * 40)
