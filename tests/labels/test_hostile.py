"""Stores that want to do harm: never a crash, more memory than the file justifies, a path outside the store, or code
run.

`HKD_FUZZ=2000` asks for more examples.
"""

import json
import os
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkd.errors import HkdError
from hkd.files import digest_of_file
from hkd.labels import format as files
from hkd.labels.share import repair, verify
from hkd.labels.store import LabelReader, open_stores
from hkd.testing.store import random_rows, spec_for, write_store

EXAMPLES = int(os.environ.get("HKD_FUZZ", "40"))
pytestmark = pytest.mark.timeout(300 + EXAMPLES)
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=["arrow", "zarr"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good store."""
    spec = spec_for(backend=request.param)
    path = tmp_path_factory.mktemp("hostile") / "s"
    write_store(path, spec, random_rows(spec, [3, 0, 7, 12, 1]))
    return path


def use(path: Path) -> None:
    """Everything a reader does; only hkd's own errors may come out, and no memory beyond 200 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said: list[str] = []
    for action in (
        lambda: verify(path),
        lambda: [reader.block(list(reader.ids)) for reader in open_stores(path).values()],
    ):
        try:
            action()
        except HkdError as error:
            said.append(str(error))
    assert not any("\n" in sentence for sentence in said)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{grown} KB"


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Flips, cuts, insertions, repeats."""
    result = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(result) - 1)))
        kind = data.draw(st.sampled_from(["flip", "flip", "set", "cut", "insert"]))
        if kind == "flip" and result:
            result[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set":
            result[at : at + 8] = data.draw(
                st.sampled_from([b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f", b"\x00\x00\x00\x40"])
            )
        elif kind == "cut":
            del result[at:]
        elif kind == "insert":
            result[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    return bytes(result)


@fuzz
@given(data=st.data())
def test_any_damage_of_any_file_is_an_error_at_worst(whole: Path, data: st.DataObject) -> None:
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(names))
    content = (whole / name).read_bytes()
    try:
        (whole / name).write_bytes(damaged(data, content))
        use(whole)
    finally:
        (whole / name).write_bytes(content)


@fuzz
@given(data=st.data())
def test_any_json_in_the_place_of_store_json(whole: Path, data: st.DataObject) -> None:
    content = (whole / "store.json").read_bytes()
    value = json.loads(content)
    anything = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    key = data.draw(st.sampled_from([*value, "new"]))
    value[key] = data.draw(anything)
    try:
        (whole / "store.json").write_text(json.dumps(value))
        use(whole)
    finally:
        (whole / "store.json").write_bytes(content)


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads((path / "store.json").read_text())
    edit(value)
    (path / "store.json").write_text(json.dumps(value))


def vouch(shard: Path) -> None:
    """Write the mark of a shard that was changed, as whoever means harm would."""
    mark = shard.with_name(f"{shard.name[:5]}.json")
    facts = json.loads(mark.read_text()) | {"bytes": shard.stat().st_size, "sha256": digest_of_file(shard)}
    mark.write_text(json.dumps(facts))


def rewrite_arrow(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite shard 0's first block with other columns, with a mark that vouches for it."""
    file = path / "data/00000.arrow"
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    rows = table.slice(0, 1).to_pydict()
    edit(rows)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(pa.record_batch(rows, schema=table.schema))
    vouch(file)


@pytest.fixture
def arrow_copy(tmp_path: Path) -> Path:
    spec = spec_for(utterances_per_shard=100, block_positions=1000)
    write_store(tmp_path / "s", spec, random_rows(spec, [3, 0, 7, 12, 1]))
    return tmp_path / "s"


def test_a_small_file_that_claims_to_be_huge_takes_no_memory(arrow_copy: Path) -> None:
    positions = 500_000_000
    zeros = zstandard.ZstdCompressor(level=19).compress(bytes(50_000_000))

    def huge(rows: dict[str, Any]) -> None:
        rows["num_positions"] = [[positions, 0, 0, 0, 0]]
        for name in ("unit.0", "unit.1", "code.0", "code.1"):
            rows[name] = [zeros]

    rewrite_arrow(arrow_copy, huge)
    (arrow_copy / "index.arrow").unlink()
    with pytest.raises(HkdError, match="must have 4000000000 bytes, but claims 50000000"):
        LabelReader.open(arrow_copy).block([LabelReader.open(arrow_copy).ids[0]])
    use(arrow_copy)


def test_a_frame_that_expands_without_end_is_refused(arrow_copy: Path) -> None:
    positions = 10_000_000
    frame = zstandard.ZstdCompressor(level=19).compress(bytes(8 * positions))
    assert len(frame) < 20_000

    def bomb(rows: dict[str, Any]) -> None:
        rows["num_positions"] = [[positions, 0, 0, 0, 0]]
        rows["unit.0"] = [frame]

    rewrite_arrow(arrow_copy, bomb)
    (arrow_copy / "index.arrow").unlink()
    with pytest.raises(HkdError, match="claim to stand for 80000000"):
        LabelReader.open(arrow_copy).block([LabelReader.open(arrow_copy).ids[0]])


@pytest.mark.parametrize("lengths", [[-1, 0, 0, 0, 0], [3, 0], [2**31 - 1] * 5])
def test_lengths_that_cannot_be(arrow_copy: Path, lengths: list[int]) -> None:
    def edit(rows: dict[str, Any]) -> None:
        rows["num_positions"] = [lengths]

    rewrite_arrow(arrow_copy, edit)
    (arrow_copy / "index.arrow").unlink()
    use(arrow_copy)
    assert verify(arrow_copy)


def test_lists_that_begin_elsewhere_are_refused(arrow_copy: Path) -> None:
    """Arrow lets a list begin anywhere in its values: blocks are cut by offsets, so these must begin at 0."""
    file = arrow_copy / "data/00000.arrow"
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
    columns = []
    for name, column in zip(table.schema.names, table.columns, strict=True):
        array = column.combine_chunks()
        if name in ("id", "num_positions"):
            values = pa.concat_arrays([array.flatten()[:2], array.flatten()])
            array = pa.ListArray.from_arrays(pa.array([2, len(values)], pa.int32()), values)
        columns.append(array)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=table.schema))
    (arrow_copy / "index.arrow").unlink()
    use(arrow_copy)


@pytest.mark.parametrize("lengths", [[3, 0, 7, 12, 2], [3, 7, 0, 12, 1], [-1, 0, 7, 12, 1], [2**31 - 1] * 5])
def test_an_index_with_other_lengths_than_the_shards_is_refused(
    whole: Path, tmp_path: Path, lengths: list[int]
) -> None:
    """Batches are planned by the index and filled from the shards: where these differ, nothing may be read."""
    shutil.copytree(whole, tmp_path / "s")
    path = tmp_path / "s" / "index.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    place = table.schema.get_field_index("num_positions")
    table = table.set_column(place, table.schema.field(place), [pa.array(lengths, pa.int32())])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    reader = LabelReader.open(tmp_path / "s")
    with pytest.raises(HkdError, match="its utterances are not those of the index"):
        reader.block(list(reader.ids))
    assert [problem.kind for problem in verify(tmp_path / "s")] == ["index"]
    use(tmp_path / "s")


def test_ids_are_never_paths(tmp_path: Path) -> None:
    spec = spec_for()
    rows = random_rows(spec, [2, 3])
    evil = "../../../../etc/passwd\x00\n"
    row = next(iter(rows.values()))
    rows[evil] = type(row)(
        id=evil, topk=row.topk, word_U=row.word_U, unit_digest=row.unit_digest, text_digest=row.text_digest
    )
    (tmp_path / "deep").mkdir()
    before = sorted(tmp_path.rglob("*"))
    reader = write_store(tmp_path / "deep/s", spec, rows)
    np.testing.assert_array_equal(reader.block([evil]).topk.ids_NK, row.topk.ids_NK)
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "deep/s" not in [path, *path.parents]] == before


def test_the_inventory_file_is_not_named_by_the_store(arrow_copy: Path) -> None:
    change(arrow_copy, lambda value: value["inventory"].update(file="/etc/passwd"))
    use(arrow_copy)


def test_repair_removes_nothing_outside_data(arrow_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.arrow").write_bytes(b"1")
    (arrow_copy / "data/00009.arrow").symlink_to(tmp_path / "mine.arrow")
    (arrow_copy / "data/notes.txt").write_text("mine")
    problems = verify(arrow_copy)
    assert len(problems) == 2
    repair(arrow_copy, problems)
    assert (tmp_path / "mine.arrow").exists()
    assert (arrow_copy / "data/notes.txt").exists()


def test_a_million_shards_that_are_not_there(arrow_copy: Path) -> None:
    change(arrow_copy, lambda value: value.update(num_utterances=2**39, utterances_per_shard=1))
    with pytest.raises(HkdError, match="at most 100000 shards"):
        LabelReader.open(arrow_copy)
    with pytest.raises(HkdError, match="at most 100000 shards"):
        verify(arrow_copy)


def test_a_zip_bomb(tmp_path: Path) -> None:
    spec = spec_for(backend="zarr", utterances_per_shard=100)
    write_store(tmp_path / "s", spec, random_rows(spec, [3, 0, 7]))
    path = tmp_path / "s" / files.shard_name(spec, 0)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    deflated = tmp_path / "bomb.zip"
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("junk", bytes(10_000_000))
    shutil.copy(deflated, path)
    vouch(path)
    with pytest.raises(HkdError, match="stored, not compressed"):
        LabelReader.open(tmp_path / "s").block([]) or LabelReader.open(tmp_path / "s").block(
            list(random_rows(spec, [3, 0, 7]))
        )
    huge = json.loads(members["unit.0/zarr.json"])
    huge["shape"] = [10**9, 8]
    huge["chunk_grid"]["configuration"]["chunk_shape"] = [10**9, 8]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(huge).encode() if name == "unit.0/zarr.json" else content)
    vouch(path)
    use(tmp_path / "s")
    assert verify(tmp_path / "s")
