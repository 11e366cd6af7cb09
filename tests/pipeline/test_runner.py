import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hkd.errors import HkdError, UserError
from hkd.pipeline.runner import Stage, digests, run_stages
from hkd.testing.stages import Record, count, counting_stages, die, fail, run_counting

EXPECTED = "".join(f"{n}\n" for n in range(20))


def test_stages_run_once_and_are_skipped_while_nothing_changes(tmp_path: Path):
    assert set(run_counting(tmp_path).ran) == {"left", "right", "both"}
    assert (tmp_path / "both.txt").read_text() == EXPECTED
    again = run_counting(tmp_path)
    assert again.ran == ()
    assert set(again.skipped) == {"left", "right", "both"}


def test_a_changed_setting_runs_its_stage_and_what_needs_it_from_nothing(tmp_path: Path):
    run_counting(tmp_path)
    stages = counting_stages()
    left = stages["left"]
    stages["left"] = Stage(name="left", needs=(), settings={**left.settings, "to": 3}, outputs=left.outputs, action=left.action)
    report = run_stages(tmp_path, stages, jobs=1, watcher=Record())
    assert report.ran == ("left", "both")
    assert (tmp_path / "left.txt").read_text() == "0\n1\n2\n"


def test_a_missing_output_is_made_again(tmp_path: Path):
    run_counting(tmp_path)
    (tmp_path / "right.txt").unlink()
    assert run_counting(tmp_path).ran == ("right",)


def test_an_error_names_its_stage_and_keeps_its_exit_code(tmp_path: Path):
    stages = {"bad": Stage(name="bad", needs=(), settings={}, outputs=(), action=fail)}
    with pytest.raises(UserError, match=r"stage bad: to must be positive"):
        run_stages(tmp_path, stages, jobs=1, watcher=Record())
    assert json.loads((tmp_path / "stages" / "bad.json").read_text())["state"] == "started"


def test_a_killed_worker_is_said_in_a_line(tmp_path: Path):
    stages = {"bad": Stage(name="bad", needs=(), settings={}, outputs=(), action=die)}
    with pytest.raises(HkdError, match=r"a stage \(bad\) was killed"):
        run_stages(tmp_path, stages, jobs=1, watcher=Record())


def test_the_watcher_hears_of_start_progress_and_end(tmp_path: Path):
    record = Record()
    stage = Stage(name="one", needs=(), settings={"file": "one.txt", "to": 2}, outputs=("one.txt",), action=count)
    run_stages(tmp_path, {"one": stage}, jobs=1, watcher=record)
    assert record.events[0] == ("started", "one")
    assert record.events[-1] == ("finished", "one")


def test_digests_hang_on_settings_and_needs():
    plain, changed = digests(counting_stages()), digests(counting_stages(to=21))
    assert plain == digests(counting_stages())
    assert all(plain[name] != changed[name] for name in plain)


def test_killed_again_and_again_it_ends_the_same(tmp_path: Path):
    program = f"from pathlib import Path; from hkd.testing.stages import run_counting; run_counting(Path({str(tmp_path)!r}), pause_s=0.02)"
    code = f"if __name__ == '__main__':\n    {program}\n"
    script = tmp_path / "job.py"
    script.write_text(code)
    rng = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, str(script)])
        time.sleep(rng.uniform(3.0, 5.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)
    assert [(tmp_path / f"{name}.txt").read_text() for name in ("left", "right", "both")] == [EXPECTED] * 3
