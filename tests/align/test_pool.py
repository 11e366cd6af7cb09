"""Chunks over processes: the same rows for any number of processes, after kills and after crashes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hkd.align.sphinx import CRASHED, run_chunks
from kit.workers import crashing_worker, doubling_worker


def tasks(log: Path, values: list[int], size: int = 3) -> list[dict]:
    items = [{"id": f"u{number}", "value": value} for number, value in enumerate(values)]
    return [{"log": str(log), "utterances": items[at : at + size]} for at in range(0, len(items), size)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_rows_come_in_order_and_finished_chunks_are_not_done_again(tmp_path: Path, jobs: int) -> None:
    work = tasks(tmp_path / "log", list(range(8)))
    seen = []
    results = run_chunks(
        work,
        worker=doubling_worker,
        folder=tmp_path / "w",
        key="k",
        jobs=jobs,
        progress=lambda done, total, **_: seen.append((done, total)),
    )
    assert [row["double"] for row in results] == [2 * value for value in range(8)]
    assert seen[-1] == (8, 8)
    before = (tmp_path / "log").read_text()
    assert run_chunks(work, worker=doubling_worker, folder=tmp_path / "w", key="k", jobs=1) == results
    assert (tmp_path / "log").read_text() == before
    run_chunks(work, worker=doubling_worker, folder=tmp_path / "w", key="another", jobs=1)
    assert len((tmp_path / "log").read_text().split()) == 16


def test_an_item_that_kills_its_process_is_reported_and_the_others_are_done(tmp_path: Path) -> None:
    values = [1, 2, -1, 4, 5, 6, 7, -1, 9]
    found = run_chunks(tasks(tmp_path / "log", values), worker=crashing_worker, folder=tmp_path / "w", key="k", jobs=2)
    assert [row["id"] for row in found] == [f"u{number}" for number in range(9)]
    assert [row.get("double") for row in found] == [None if value < 0 else 2 * value for value in values]
    assert [row["reason"] for row in found if "reason" in row] == [CRASHED, CRASHED]


_SCRIPT = """
import sys, json
from pathlib import Path
from hkd.align.sphinx import run_chunks
sys.path.insert(0, sys.argv[2])
from kit.workers import slow_worker
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tasks = json.loads((folder / "tasks.json").read_text())
    run_chunks(tasks, worker=slow_worker, folder=folder / "w", key="k", jobs=2)
"""


def _alive(name: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                name in (process / "environ").read_text(errors="replace")
                and (process / "stat").read_text().split()[2] != "Z"
            ):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_killed_it_leaves_no_workers_behind_and_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(_SCRIPT)
    (tmp_path / "tasks.json").write_text(json.dumps(tasks(tmp_path / "log", list(range(24)), size=2)))
    mark = f"HKD_TEST_MARK={tmp_path.name}-{os.getpid()}"
    environment = {**os.environ, mark.split("=")[0]: mark.split("=")[1]}
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), str(Path(__file__).parents[1])]
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "w").glob("[!.]*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _alive(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _alive(mark) == []
    finished = len(list((tmp_path / "w").glob("[!.]*.json")))
    assert 3 <= finished < 12
    subprocess.run(command, env=environment, check=True)
    assert len((tmp_path / "log").read_text().split()) <= 24 + 2 * 3  # at most the chunks in flight were done twice
    results = run_chunks(
        json.loads((tmp_path / "tasks.json").read_text()),
        worker=doubling_worker,
        folder=tmp_path / "w",
        key="k",
        jobs=1,
    )
    assert [row["double"] for row in results] == [2 * value for value in range(24)]
