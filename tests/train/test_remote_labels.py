"""Training on label stores at a URL."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3fs import S3FileSystem

from hkd.config import merge
from hkd.labels.share import push
from hkd.train.data import open_data
from kit.labelled import label_folder
from kit.runs import config_of, inputs
from kit.s3 import S3Server
from kit.workers import two_processes


def test_stores_at_a_url_are_those_of_the_folder(
    labelled: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is the same run, so that one that was begun here goes on there."""
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    for folder in (labelled / "shards").iterdir():
        push(folder, f"memory://labels/{folder.name}")
    config, given = config_of(tiny), inputs(labelled)
    try:
        here, there = (
            open_data(config, **{**given, "labels": place}) for place in (labelled / "shards", "memory://labels")
        )
        assert there.identity == here.identity
        name = here.train[0].id
        for level, store in here.join.stores.items():
            assert (
                there.join.stores[level].reader.block([name]).topk.ids_NK == store.reader.block([name]).topk.ids_NK
            ).all()
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)


def test_two_ranks_train_from_s3_through_a_cache_that_is_smaller_than_the_stores(
    labelled: Path,
    tmp_path: Path,
    tiny: dict[str, Any],
    start: Callable[..., "subprocess.Popen[str]"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped after a third, its cached shards damaged, and run again: it says so, and ends in the weights of local
    stores."""
    project = shutil.copytree(labelled, tmp_path / "project")
    shutil.rmtree(project / "shards")
    label_folder(project, utterances_per_shard=2)
    sizes = [path.stat().st_size for path in (project / "shards").rglob("*.arrow")]
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HKD_CACHE_BYTES", str(max(sizes) * 4))

    def trained(folder: Path, settings: dict[str, Any], *, stopped_at: str = "") -> str:
        process = start(project, folder, settings, command=two_processes())
        if stopped_at:
            assert process.stdout is not None
            assert any(line.strip() == stopped_at for line in process.stdout)
            process.terminate()
        _, said = process.communicate(timeout=240)
        assert stopped_at or process.returncode == 0, said
        return said

    tiny = merge(tiny, {"loop": {"max_steps": 60, "eval_every": 30}})
    trained(tmp_path / "here", tiny)
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # connected to the server of another test
        server.make_bucket("stores")
        for folder in (project / "shards").iterdir():
            push(folder, f"s3://stores/{folder.name}")
        far = {**tiny, "labels": "s3://stores"}
        trained(tmp_path / "there", far, stopped_at="20")
        assert not (tmp_path / "there" / "final.safetensors").exists()
        kept = list((tmp_path / "cache/labels/shards").glob("*.arrow"))
        assert 0 < sum(path.stat().st_size for path in kept) <= max(sizes) * 4
        for path in kept:
            path.write_bytes(b"x" * path.stat().st_size)
        # so that none of them makes room for others before it is read
        monkeypatch.setenv("HKD_CACHE_BYTES", str(sum(sizes)))
        assert "is damaged. It is fetched again" in trained(tmp_path / "there", far)
    for name in ("final.safetensors", "metrics.jsonl"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name
