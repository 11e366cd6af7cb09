"""push and pull over fsspec: memory:// and file://."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from hkd.errors import HkdError, UserError
from hkd.labels.cache import local_folder
from hkd.labels.share import pull, push
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
    """Neither by its URL nor by the folder that stands for it, which holds no shards."""
    write_store("memory://bucket/subword", spec_for(), random_rows(spec_for(), [3, 2]))
    try:
        for store in ("memory://bucket/subword", local_folder("memory://bucket/subword")):
            with pytest.raises(UserError, match=r"must lie on this machine .* lies at memory://bucket/subword"):
                push(store, "memory://bucket/copy")
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)
