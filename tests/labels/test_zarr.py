"""The Zarr backend."""

from pathlib import Path

import numpy as np
import zarr

from hkd.testing.store import LabelStoreContract, random_rows, spec_for, write_store


class TestZarr(LabelStoreContract):
    backend = "zarr"


def test_zarr_alone_opens_it(tmp_path: Path) -> None:
    spec = spec_for(backend="zarr", codec="f16")
    rows = random_rows(spec, [3, 2])
    write_store(tmp_path / "s", spec, rows)
    group = zarr.open_group(zarr.storage.ZipStore(tmp_path / "s/data/00000.zarr.zip", mode="r"), mode="r")
    low_NK, high_NK = (group[f"unit.{byte}"][...].astype(np.int32) for byte in range(2))
    np.testing.assert_array_equal(
        low_NK + (high_NK << 8), np.concatenate([rows[name].topk.ids_NK for name in sorted(rows)])
    )
