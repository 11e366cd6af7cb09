"""merge, subset, Parquet."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkd.errors import UserError
from hkd.labels.ops import average, convert, export_parquet, merge, subset
from hkd.labels.share import push, verify
from hkd.labels.store import LabelReader
from hkd.testing.store import files_of, random_rows, spec_for, specs, write_store


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_splitting_and_merging_again_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    spec = data.draw(specs(num_units=(1, 2, 42, 300)))
    rows = random_rows(spec, data.draw(st.lists(st.sampled_from([0, 1, 2, 9]), min_size=2, max_size=8)))
    folder = tmp_path_factory.mktemp("stores")
    whole = write_store(folder / "whole", spec, rows)
    cut = data.draw(st.integers(1, len(rows) - 1))
    names = data.draw(st.permutations(sorted(rows)))
    subset(folder / "whole", folder / "a", names[:cut])
    subset(folder / "whole", folder / "b", names[cut:])
    merge([folder / "b", folder / "a"], folder / "again")
    assert verify(folder / "again") == []
    again = LabelReader.open(folder / "again")
    left, right = whole.block(whole.ids), again.block(again.ids)
    assert list(again.ids) == list(whole.ids)
    for name in ("ids_NK", "logp_NK", "tail_N", "gold_N", "gold_logp_N", "lse_NJ", "tail_NJ"):
        np.testing.assert_array_equal(getattr(left.topk, name), getattr(right.topk, name))
    np.testing.assert_array_equal(left.word_N, right.word_N)
    subset(folder / "whole", folder / "all", rows)
    data_of = {
        name: content for name, content in files_of(folder / "all").items() if name.endswith((".arrow", ".json"))
    }
    wanted = files_of(folder / "whole")
    for name, content in data_of.items():
        if name.endswith(".arrow"):
            assert content == wanted[name]


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    rows = random_rows(spec_for(), [3, 2, 4, 5])
    names = sorted(rows)
    write_store(tmp_path / "a", spec_for(), {name: rows[name] for name in names[:2]})
    write_store(tmp_path / "b", spec_for(), {name: rows[name] for name in names[1:]})
    with pytest.raises(UserError, match=f"'{names[1]}' must be in one"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    other = spec_for(teacher={"name": "other"})
    write_store(tmp_path / "c", other, {name: rows[name] for name in names[2:]})
    with pytest.raises(UserError, match="agree in `teacher"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    with pytest.raises(UserError, match="at least two"):
        merge([tmp_path / "a"], tmp_path / "out")
    with pytest.raises(UserError, match="'nobody'"):
        subset(tmp_path / "a", tmp_path / "out", ["nobody"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("selection", ["topk", "sample"])
def test_parquet_holds_every_number(tmp_path: Path, selection: str) -> None:
    spec = spec_for(selection=selection, temperatures=(2.0,))
    rows = random_rows(spec, [3, 0, 7])
    reader = write_store(tmp_path / "s", spec, rows)
    assert export_parquet(tmp_path / "s", tmp_path / "t.parquet") == 3
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert [row["id"] for row in table] == sorted(rows)
    for row in table:
        topk = reader.block([row["id"]]).topk
        np.testing.assert_array_equal(np.array(row["ids"], np.int32).reshape(-1, 8), topk.ids_NK)
        np.testing.assert_array_equal(np.array(row["logp"], np.float32).reshape(-1, 8), topk.logp_NK)
        np.testing.assert_array_equal(np.array(row["lse"], np.float32).reshape(-1, 1), topk.lse_NJ)
        np.testing.assert_array_equal(np.array(row["unit"], np.int32), topk.gold_N)
        if topk.count_NK is not None:
            np.testing.assert_array_equal(np.array(row["count"], np.uint16).reshape(-1, 8), topk.count_NK)


@pytest.mark.parametrize("how", ["itself", "a link"])
def test_no_store_is_made_over_one_that_it_is_made_of(tmp_path: Path, how: str) -> None:
    rows = random_rows(spec_for(), [3, 2, 7, 1, 5])
    first, second = ({name: rows[name] for name in names} for names in (sorted(rows)[:3], sorted(rows)[3:]))
    write_store(tmp_path / "a", spec_for(), first)
    write_store(tmp_path / "b", spec_for(), second)
    source = out = tmp_path / "a"
    if how == "a link":
        (out := tmp_path / "link").symlink_to(source)
    there = files_of(source)
    for make in (
        lambda: convert(source, out, backend="zarr", overwrite=True),
        lambda: merge([tmp_path / "b", source], out, overwrite=True),
        lambda: subset(source, out, sorted(first)[:1], overwrite=True),
        lambda: average(source, out, overwrite=True),
        lambda: push(source, f"file://{out}", overwrite=True),
    ):
        with pytest.raises(UserError, match="must be another"):
            make()
        assert files_of(source) == there
