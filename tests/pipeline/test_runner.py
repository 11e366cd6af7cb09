import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import hkd
from hkd.errors import HkdError, InternalError, UserError
from hkd.files import Contents
from hkd.pipeline.runner import Stage, linked, needed, run_stages
from kit.stages import Record, break_down, count, counting_stages, die, fail, run_counting

EXPECTED = "".join(f"{n}\n" for n in range(20))


def test_stages_run_once_and_are_skipped_while_nothing_changes(tmp_path: Path):
    assert set(run_counting(tmp_path).ran) == {"left", "right", "both"}
    assert (tmp_path / "both.txt").read_text() == EXPECTED
    again = run_counting(tmp_path)
    assert again.ran == ()
    assert set(again.skipped) == {"left", "right", "both"}


def with_left(**settings: object) -> dict[str, Stage]:
    stages = counting_stages()
    return stages | {"left": replace(stages["left"], settings={**stages["left"].settings, **settings})}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_changed_setting_is_refused_before_any_work_and_nothing_is_removed(tmp_path: Path):
    run_counting(tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError) as refused:
        run_stages(tmp_path, with_left(to=3), jobs=1, watcher=Record(), command="hkd run here")
    for words in [
        "stage left",
        "setting to: 20, now 3",
        "(left.txt, both.txt)",
        ": hkd run here --overwrite",
        "--work",
    ]:
        assert words in str(refused.value)
    assert "right.txt" not in str(refused.value)
    assert files(tmp_path) == before


def test_overwrite_replaces_what_a_changed_setting_made_and_what_read_it(tmp_path: Path):
    run_counting(tmp_path)
    report = run_stages(tmp_path, with_left(to=3), jobs=1, watcher=Record(), overwrite=True)
    assert report.ran == ("left", "both")
    assert (tmp_path / "left.txt").read_text() == "0\n1\n2\n"
    assert run_stages(tmp_path, with_left(to=3), jobs=1, watcher=Record()).ran == ()


def test_a_result_that_comes_out_the_same_leaves_what_read_it(tmp_path: Path):
    run_counting(tmp_path)
    report = run_stages(tmp_path, with_left(pause_s=0.001), jobs=1, watcher=Record(), overwrite=True)
    assert report.ran == ("left",)


def test_an_edited_input_is_seen_and_an_untouched_copy_is_not(tmp_path: Path):
    (tmp_path / "source.txt").write_text("one")
    run_counting(tmp_path)
    os.utime(tmp_path / "source.txt", (1, 1))
    assert run_counting(tmp_path).ran == ()
    (tmp_path / "source.txt").write_text("two")
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"source\.txt, which the stage left reads, has changed since"):
        run_counting(tmp_path)
    assert {name: value for name, value in files(tmp_path).items() if "contents" not in name} == {
        name: value for name, value in before.items() if "contents" not in name
    }
    assert set(run_counting(tmp_path, overwrite=True).ran) == {"left", "right"}  # which count to the same


def test_a_folder_is_read_with_all_its_files_in_subfolders_and_behind_links(tmp_path: Path):
    contents = Contents(tmp_path / "contents.json")
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    (folder / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "deep" / "a.txt").write_text("a")
    (elsewhere / "b.txt").write_text("b")
    (folder / "link").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    (folder / ".hidden").write_text("x")
    seen = [contents.digest(folder)]
    for change in (
        lambda: (elsewhere / "b.txt").write_text("c"),
        lambda: (folder / "deep" / "a.txt").rename(folder / "deep" / "b.txt"),
        lambda: (folder / "new.txt").write_text(""),
    ):
        change()
        seen.append(contents.digest(folder))
    assert len(set(seen)) == 4
    (folder / ".hidden").write_text("y")
    contents.save()
    assert Contents(tmp_path / "contents.json").digest(folder) == seen[-1]
    assert contents.digest(tmp_path / "nothing") is None


def test_what_no_record_tells_of_is_never_replaced_unasked(tmp_path: Path):
    (tmp_path / "left.txt").write_text("mine")
    with pytest.raises(UserError, match=r"the stage left of this version has not written left\.txt"):
        run_counting(tmp_path)
    assert files(tmp_path) == {"left.txt": b"mine"} | {
        n: v for n, v in files(tmp_path).items() if n.startswith("stages")
    }
    (tmp_path / "stages").mkdir(exist_ok=True)
    (tmp_path / "stages" / "left.json").write_text('{"digest": "of an older version", "state": "finished"}')
    with pytest.raises(UserError, match="this version has not written"):
        run_counting(tmp_path)
    assert (tmp_path / "left.txt").read_text() == "mine"


def test_another_version_of_hkd_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_counting(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr("hkd.__version__", "99.0")
    assert run_counting(tmp_path).ran == ()
    assert files(tmp_path) == before
    assert hkd.__version__.encode() not in b"".join(before.values())


def test_a_stage_that_failed_before_it_wrote_may_be_set_right(tmp_path: Path):
    bad = {"left": Stage(name="left", settings={}, outputs=("left.txt",), action=fail)}
    with pytest.raises(UserError):
        run_stages(tmp_path, bad, jobs=1, watcher=Record())
    assert "left" in run_counting(tmp_path).ran


def test_a_view_follows_what_it_shows(tmp_path: Path):
    stages = counting_stages()
    as_view = {**stages, "both": replace(stages["both"], is_view=True)}
    run_stages(tmp_path, as_view, jobs=1, watcher=Record())
    shorter = {**as_view, "both": replace(as_view["both"], settings={**as_view["both"].settings, "to": 2})}
    assert run_stages(tmp_path, shorter, jobs=1, watcher=Record()).ran == ("both",)
    assert (tmp_path / "both.txt").read_text() == "0\n1\n"


def test_a_missing_output_is_made_again(tmp_path: Path):
    run_counting(tmp_path)
    (tmp_path / "right.txt").unlink()
    assert run_counting(tmp_path).ran == ("right",)


def test_only_some_stages_are_run_with_what_they_need():
    made = linked(
        Stage(name=name, settings={}, outputs=(name,), action=count, inputs=inputs)
        for name, inputs in (("text", ()), ("lm", ("text",)), ("other", ("text",)), ("dump-a", ("lm",)), ("end", ()))
    )
    assert list(needed(made, ["dump-a"])) == ["text", "lm", "dump-a"]
    assert list(needed(made, ["dump-*", "end"])) == ["text", "lm", "dump-a", "end"]
    assert list(needed(made, ["*"])) == list(made)
    with pytest.raises(UserError, match=r"'dump-b' names none. Did you mean 'dump-a'"):
        needed(made, ["dump-b"])
    with pytest.raises(UserError, match="There are text, lm, other, dump-a, end"):
        needed(made, ["zzz"])


def test_an_error_names_its_stage_and_keeps_its_exit_code(tmp_path: Path):
    stages = {"bad": Stage(name="bad", settings={}, outputs=(), action=fail)}
    with pytest.raises(UserError, match=r"stage bad: to must be positive"):
        run_stages(tmp_path, stages, jobs=1, watcher=Record())
    assert json.loads((tmp_path / "stages" / "bad.json").read_text())["state"] == "started"


def test_a_killed_worker_is_said_in_a_line(tmp_path: Path):
    stages = {"bad": Stage(name="bad", settings={}, outputs=(), action=die)}
    with pytest.raises(HkdError, match=r"a stage \(bad\) was killed"):
        run_stages(tmp_path, stages, jobs=1, watcher=Record())


def test_the_watcher_hears_of_start_progress_and_end(tmp_path: Path):
    record = Record()
    stage = Stage(name="one", settings={"file": "one.txt", "to": 2}, outputs=("one.txt",), action=count)
    run_stages(tmp_path, {"one": stage}, jobs=1, watcher=record)
    assert record.events[0] == ("started", "one")
    assert record.events[-1] == ("finished", "one")


def test_a_fault_of_our_own_in_a_stage_is_one_line_and_keeps_its_trace(tmp_path: Path):
    stages = {"bad": Stage(name="bad", settings={}, outputs=(), action=break_down)}
    with pytest.raises(InternalError) as failed:
        run_stages(tmp_path, stages, jobs=1, watcher=Record())
    line = str(failed.value)
    assert line.startswith("stage bad: internal error: UnknownError: planted, in hkd/")
    assert "\n" not in line
    assert "--verbose" in line
    assert "in break_down" in failed.value.trace
    assert failed.value.exit_code == 1


def test_killed_again_and_again_it_ends_the_same(tmp_path: Path):
    program = (
        f"from pathlib import Path; import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from "
        f"kit.stages import run_counting; run_counting(Path({str(tmp_path)!r}), pause_s=0.02)"
    )
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
