"""push and pull over fsspec: memory:// and file://."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from hkd.errors import HkdError, UserError
from hkd.labels.share import pull, push
from hkd.labels.store import LabelWriter
from hkd.remote import Remote
from hkd.testing.store import files_of, random_rows, spec_for, write_store


@pytest.fixture(params=["memory://bucket", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield f"file://{tmp_path}/remote/subword" if request.param == "file" else f"{request.param}/subword"
    if request.param != "file":
        fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.mark.parametrize("backend", ["arrow", "zarr"])
def test_there_and_back(tmp_path: Path, url: str, backend: str) -> None:
    spec = spec_for(backend=backend)
    write_store(tmp_path / "s", spec, random_rows(spec, [3, 0, 7, 12, 1]))
    assert push(tmp_path / "s", url) > 0
    assert push(tmp_path / "s", url) == 0  # all is there
    pull(url, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "s")
    with pytest.raises(UserError, match="must not be there"):
        pull(url, tmp_path / "back")


def test_what_is_not_whole_does_not_travel(tmp_path: Path, url: str) -> None:
    spec = spec_for()
    write_store(tmp_path / "s", spec, random_rows(spec, [3, 0, 7, 12, 1]))
    push(tmp_path / "s", url)
    system, path = fsspec.core.url_to_fs(url)
    good = system.cat_file(f"{path}/data/00001.arrow")
    system.pipe_file(f"{path}/data/00001.arrow", good[:-9] + b"x" + good[-8:])
    with pytest.raises(HkdError, match="SHA-256"):
        pull(url, tmp_path / "back")
    system.rm_file(f"{path}/data/00001.arrow")
    with pytest.raises(HkdError, match=r"not complete|cannot be read"):
        pull(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    push(tmp_path / "s", url)
    pull(url, tmp_path / "back")
    (tmp_path / "s/data/00000.arrow").write_bytes(b"junk")
    with pytest.raises(HkdError, match="must be whole"):
        push(tmp_path / "s", url)


LENGTHS = [3, 0, 7, 12, 1, 5]


@pytest.mark.parametrize("backend", ["arrow", "zarr"])
def test_only_damaged_shards_are_fetched_again(
    tmp_path: Path, url: str, backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A byte is flipped on the way once, or a transfer is cut: the other shards are fetched once, and the store is
    whole."""
    spec = spec_for(backend=backend, utterances_per_shard=1)
    write_store(tmp_path / "s", spec, random_rows(spec, LENGTHS))
    push(tmp_path / "s", url)
    fetch, fetched = Remote.fetch, Counter[str]()

    def flaky(self: Remote, name: str, target: Path, *, limit: int | None = None) -> None:
        fetch(self, name, target, limit=limit)
        fetched[name] += 1
        if fetched[name] == 1 and "00002" in name and not name.endswith(".json"):
            data = bytearray(target.read_bytes())
            data[len(data) // 2] ^= 1
            target.write_bytes(data)
        if fetched[name] == 1 and "00004" in name and not name.endswith(".json"):
            target.write_bytes(target.read_bytes()[:-20])

    monkeypatch.setattr(Remote, "fetch", flaky)
    pull(url, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "s")
    suffix = "arrow" if backend == "arrow" else "zarr.zip"
    assert {
        name for name, count in fetched.items() if count > 1 and name.startswith("data/") and name.endswith(suffix)
    } == {f"data/{shard:05d}.{suffix}" for shard in (2, 4)}
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "2 of 6 shards came damaged (2, 4) and are fetched again."
    ]


def test_shards_that_came_well_are_kept_where_one_stays_damaged(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_for(utterances_per_shard=1)
    write_store(tmp_path / "s", spec, random_rows(spec, LENGTHS))
    push(tmp_path / "s", url)
    system, path = fsspec.core.url_to_fs(url)
    good = system.cat_file(f"{path}/data/00001.arrow")
    system.pipe_file(f"{path}/data/00001.arrow", good[:-9] + b"x" + good[-8:])
    with pytest.raises(HkdError, match=r"shard 1: its SHA-256 .* keeps the 5 shards that came well"):
        pull(url, tmp_path / "back")
    system.pipe_file(f"{path}/data/00001.arrow", good)
    fetch, fetched = Remote.fetch, Counter[str]()

    def counted(self: Remote, name: str, target: Path, *, limit: int | None = None) -> None:
        fetched[name] += name.endswith(".arrow") and "data" in name
        fetch(self, name, target, limit=limit)

    monkeypatch.setattr(Remote, "fetch", counted)
    pull(url, tmp_path / "back")
    assert +fetched == {"data/00001.arrow": 1}
    assert files_of(tmp_path / "back") == files_of(tmp_path / "s")


@pytest.mark.parametrize(("before", "after"), [("arrow", "arrow"), ("zarr", "arrow"), ("arrow", "zarr")])
def test_a_smaller_store_over_a_larger_one_leaves_none_of_its_shards(
    tmp_path: Path, url: str, before: str, after: str
) -> None:
    """What is no store's stays, as does a card that somebody wrote."""
    for name, backend, lengths in (("large", before, LENGTHS), ("small", after, LENGTHS[:2])):
        spec = spec_for(backend=backend, utterances_per_shard=1)
        rows = random_rows(spec, lengths)
        write_store(tmp_path / name, spec, rows)
        if name == "large":
            LabelWriter.open(tmp_path / name, spec, rows).finish(report={"ppl": 3.0})
            assert (tmp_path / name / "report.json").is_file()
    push(tmp_path / "large", url)
    system, path = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{path}/data/notes.txt", b"mine")
    push(tmp_path / "small", url, overwrite=True)
    found = {name.removeprefix(path).strip("/") for name in system.find(path)}
    assert found == {*files_of(tmp_path / "small"), "data/notes.txt"}
    pull(url, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "small")


def test_another_store_is_not_overwritten(tmp_path: Path, url: str) -> None:
    for name, k in (("a", 3), ("b", 4)):
        write_store(tmp_path / name, spec_for(k=k), random_rows(spec_for(k=k), [3, 2]))
    push(tmp_path / "a", url)
    with pytest.raises(UserError, match="holds another"):
        push(tmp_path / "b", url)
    push(tmp_path / "b", url, overwrite=True)
    pull(url, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "b")


def test_urls_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fsspec knows"):
        pull("nosuch://x/y", tmp_path / "a")
    with pytest.raises(UserError, match="like s3://"):
        pull("just/a/path", tmp_path / "a")
    with pytest.raises(UserError, match="must be a label store"):
        pull("memory://nothing", tmp_path / "a")


def test_what_lies_elsewhere_is_not_pushed(tmp_path: Path) -> None:
    write_store("memory://bucket/subword", spec_for(), random_rows(spec_for(), [3, 2]))
    try:
        with pytest.raises(UserError, match=r"must lie on this machine .* lies at memory://bucket/subword"):
            push("memory://bucket/subword", "memory://bucket/copy")
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)
