"""The cache of remote stores: checked, bounded, never the old store for the new one, harmless to who is reading."""

import pickle
import resource
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from hkd.errors import HkdError, UserError
from hkd.labels import folder
from hkd.labels.store import LabelReader, LabelWriter, store_folders
from hkd.remote import Remote, bound_bytes
from hkd.testing.store import random_rows, spec_for, write_store

LENGTHS = [3, 0, 7, 12, 1, 30, 2, 2, 5, 6]
URL = "memory://stores/s"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").rm("/", recursive=True)


def cached(own_cache: Path) -> list[Path]:
    return sorted((own_cache / "shards").iterdir()) if (own_cache / "shards").is_dir() else []


def empty(own_cache: Path) -> None:
    for path in cached(own_cache):
        path.unlink()


def test_opening_fetches_no_shard_and_reading_one_fetches_one(own_cache: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    write_store(URL, spec_for(), rows)
    empty(own_cache)
    reader = LabelReader.open(URL)
    assert cached(own_cache) == []
    reader.block([sorted(rows)[5]])
    assert len(cached(own_cache)) == 1
    again: LabelReader = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.block(sorted(rows)).topk.ids_NK, reader.block(sorted(rows)).topk.ids_NK)
    assert store_folders("memory://stores") == {"s": URL} == {"s": reader.path}


def test_what_is_in_the_cache_is_not_fetched_again(own_cache: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    reader = write_store(URL, spec_for(), rows)
    reader.block(sorted(rows))
    for shard in range(3):
        Remote(URL).remove(f"data/{shard:05d}.arrow")
    np.testing.assert_array_equal(
        LabelReader.open(URL).block(sorted(rows)).topk.ids_NK, reader.block(sorted(rows)).topk.ids_NK
    )


def test_a_cached_shard_that_is_damaged_is_fetched_again(own_cache: Path) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    wanted = write_store(URL, spec_for(), rows).block(sorted(rows)).topk.ids_NK
    folder._checked.clear()  # as in another process
    for path in cached(own_cache):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    np.testing.assert_array_equal(LabelReader.open(URL).block(sorted(rows)).topk.ids_NK, wanted)


def test_a_shard_that_comes_wrong_is_fetched_once_more_then_refused(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    wanted = write_store(URL, spec_for(), rows).block(sorted(rows)).topk.ids_NK
    empty(own_cache)
    system = fsspec.filesystem("memory")
    fetched: list[str] = []
    wrong = {"times": 1}
    right = type(system).get_file

    def flipped(self: object, path: str, target: str, **options: object) -> None:
        """A line that flips a bit."""
        right(self, path, target, **options)
        fetched.append(path)
        if len(fetched) <= wrong["times"]:
            data = bytearray(Path(target).read_bytes())
            data[7] ^= 1
            Path(target).write_bytes(data)

    monkeypatch.setattr(type(system), "get_file", flipped)
    np.testing.assert_array_equal(LabelReader.open(URL).block(sorted(rows)).topk.ids_NK, wanted)
    assert sum(path.endswith(".arrow") and "index" not in path for path in fetched) == 4
    empty(own_cache)
    wrong["times"] = 10**9
    fetched.clear()
    with pytest.raises(HkdError, match=r"must have the SHA-256 .* but came with another, twice"):
        LabelReader.open(URL).block([sorted(rows)[0]])
    assert sum("/data/" in path for path in fetched) == 2
    assert [path for path in cached(own_cache) if path.suffix != ".tmp"] == []


def test_a_store_written_anew_is_another(own_cache: Path) -> None:
    """Same settings, same ids, other labels: the running reader keeps to its own, a new one sees the new."""
    rows, others = random_rows(spec_for(), LENGTHS), random_rows(spec_for(), LENGTHS, seed=1)
    old = write_store(URL, spec_for(), rows)
    before = old.block([sorted(rows)[5]]).topk.ids_NK
    LabelWriter.open(URL, spec_for(), others, overwrite=True)
    write_store(URL, spec_for(), others)
    new, other = LabelReader.open(URL), pickle.dumps(old)
    assert not np.array_equal(new.block([sorted(rows)[5]]).topk.ids_NK, before)
    np.testing.assert_array_equal(old.block([sorted(rows)[5]]).topk.ids_NK, before)
    again: LabelReader = pickle.loads(other)  # a worker of the run that began with the old one
    np.testing.assert_array_equal(again.block([sorted(rows)[5]]).topk.ids_NK, before)
    empty(own_cache)
    for reader in (again, pickle.loads(other)):
        with pytest.raises(HkdError, match="SHA-256"):
            reader.block([sorted(rows)[1]])


def test_the_cache_keeps_its_bound_and_readers_notice_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_for(utterances_per_shard=1)
    rows = random_rows(spec, [20] * 12)
    wanted = write_store(URL, spec, rows).block(sorted(rows)).topk.logp_NK
    sizes = [path.stat().st_size for path in cached(own_cache)]
    assert len(sizes) == 12
    monkeypatch.setenv("HKD_CACHE_BYTES", str(sum(sizes[:4])))
    empty(own_cache)
    readers = [LabelReader.open(URL, cache_bytes=1) for _ in range(2)]
    order = [sorted(rows)[i] for i in np.random.default_rng(0).permutation(12)]
    for name in order * 2:
        for reader in readers:
            reader.block([name])
            assert sum(path.stat().st_size for path in cached(own_cache)) <= sum(sizes[:4])
    np.testing.assert_array_equal(readers[0].block(sorted(rows)).topk.logp_NK, wanted)
    monkeypatch.setenv("HKD_CACHE_BYTES", "much")
    with pytest.raises(UserError, match="HKD_CACHE_BYTES must be a number"):
        bound_bytes()


def test_the_shard_that_was_used_longest_ago_goes_first(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_for(utterances_per_shard=1)
    rows = random_rows(spec, [20] * 4)
    ids = sorted(rows)
    write_store(URL, spec, rows)
    empty(own_cache)
    reader = LabelReader.open(URL)
    reader.block(ids[:3])
    first, second, third = (reader.folder.shard_file(reader.spec, shard) for shard in range(3))
    LabelReader.open(URL).block(ids[:1])  # used again
    total = sum(path.stat().st_size for path in cached(own_cache))
    monkeypatch.setenv("HKD_CACHE_BYTES", str(total + first.stat().st_size // 2))
    LabelReader.open(URL).block([ids[3]])
    assert (first.exists(), second.exists(), third.exists()) == (True, False, True)


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(URL, spec_for(), random_rows(spec_for(), [3]))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "file"))
    reader = LabelReader.open(URL)  # which needs no cache
    with pytest.raises(HkdError, match=r"^the cache .* cannot be used .*HKD_CACHE"):
        reader.block(list(reader.ids))


def test_a_full_disk_is_this_machines_fault_not_the_urls(own_cache: Path) -> None:
    rows = random_rows(spec_for(), [3, 200])
    write_store(URL, spec_for(), rows)
    empty(own_cache)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    reader = LabelReader.open(URL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # no file may be longer
    try:
        with pytest.raises(HkdError, match=r"^the cache .* cannot be used \(File too large\)"):
            reader.block(sorted(rows))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(reader.block(sorted(rows))) == 2


def test_a_file_that_is_too_long_is_not_fetched(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    write_store(URL, spec_for(), rows)
    empty(own_cache)
    system = fsspec.filesystem("memory")
    for name in ("data/00000.arrow", "index.arrow"):
        system.pipe_file(f"{URL}/{name}", system.cat_file(f"{URL}/{name}") + bytes(1 << 21))
    fetched: list[str] = []
    monkeypatch.setattr(type(system), "get_file", lambda _, path, target: fetched.append(path))
    with pytest.raises(HkdError, match="SHA-256"):
        LabelReader.open(URL).block([sorted(rows)[0]])
    assert fetched == []
