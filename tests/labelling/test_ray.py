"""The executor ray: the bytes of the local one, whoever dies; real clusters, real kills."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from s3fs import S3FileSystem

from hkd.errors import UserError
from hkd.labelling.dump import DumpConfig, DumpJob, DumpReport, execute
from hkd.labelling.ray import WorkerResources, share_of
from kit.s3 import S3Server

BERT = DumpConfig(k=5, temperatures=(2.0,), codec="f16", utterances_per_shard=16)
TRIGRAM = DumpConfig(k=5, utterances_per_shard=1)


pytestmark = pytest.mark.timeout(900)  # a cluster starts slowly on a busy machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with a core each and credentials for a bucket called labels, and this process connected to the
    first."""
    size = {"num_cpus": 1, "object_store_memory": 80 << 20}
    with pytest.MonkeyPatch.context() as patch, S3Server() as server:
        server.make_bucket("labels")
        cache = {"HKD_CACHE": str(tmp_path_factory.mktemp("cache"))}
        for name, value in {
            **server.environment,
            **cache,
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
        cluster.add_node(**size)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def bert_job(texts: Path, bert: Path, out: Path, **changes: Any) -> DumpJob:
    return DumpJob(manifest=texts, out=out, lm=str(bert), unit="subword", **{"device": "cpu", "store": BERT, **changes})


def trigram_job(prepared: Path, out: Path | str) -> DumpJob:
    """A teacher that is loaded at once, and a shard an utterance."""
    manifest, alignment = prepared / "manifest.jsonl", prepared / "alignment.arrow"
    return DumpJob(manifest=manifest, out=out, lm="phone-trigram", unit="monophone", store=TRIGRAM, alignment=alignment)


def on_ray(job: DumpJob, **options: Any) -> DumpReport:
    return execute(job, executor="ray", **{"workers": 2, **options})


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def written(store: Path) -> dict[str, tuple[int, int]]:
    """Which file each shard that has its mark is now: a file that is written again is another one."""
    marks = store.glob("data/*.json")
    return {m.stem: (m.stat().st_ino, m.stat().st_mtime_ns) for m in marks}


def stopped_in_a_shard(
    raylet: psutil.Process, store: Path, *, after: int
) -> tuple[psutil.Process, dict[str, tuple[int, int]]]:
    """A worker below `raylet`, stopped in the middle of a shard, once `after` shards are written; and what is
    written."""
    give_up = time.monotonic() + 200
    while time.monotonic() < give_up:
        for process in raylet.children(recursive=True) if len(written(store)) >= after else ():
            with contextlib.suppress(psutil.Error):
                if is_labelling(process):
                    process.suspend()
                    time.sleep(0.05)
                    if is_labelling(process):
                        return process, written(store)
                    process.resume()
        time.sleep(0.01)
    raise AssertionError("no worker was in the middle of a shard")


def is_labelling(process: psutil.Process) -> bool:
    return process.cmdline()[:1] == ["ray::Worker.label"]


def disturbed(job: DumpJob, disturb: Callable[[], None]) -> DumpReport:
    """The dump while `disturb` runs beside it."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(disturb)
        report = on_ray(job)
        done.result(timeout=1)
    return report


def test_two_workers_give_the_bytes_of_one_process_with_two_threads(
    cluster: Cluster, texts: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)
    try:
        one = execute(bert_job(texts, bert, Path("one")))
    finally:
        torch.set_num_threads(1)
    two = on_ray(bert_job(texts, bert, Path("two")), progress=lambda done, total, **facts: seen.append((done, total)))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert seen == [(n + 1, 7) for n in range(7)]
    assert (one.store, two.store) == (Path("one"), Path("two"))
    for same in (
        "positions",
        "scored_positions",
        "shards_done",
        "shards_missing",
        "quality",
        "without_units",
        "left_out",
    ):
        assert getattr(two, same) == getattr(one, same)
    assert (two.workers, two.workers_lost) == (2, 0)
    assert two.seconds.keys() == one.seconds.keys()
    assert all(value > 0 for value in two.seconds.values())
    with pytest.raises(UserError, match="its k is 5 instead of 4"):  # as a worker says it
        on_ray(bert_job(texts, bert, tmp_path / "two", store=replace(BERT, k=4)))


def test_workers_write_to_a_bucket(cluster: Cluster, prepared: Path, tmp_path: Path) -> None:
    execute(trigram_job(prepared, tmp_path / "one"))
    report = on_ray(trigram_job(prepared, "s3://labels/two"))
    S3FileSystem.clear_instance_cache()
    assert report.store == "s3://labels/two"
    bucket = S3FileSystem()
    found = {name.removeprefix("labels/two/"): bucket.cat_file(name) for name in bucket.find("labels/two")}
    assert found == contents(tmp_path / "one")


def test_a_killed_worker_costs_its_shard_and_no_other(
    cluster: Cluster, prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before: dict[str, tuple[int, int]] = {}

    def kill() -> None:
        victim, done = stopped_in_a_shard(psutil.Process(), tmp_path / "two", after=3)
        before.update(done)
        victim.kill()

    one = execute(trigram_job(prepared, tmp_path / "one"))
    two = disturbed(trigram_job(prepared, tmp_path / "two"), kill)
    assert two.workers_lost == 1
    assert "which another one does again" in caplog.text
    assert 3 <= len(before) < one.shards
    assert {name: written(tmp_path / "two")[name] for name in before} == before
    assert two.shards_done == one.shards
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_lost_node_costs_the_shard_that_its_worker_was_at(cluster: Cluster, prepared: Path, tmp_path: Path) -> None:
    nodes = cluster.head_node, next(iter(cluster.worker_nodes))
    stays, goes = (psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes)

    def lose() -> None:
        # else it might do all before the node's worker has begun
        other, _ = stopped_in_a_shard(stays, tmp_path / "two", after=0)
        try:
            stopped_in_a_shard(goes, tmp_path / "two", after=0)
            for process in [goes, *goes.children(recursive=True)]:
                process.kill()
        finally:
            other.resume()

    execute(trigram_job(prepared, tmp_path / "one"))
    two = disturbed(trigram_job(prepared, tmp_path / "two"), lose)
    assert two.workers_lost == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_options_that_do_not_go_together(texts: Path, bert: Path, tmp_path: Path) -> None:
    job = bert_job(texts, bert, tmp_path / "a")
    with pytest.raises(UserError, match="executor must be one of local, ray"):
        execute(job, executor="dask")
    with pytest.raises(UserError, match="rank and world_size must be left out"):
        on_ray(job, rank=1, world_size=2)
    with pytest.raises(UserError, match="Add --executor ray"):
        execute(job, workers=2)
    with pytest.raises(UserError, match="workers must not be negative"):
        on_ray(job, workers=-1)


def node(cpus: int, gpus: int = 0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "share"),
    [
        ([node(8)], "auto", 0, WorkerResources(workers=1, threads=8, num_cpus=8, num_gpus=0)),
        (
            [node(8), node(4), node(64, alive=False)],
            "auto",
            0,
            WorkerResources(workers=2, threads=4, num_cpus=4, num_gpus=0),
        ),
        ([node(3), node(3)], "auto", 2, WorkerResources(workers=2, threads=3, num_cpus=3, num_gpus=0)),
        ([node(2)], "auto", 5, WorkerResources(workers=5, threads=1, num_cpus=1, num_gpus=0)),
        ([node(0), node(16, 4), node(16, 4)], "auto", 0, WorkerResources(workers=8, threads=4, num_cpus=1, num_gpus=1)),
        ([node(16, 4)], "cpu", 2, WorkerResources(workers=2, threads=8, num_cpus=8, num_gpus=0)),
        ([node(16)], "cuda", 0, WorkerResources(workers=1, threads=16, num_cpus=1, num_gpus=1)),
    ],
)
def test_shares(nodes: list[dict[str, Any]], device: str, workers: int, share: WorkerResources) -> None:
    assert share_of(nodes, device, workers) == share


def test_one_gpu_among_several_cannot_be_chosen() -> None:
    with pytest.raises(UserError, match="cuda:1"):
        share_of([node(16, 4)], "cuda:1", 0)
