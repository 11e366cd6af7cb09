"""The Arrow backend."""

from pathlib import Path

import numpy as np
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


WIDE = spec_for(60_000, k=40, block_positions=4096, utterances_per_shard=8)


def test_noise_and_other_bytes_come_back(tmp_path: Path) -> None:
    """Low bytes of unit ids that are evenly distributed are packed hastily; rows that all use few units are not."""
    rows = random_rows(WIDE, [90, 70, 60], seed=1)
    few = random_rows(WIDE, [90, 70, 60], seed=1)
    for row in few.values():
        row.topk.ids_NK[:] = np.arange(40)
        row.topk.gold_N[:] = 3
    sizes = []
    for name, written in (("noise", rows), ("few", few)):
        reader = write_store(tmp_path / name, WIDE, written)
        for utterance, row in written.items():
            np.testing.assert_array_equal(reader.block([utterance]).topk.ids_NK, row.topk.ids_NK)
        sizes.append(sum(file.stat().st_size for file in (tmp_path / name / "data").glob("*.arrow")))
    assert sizes[1] < sizes[0] - 220 * 40
