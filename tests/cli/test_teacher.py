"""`hkd teacher-dump`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hkd.cli.teacher import _command

DUMP = "hkd teacher-dump --lm phone-trigram --unit monophone --utterances-per-shard 1"


def test_the_recorded_command_does_not_say_who_did_the_work() -> None:
    assert (
        _command(
            [
                *DUMP.split()[1:],
                "--executor",
                "ray",
                "--workers=2",
                "--rank",
                "0",
                "--set",
                "ray_address=auto",
                "--set=k=3",
                "--name",
                "a b",
            ]
        )
        == f"{DUMP} --set=k=3 --name 'a b'"
    )


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", *DUMP.split(), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_ray_dump_leaves_no_process_and_goes_on(
    prepared: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "project")
    process = start(folder, "--executor", "ray", "--workers", "2", "--json")
    while len(list(folder.glob("shards/monophone/data/*.json"))) < 2:
        assert process.poll() is None
    mine = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == code
    _, alive = psutil.wait_procs(mine, timeout=30)
    assert not alive
    report, error = start(folder, "--executor", "ray", "--workers", "2", "--json").communicate(timeout=200)
    done = json.loads(report)  # nothing of Ray's on stdout
    assert 0 < done["shards_done"] <= done["shards"] - 2, error
    assert done["shards_missing"] == 0
