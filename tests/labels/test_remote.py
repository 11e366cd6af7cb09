"""Stores at URLs: written, resumed, read, verified and repaired there; two writers; a far side that fails."""

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from s3fs import S3FileSystem

from hkd.errors import HkdError, UserError
from hkd.labels.ops import compare, convert, merge, subset
from hkd.labels.share import repair, verify
from hkd.labels.store import LabelReader, LabelWriter, open_stores, store_folders
from hkd.remote import Remote
from hkd.testing.store import files_of, random_rows, spec_for, write_store
from kit.s3 import S3Server
from kit.workers import sum_of_labels

LENGTHS = [3, 0, 7, 12, 1, 30, 2, 2, 5, 6]


def far_files(url: str) -> dict[str, bytes]:
    system, path = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    return {name[len(path) :].lstrip("/"): system.cat_file(name) for name in sorted(system.find(path))}


@pytest.mark.parametrize("backend", ["arrow", "zarr"])
def test_a_store_at_a_url_has_the_bytes_of_one_in_a_folder(tmp_path: Path, far: str, backend: str) -> None:
    spec = spec_for(backend=backend)
    rows = random_rows(spec, LENGTHS)
    here = write_store(tmp_path / "s", spec, rows)
    LabelWriter.open(f"{far}/s", spec, rows).write_shard(1, [rows[name] for name in sorted(rows)[4:8]])
    with pytest.raises(HkdError, match="not complete"):
        LabelReader.open(f"{far}/s")
    writer = LabelWriter.open(f"{far}/s", spec, rows)
    assert writer.pending() == [0, 2]
    for shard in writer.pending():
        with writer.claim(shard) as mine:
            assert mine
            writer.write_shard(shard, [rows[name] for name in writer.shard_ids(shard)])
        with writer.claim(shard) as mine:
            assert not mine
    writer.finish()
    assert far_files(f"{far}/s") == files_of(tmp_path / "s")
    there = LabelReader.open(f"{far}/s")
    np.testing.assert_array_equal(there.block(list(here.ids)).topk.logp_NK, here.block(list(here.ids)).topk.logp_NK)
    assert verify(f"{far}/s") == []
    assert compare(tmp_path / "s", f"{far}/s")["topk_overlap"] == 1.0


def test_everything_takes_urls(tmp_path: Path, far: str) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    write_store(f"{far}/subword", spec_for(), rows)
    convert(f"{far}/subword", f"{far}/zarr", backend="zarr")
    convert(f"{far}/zarr", tmp_path / "back", backend="arrow")
    assert files_of(tmp_path / "back") == far_files(f"{far}/subword")
    ids = sorted(rows)
    for name, part in (("a", ids[:4]), ("b", ids[4:])):
        subset(f"{far}/subword", f"{far}/parts/{name}", part)
    merge([f"{far}/parts/a", f"{far}/parts/b"], f"{far}/parts/whole")
    assert sorted(open_stores(f"{far}/parts")) == ["a", "b", "whole"]
    assert list(store_folders(f"{far}/parts/a")) == ["a"]
    assert list(open_stores(f"{far}/parts")["whole"].ids) == ids
    with pytest.raises(UserError, match="OUT must be another"):
        convert(f"{far}/zarr", f"{far}/zarr", backend="arrow")
    with pytest.raises(UserError, match="or hold some"):
        store_folders(f"{far}/nothing")


def test_another_spec_is_refused_and_overwrite_removes_the_old_store(far: str) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    write_store(f"{far}/s", spec_for(), rows)
    with pytest.raises(UserError, match=r"its k is 8 instead of 3.*--overwrite"):
        LabelWriter.open(f"{far}/s", spec_for(k=3), rows)
    writer = LabelWriter.open(f"{far}/s", spec_for(k=3), rows, overwrite=True)
    assert sorted(far_files(f"{far}/s")) == ["inventory.json", "store.json"]
    assert writer.pending() == [0, 1, 2]
    fsspec.core.url_to_fs(far)[0].pipe_file(f"{far.partition('://')[2]}/thesis/chapter", b"1")
    with pytest.raises(UserError, match="holds 'chapter'"):
        LabelWriter.open(f"{far}/thesis", spec_for(), rows, overwrite=True)


def test_of_writers_with_different_specs_at_once_one_wins(far: str) -> None:
    rows = random_rows(spec_for(), [3, 2])
    begin, said = threading.Barrier(4), []

    def begin_a_store(k: int) -> None:
        begin.wait()
        try:
            LabelWriter.open(f"{far}/s", spec_for(k=k), rows)
            said.append(f"k={k}")
        except UserError as error:
            said.append(str(error))

    threads = [threading.Thread(target=begin_a_store, args=(k,)) for k in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [line for line in said if line.startswith("k=")]
    assert len(won) == 1
    assert json.loads(far_files(f"{far}/s")["store.json"])["k"] == int(won[0][2:])
    assert all("its k is" in line for line in said if line not in won)


def test_the_first_bytes_of_a_shard_stay(far: str) -> None:
    """Two writers at once whose teachers differ in the last bits: never one's mark for the other's shard."""
    rows = random_rows(spec_for(), [3, 2, 4])
    others = random_rows(spec_for(), [3, 2, 4], seed=1)
    writers = [LabelWriter.open(f"{far}/s", spec_for(), rows) for _ in range(2)]
    with writers[0].claim(0) as mine, writers[1].claim(0) as too:  # no locks there
        assert mine
        assert too
        writers[0].write_shard(0, rows.values())
        first = far_files(f"{far}/s")["data/00000.arrow"]
        writers[1].write_shard(0, others.values())
    writers[1].finish()
    assert far_files(f"{far}/s")["data/00000.arrow"] == first
    assert verify(f"{far}/s") == []
    same = LabelReader.open(f"{far}/s").block(sorted(rows)).topk
    np.testing.assert_array_equal(same.gold_N, np.concatenate([rows[name].topk.gold_N for name in sorted(rows)]))


def test_what_is_no_shard_is_written_over(far: str) -> None:
    rows = random_rows(spec_for(), [3, 2, 4])
    writer = LabelWriter.open(f"{far}/s", spec_for(), rows)
    Remote(f"{far}/s").write("data/00000.arrow", b"junk without a mark")
    writer.write_shard(0, rows.values())
    writer.finish()
    assert verify(f"{far}/s") == []


def test_of_two_who_write_over_damage_the_last_bytes_have_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first writes its bytes; before it writes their mark, the second writes bytes and mark."""
    rows = random_rows(spec_for(), [3, 2, 4])
    others = random_rows(spec_for(), [3, 2, 4], seed=1)
    writers = [LabelWriter.open("memory://stores/s", spec_for(), rows) for _ in range(2)]
    Remote("memory://stores/s").write("data/00000.arrow", b"junk without a mark")
    write = Remote.write

    def late(remote: Remote, name: str, data: bytes) -> None:
        if name.endswith("00000.json") and not overtaken:
            overtaken.append(name)
            fsspec.filesystem("memory").pipe_file("/stores/s/data/00000.arrow", b"junk, as the second saw it")
            writers[1].write_shard(0, others.values())
        write(remote, name, data)

    overtaken: list[str] = []
    monkeypatch.setattr(Remote, "write", late)
    writers[0].write_shard(0, rows.values())
    writers[0].finish()
    assert verify("memory://stores/s") == []
    found = LabelReader.open("memory://stores/s").block(sorted(rows)).topk
    np.testing.assert_array_equal(found.gold_N, np.concatenate([others[name].topk.gold_N for name in sorted(rows)]))
    fsspec.filesystem("memory").rm("/", recursive=True)


def test_verify_looks_at_the_far_side_and_repair_mends_it(tmp_path: Path, far: str) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    reader = write_store(f"{far}/s", spec_for(), rows)
    reader.block(sorted(rows))  # all is in the cache
    whole, remote = far_files(f"{far}/s"), Remote(f"{far}/s")
    remote.write("data/00001.arrow", whole["data/00001.arrow"][:-1] + b"x")
    remote.remove("data/00000.arrow")
    remote.write("data/00077.arrow", b"junk")
    problems = verify(f"{far}/s")
    assert sorted(problem.kind for problem in problems) == ["flipped", "foreign", "missing"]
    assert repair(f"{far}/s", problems, dry_run=True).dump_again == [0, 1]
    assert repair(f"{far}/s", problems).dump_again == [0, 1]
    assert LabelWriter.open(f"{far}/s", spec_for(), rows).pending() == [0, 1]
    write_store(f"{far}/s", spec_for(), rows)
    assert far_files(f"{far}/s") == whole
    remote.write("index.arrow", b"junk")
    problems = verify(f"{far}/s")
    assert [problem.kind for problem in problems] == ["index"]
    assert repair(f"{far}/s", problems).dump_again == []
    assert far_files(f"{far}/s") == whole


def test_processes_share_the_cache(s3: str, own_cache: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    reader = write_store(f"{s3}/s", spec_for(), rows)
    for path in (own_cache / "shards").iterdir():
        path.unlink()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kit.workers"])
    queue = context.Queue()
    processes = [
        context.Process(target=sum_of_labels, args=(f"{s3}/s", sorted(rows), queue, dict(os.environ))) for _ in range(2)
    ]
    for process in processes:
        process.start()
    sums = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sums == [float(reader.block(sorted(rows)).topk.logp_NK.sum())] * 2
    assert len(list((own_cache / "shards").iterdir())) == 3


def test_a_far_side_that_vanishes_is_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # connected to another server
        server.make_bucket("bucket")
        reader = write_store("s3://bucket/whole", spec_for(), rows)
        writer = LabelWriter.open("s3://bucket/s", spec_for(), rows)
        for path in (own_cache / "shards").iterdir():
            path.unlink()
    started = time.monotonic()
    for action in (
        lambda: writer.write_shard(0, [rows[name] for name in writer.shard_ids(0)]),
        lambda: reader.block(list(rows)),
    ):
        with pytest.raises(HkdError, match=r"^s3://bucket/.* cannot be .*Mend that") as said:
            action()
        assert "\n" not in str(said.value)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("backend", ["arrow", "zarr"])
@pytest.mark.parametrize("harm", ["lost", "flipped"])
def test_a_copy_that_is_lost_or_damaged_between_two_reads_is_fetched_again_and_said(
    far: str,
    own_cache: Path,
    backend: str,
    harm: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hkd.labels.store.OPEN_SHARDS", 1)
    spec = spec_for(backend=backend)
    rows = random_rows(spec, LENGTHS)
    write_store(f"{far}/s", spec, rows)
    reader, names = LabelReader.open(f"{far}/s", cache_bytes=1), sorted(rows)
    first = reader.block(names[:4]).topk.logp_NK
    reader.block(names[8:])  # another shard
    for path in (own_cache / "shards").iterdir():
        path.unlink() if harm == "lost" else path.write_bytes(b"\xff" * path.stat().st_size)
    caplog.clear()
    np.testing.assert_array_equal(reader.block(names[:4]).topk.logp_NK, first)
    np.testing.assert_array_equal(
        reader.block(names).topk.gold_N, np.concatenate([rows[name].topk.gold_N for name in names])
    )
    assert "fetched again" in caplog.text
