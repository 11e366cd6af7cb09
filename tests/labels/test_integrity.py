"""A world that fails while a store is written: disks that are full or read-only, writers that race, die, or hang on to
locks."""

import multiprocessing
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hkd.errors import HkdError, UserError
from hkd.files import lock
from hkd.labels.format import UtteranceLabels
from hkd.labels.share import verify
from hkd.labels.store import LabelReader, LabelWriter
from hkd.testing.store import files_of, random_rows, spec_for, write_store
from kit.workers import die_holding_lock

LENGTHS = [3, 0, 7, 12, 1, 30, 2, 2, 5, 6]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 32 KB; skipped where one cannot be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def write_all(writer: LabelWriter, rows: dict[str, UtteranceLabels]) -> None:
    for shard in writer.pending():
        writer.write_shard(shard, [rows[name] for name in writer.shard_ids(shard)])


def test_a_full_disk_is_one_sentence_and_the_dump_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    spec = spec_for(utterances_per_shard=2, codec="f16")
    rows = random_rows(spec, [80] * 10)
    write_store(tmp_path / "whole", spec, rows)
    writer = LabelWriter.open(small_disk / "s", spec, rows)
    with pytest.raises(HkdError, match="No space left on device") as said:
        write_all(writer, rows)
    assert "\n" not in str(said.value)
    whole, there = files_of(tmp_path / "whole"), files_of(small_disk / "s")
    assert 0 < len([name for name in there if name.endswith(".arrow")]) < 5
    assert {name: whole[name] for name in there} == there  # nothing by halves, no temporary file
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    again = LabelWriter.open(small_disk / "s", spec, rows)
    assert 0 < len(again.pending()) < 5
    write_all(again, rows)
    again.finish()
    assert files_of(small_disk / "s") == whole


def test_a_read_only_disk_is_one_sentence_to_writers_and_nothing_to_readers(small_disk: Path) -> None:
    rows = random_rows(spec_for(), [3, 2, 4])
    write_store(small_disk / "s", spec_for(), rows)
    writer = LabelWriter.open(small_disk / "t", spec_for(), rows)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    before = files_of(small_disk)
    for action in (
        lambda: writer.write_shard(0, rows.values()),
        lambda: LabelWriter.open(small_disk / "u", spec_for(), rows),
        lambda: LabelWriter.open(small_disk / "s", spec_for(k=3), rows, overwrite=True),
    ):
        with pytest.raises(HkdError, match=r"cannot be written .Read-only file system"):
            action()
    assert len(LabelReader.open(small_disk / "s").block(sorted(rows))) == 3
    assert verify(small_disk / "s") == []
    assert files_of(small_disk) == before


def test_two_finish_at_once(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    write_store(tmp_path / "whole", spec_for(), rows)
    writers = [LabelWriter.open(tmp_path / "s", spec_for(), rows) for _ in range(4)]
    write_all(writers[0], rows)
    (tmp_path / "s/.locks").mkdir()
    (tmp_path / "s/.locks/00001.lock").touch()  # of a killed writer
    failed: list[BaseException] = []
    begin = threading.Barrier(len(writers))

    def finish(writer: LabelWriter) -> None:
        try:
            begin.wait()
            writer.finish()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=finish, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "s").glob(".*")] == []


def test_a_refused_open_leaves_nothing(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), [3, 2])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter").write_text("1")
    write_store(tmp_path / "s", spec_for(), rows)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError):
        LabelWriter.open(tmp_path / "thesis", spec_for(), rows)
    with pytest.raises(UserError):
        LabelWriter.open(tmp_path / "s", spec_for(k=3), rows)
    assert sorted(tmp_path.rglob("*")) == before


def test_finishing_waits_for_no_lock_of_a_shard_that_another_holds(tmp_path: Path) -> None:
    """A lock that is held is not removed under its holder."""
    rows = random_rows(spec_for(), [3, 2])
    writer = LabelWriter.open(tmp_path / "s", spec_for(), rows)
    writer.write_shard(0, rows.values())
    with lock(tmp_path / "s/.locks/00000.lock", wait=False) as mine:
        assert mine
        writer.finish()
        with lock(tmp_path / "s/.locks/00000.lock", wait=False) as also:
            assert not also


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kit.workers"])
    ready = context.Event()
    process = context.Process(target=die_holding_lock, args=(str(tmp_path / "a.lock"), ready))
    process.start()
    assert ready.wait(60)
    process.join()
    with lock(tmp_path / "a.lock", wait=False) as mine:
        assert mine


@pytest.mark.parametrize("harm", ["no shard", "no mark", "cut"])
def test_a_copy_without_a_shard_is_refused_when_it_is_opened(tmp_path: Path, harm: str) -> None:
    spec = spec_for(utterances_per_shard=2)
    write_store(tmp_path / "s", spec, random_rows(spec, LENGTHS))
    shard, mark = tmp_path / "s" / "data" / "00004.arrow", tmp_path / "s" / "data" / "00004.json"
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        (shard if harm == "no shard" else mark).unlink()
    with pytest.raises(HkdError, match="is not complete: shard 4 of 5 is missing or damaged"):
        LabelReader.open(tmp_path / "s")
