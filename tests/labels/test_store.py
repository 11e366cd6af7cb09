"""Writing and reading, whatever the backend: refusals, resume, locks, what a reader says."""

import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hkd.errors import HkdError, UserError
from hkd.labels import format as files
from hkd.labels.card import figures, merge, quality_of
from hkd.labels.share import repair, verify
from hkd.labels.store import LabelReader, LabelWriter, open_stores, store_folders
from hkd.sparse import TopK
from hkd.testing.store import files_of, inventory, random_rows, random_topk, spec_for, write_store
from hkd.topk import select_topk
from kit.workers import killed_rows, write_in_another_process

LENGTHS = [3, 0, 7, 12, 1, 30, 2, 2, 5, 6]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"k": 7}, "k"),
        ({"codec": "f16"}, "codec.name"),
        ({"inventory": inventory(49)}, "inventory.digest"),
        ({"manifest_digest": "2"}, "manifest_digest"),
        ({"teacher": {"name": "tiny", "kind": "masked"}}, "teacher.kind"),
        ({"context": "256"}, "context"),
    ],
)
def test_another_spec_is_refused_with_both_values(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    rows = random_rows(spec_for(), [3, 2])
    LabelWriter.open(tmp_path / "s", spec_for(), rows)
    with pytest.raises(UserError, match=rf"its {key} is .* instead of .*--overwrite"):
        LabelWriter.open(tmp_path / "s", replace(spec_for(), **change), rows)
    LabelWriter.open(tmp_path / "s", replace(spec_for(), **change), rows, overwrite=True)


def test_other_utterances_are_refused_and_another_version_is_not(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), [3, 2])
    LabelWriter.open(tmp_path / "s", spec_for(), rows)
    with pytest.raises(UserError, match="ids_digest"):
        LabelWriter.open(tmp_path / "s", spec_for(), [*list(rows)[:-1], "other"])
    LabelWriter.open(tmp_path / "s", spec_for(hkd_version="99", command="again"), rows)


def test_overwrite_touches_nothing_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/store.json").write_text('{"important": 1}')
    (tmp_path / "thesis/chapter").write_text("1")
    before = files_of(tmp_path)
    for folder in (tmp_path / "thesis", tmp_path):
        with pytest.raises(UserError):
            LabelWriter.open(folder, spec_for(), ["a"], overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        LabelWriter.open(tmp_path / "thesis/chapter", spec_for(), ["a"], overwrite=True)
    assert files_of(tmp_path) == before
    rows = random_rows(spec_for(), [3])
    write_store(tmp_path / "s", spec_for(), rows)
    (tmp_path / "s/notes.txt").write_text("mine")
    LabelWriter.open(tmp_path / "s", spec_for(k=3), rows, overwrite=True)
    assert (tmp_path / "s/notes.txt").read_text() == "mine"
    assert not (tmp_path / "s/index.arrow").exists()


def test_no_utterances(tmp_path: Path) -> None:
    reader = write_store(tmp_path / "s", spec_for(), {})
    assert len(reader) == 0
    assert "a" not in reader
    assert len(reader.block([])) == 0
    assert reader.kept_ids().tolist() == []
    assert verify(tmp_path / "s") == []


def test_resume_writes_only_what_is_missing(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    write_store(tmp_path / "whole", spec_for(), rows)
    writer = LabelWriter.open(tmp_path / "s", spec_for(), rows)
    writer.write_shard(1, [rows[name] for name in writer.shard_ids(1)])
    stamp = (tmp_path / "s" / files.shard_name(spec_for(), 1)).stat().st_mtime_ns
    (tmp_path / "s/data/00000.arrow").write_bytes(b"half a sh")  # published without its mark
    (tmp_path / "s/data/.00002.arrow.abc.tmp").write_bytes(b"killed")
    again = LabelWriter.open(tmp_path / "s", spec_for(), rows)
    assert again.pending() == [0, 2]
    with pytest.raises(HkdError, match="2 shards are missing"):
        again.finish()
    write_store(tmp_path / "s", spec_for(), rows)
    assert LabelWriter.open(tmp_path / "s", spec_for(), rows).pending() == []
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "s").glob(".*")] == []
    assert (tmp_path / "s" / files.shard_name(spec_for(), 1)).stat().st_mtime_ns == stamp


def test_a_torn_mark_counts_as_none(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    write_store(tmp_path / "s", spec_for(), rows)
    for torn in (b"", b"{", b"[]", b'{"shard": 0}', b"\xff\xfe"):
        (tmp_path / "s/data/00000.json").write_bytes(torn)
        assert LabelWriter.open(tmp_path / "s", spec_for(), rows).pending() == [0]


def test_a_missing_index_is_made_in_memory_and_repair_writes_it(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    wanted = write_store(tmp_path / "s", spec_for(), rows).block(sorted(rows))
    index = (tmp_path / "s/index.arrow").read_bytes()
    for damage in (None, b"junk", index[: len(index) // 2]):
        if damage is None:
            (tmp_path / "s/index.arrow").unlink()
        else:
            (tmp_path / "s/index.arrow").write_bytes(damage)
        np.testing.assert_array_equal(
            LabelReader.open(tmp_path / "s").block(sorted(rows)).topk.ids_NK, wanted.topk.ids_NK
        )
        problems = verify(tmp_path / "s")
        assert [problem.kind for problem in problems] == ["index"]
        assert repair(tmp_path / "s", problems).dump_again == []
        assert (tmp_path / "s/index.arrow").read_bytes() == index


def test_repair_lists_what_to_dump_again_and_the_dump_heals_it(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    write_store(tmp_path / "s", spec_for(), rows)
    whole = files_of(tmp_path / "s")
    (tmp_path / "s/data/00001.arrow").write_bytes(b"junk")
    (tmp_path / "s/data/00000.arrow").unlink()
    (tmp_path / "s/data/00077.arrow").write_bytes(b"junk")
    problems = verify(tmp_path / "s")
    assert sorted(problem.kind for problem in problems) == ["flipped", "foreign", "missing"]
    dry = files_of(tmp_path / "s")
    assert repair(tmp_path / "s", problems, dry_run=True).dump_again == [0, 1]
    assert files_of(tmp_path / "s") == dry
    assert repair(tmp_path / "s", problems).dump_again == [0, 1]
    assert LabelWriter.open(tmp_path / "s", spec_for(), rows).pending() == [0, 1]
    write_store(tmp_path / "s", spec_for(), rows)
    assert files_of(tmp_path / "s") == whole


def test_a_full_disk_or_read_only_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    writer = LabelWriter.open(tmp_path / "s", spec_for(), rows)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HkdError, match="No space left on device"):
        writer.write_shard(0, [rows[name] for name in writer.shard_ids(0)])
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "s/data").iterdir()] == []
    assert writer.pending() == [0, 1, 2]


def test_quality_adds_up(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    write_store(tmp_path / "s", spec_for(), rows)
    marks = [json.loads(path.read_text())["quality"] for path in sorted((tmp_path / "s/data").glob("*.json"))]
    total, whole = merge(marks), quality_of(TopK.concatenate([row.topk for row in rows.values()]))
    assert total == pytest.approx(whole)
    assert merge([{"a": 1.0}, {"a": None}]) == {"a": None}
    assert figures({"positions": 0.0})["perplexity"] is None


def test_a_gold_unit_that_may_have_been_put_in_the_last_place_is_no_hit() -> None:
    found = quality_of(select_topk(torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2), torch.tensor([3, 1]), k=3))
    assert (found["topk_hits"], found["top1_hits"]) == (1, 0)


def test_quality_of_known_rows() -> None:
    spec = spec_for(4, k=4)
    topk = random_topk(spec, 200, np.random.default_rng(0), gold_share=1.0)
    p = np.exp(topk.logp_NK.astype(np.float64))
    found = figures(quality_of(topk))
    assert found["entropy"] == pytest.approx(float(-(p * np.log(p)).sum(1).mean()), rel=1e-5)
    assert found["perplexity"] == pytest.approx(float(np.exp(-topk.gold_logp_N.mean())), rel=1e-5)
    assert found["top1_hit_rate"] == pytest.approx(float((topk.ids_NK[:, 0] == topk.gold_N).mean()))
    assert (found["topk_hit_rate"], found["tail_mass"]) == (1.0, 0.0)


def test_open_stores_takes_one_or_several(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), [3, 2])
    for name in ("senone", "subword"):
        write_store(tmp_path / "shards" / name, spec_for(name=name), rows)
    assert sorted(open_stores(tmp_path / "shards")) == ["senone", "subword"]
    assert list(open_stores(str(tmp_path / "shards/senone"))) == ["senone"]
    for nothing in (tmp_path / "shards/senone/data", tmp_path / "absent"):
        with pytest.raises(UserError, match="teacher-dump"):
            store_folders(nothing)


def test_a_smaller_cache_gives_the_same_rows(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), [5] * 40)
    write_store(tmp_path / "s", spec_for(), rows)
    small, large = LabelReader.open(tmp_path / "s", cache_bytes=1), LabelReader.open(tmp_path / "s")
    order = list(np.random.default_rng(0).permutation(sorted(rows)))
    for _ in range(2):
        for a in range(0, 40, 7):
            np.testing.assert_array_equal(
                small.block(order[a : a + 7]).topk.logp_NK, large.block(order[a : a + 7]).topk.logp_NK
            )
    assert large.num_decoded == len(large.runs()) < small.num_decoded


def test_threads_share_a_reader(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), [5] * 60)
    reader = write_store(tmp_path / "s", spec_for(), rows)
    wanted = {name: reader.block([name]).topk.logp_NK for name in rows}
    shared = LabelReader.open(tmp_path / "s", cache_bytes=2000)
    wrong: list[str] = []

    def read(seed: int) -> None:
        for name in np.random.default_rng(seed).permutation(sorted(rows)):
            if not np.array_equal(shared.block([str(name)]).topk.logp_NK, wanted[str(name)]):
                wrong.append(str(name))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def other_process(store: Path, log: Path) -> Any:
    """Starts `write_in_another_process` in a process that forks from one where all is imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kit.workers"])
    process = context.Process(target=write_in_another_process, args=(str(store), str(log)))
    process.start()
    return process


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def check_published(store: Path, wanted: dict[str, bytes]) -> None:
    """Whatever bears its final name is whole."""
    for name, data in files_of(store).items() if store.exists() else ():
        if "/." not in f"/{name}":
            assert data == wanted[name], name


def test_killed_at_random_instants_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """`HKD_KILLS=200` asks for the full number."""
    spec, rows = killed_rows()
    write_store(tmp_path / "whole", spec, rows)
    wanted = files_of(tmp_path / "whole")
    rng = np.random.default_rng(0)
    store, log = tmp_path / "s", tmp_path / "log"
    kills, stores = int(os.environ.get("HKD_KILLS", "10")), 0
    while kills:
        before = len(lines(log))
        process = other_process(store, log)
        while len(lines(log)) == before:  # not yet "ready"
            time.sleep(0.001)
        time.sleep(float(rng.exponential(0.02)))
        if process.is_alive():
            process.kill()
            kills -= 1
        process.join()
        check_published(store, wanted)
        shards = [line for line in lines(log) if line not in ("ready", "finished")]
        assert len(shards) == len(set(shards)), "a finished shard was written again"
        if "finished" in lines(log) and kills:
            assert files_of(store) == wanted
            stores += 1
            store, log = tmp_path / f"s{stores}", tmp_path / f"log{stores}"
    process = other_process(store, log)
    process.join()
    assert process.exitcode == 0
    assert files_of(store) == wanted
    assert verify(store) == []


def test_two_writers_share_the_plan(tmp_path: Path) -> None:
    spec, rows = killed_rows()
    write_store(tmp_path / "whole", spec, rows)
    processes = [other_process(tmp_path / "s", tmp_path / f"log{i}") for i in range(2)]
    for process in processes:
        process.join()
    LabelWriter.open(tmp_path / "s", spec, rows).finish()
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")
    shards = [line for i in range(2) for line in lines(tmp_path / f"log{i}") if line not in ("ready", "finished")]
    assert sorted(map(int, shards)) == list(range(20))
