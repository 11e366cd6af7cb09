"""The Arrow backend."""

from pathlib import Path

import pytest

from hkd.testing.store import LabelStoreContract, random_rows, spec_for, write_store


class TestArrow(LabelStoreContract):
    backend = "arrow"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_datasets_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = random_rows(spec_for(), [3, 2, 7, 20, 9])
    write_store(tmp_path / "s", spec_for(), rows)
    found = datasets.load_dataset(
        "arrow", data_files=str(tmp_path / "s/data/*.arrow"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(name for block in found for name in block["id"]) == sorted(rows)
