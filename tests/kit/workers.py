"""What other processes do in tests: module-level functions, since a spawned process must be able to import them."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from hkd.files import lock
from hkd.labels.store import LabelReader

Task = dict[str, Any]


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
    """Put the sum of a store's log-probabilities of these utterances into the queue. environment: of the test, which a fork server may lack."""
    os.environ.update(environment)
    queue.put(float(LabelReader.open(url).block(ids).topk.logp_NK.sum()))


def die_holding_lock(path: str, ready: Any) -> None:
    """Take a lock, set the event, and end without letting go."""
    with lock(Path(path), wait=True):
        ready.set()
        os._exit(errno.EOWNERDEAD)
