"""Stores that older versions wrote, and the second reader of docs/, which knows the specification alone."""

import json
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hkd.labels.share import verify
from hkd.labels.store import LabelReader
from hkd.testing.store import random_rows, same_rows, spec_for, write_store

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/label-store-1.0"
STORES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def load(path: Path) -> ModuleType:
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(values: list[Any]) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([float.fromhex(value) if isinstance(value, str) else value for value in values], np.float64)


def expected_of(name: str) -> dict[str, dict[str, list[Any]]]:
    result: dict[str, dict[str, list[Any]]] = json.loads((GOLDEN / f"{name}.expected.json").read_text(encoding="utf-8"))
    return result


def test_there_are_golden_stores() -> None:
    assert {"grid-arrow", "f16-arrow", "grid-zarr", "sample-arrow", "dense-arrow"} <= set(STORES)


@pytest.mark.parametrize("name", STORES)
def test_golden_stores_are_read_to_the_last_bit(name: str) -> None:
    assert verify(GOLDEN / name) == []
    reader, made = LabelReader.open(GOLDEN / name), load(ROOT / "tests/golden/make_label_stores.py")
    expected = expected_of(name)
    assert list(reader.ids) == sorted(expected)
    for utterance, wanted in expected.items():
        block = reader.block([utterance])
        found = made.rows_as_json(block.topk, block.word_N)
        assert found.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_array_equal(numbers(found[key]), numbers(wanted[key]))


@pytest.mark.parametrize("name", [name for name in STORES if name.endswith("arrow")])
def test_the_second_reader_reads_the_golden_stores(name: str) -> None:
    second, expected = load(ROOT / "docs/read_label_store.py"), expected_of(name)
    found = dict(second.read(GOLDEN / name))
    assert sorted(found) == sorted(expected)
    for utterance, columns in found.items():
        for key, values in columns.items():
            np.testing.assert_array_equal(np.asarray(values, np.float64).reshape(-1), numbers(expected[utterance][key]))


def test_the_second_reader_reads_wide_ids(tmp_path: Path) -> None:
    spec = spec_for(66_000, k=3)
    rows = random_rows(spec, [3, 0, 5])
    write_store(tmp_path / "s", spec, rows)
    for utterance, columns in load(ROOT / "docs/read_label_store.py").read(tmp_path / "s"):
        np.testing.assert_array_equal(columns["unit"], rows[utterance].topk.ids_NK)


def test_the_second_reader_is_short_and_needs_pyarrow_and_numpy_alone() -> None:
    path = ROOT / "docs/read_label_store.py"
    source = path.read_text(encoding="utf-8")
    imports = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports <= {"json", "sys", "pathlib", "numpy", "pyarrow"}
    assert len(source.splitlines()) <= 90
    done = subprocess.run(
        [sys.executable, str(path), str(GOLDEN / "grid-arrow"), "utt-0002"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("utt-0002 u")
    assert len(done.stdout.split()) == 8


def test_a_store_written_today_has_the_golden_rows(tmp_path: Path) -> None:
    made = load(ROOT / "tests/golden/make_label_stores.py")
    for name in STORES:
        spec = made.spec_of(name)
        rows = random_rows(spec, made.LENGTHS, seed=20)
        reader = write_store(tmp_path / name, spec, rows)
        golden = LabelReader.open(GOLDEN / name)
        assert reader.spec.digest == golden.spec.digest
        left, right = reader.block(reader.ids).topk, golden.block(reader.ids).topk
        np.testing.assert_array_equal(left.logp_NK, right.logp_NK)
        same_rows(left, type(left).concatenate([rows[utterance].topk for utterance in reader.ids]), spec)
