"""Training on label stores at a URL."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from hkd.config import build
from hkd.labels.share import push
from hkd.train.config import TrainConfig
from hkd.train.data import open_data


def test_stores_at_a_url_are_those_of_the_folder(
    labelled: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is the same run, so that one that was begun here goes on there."""
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    for folder in (labelled / "shards").iterdir():
        push(folder, f"memory://labels/{folder.name}")
    config = build(TrainConfig, tiny, where="train")
    inputs: dict[str, Any] = {
        "manifest": labelled / "manifest.jsonl",
        "units": labelled / "units",
        "alignment": labelled / "alignment.arrow",
    }
    try:
        here, there = (open_data(config, labels=place, **inputs) for place in (labelled / "shards", "memory://labels"))
        assert there.identity == here.identity
        name = here.train[0].id
        for level, store in here.join.stores.items():
            assert (there.join.stores[level].reader.block([name]).topk.ids_NK == store.reader.block([name]).topk.ids_NK).all()
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)
