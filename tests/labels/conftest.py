"""Fixtures of label stores elsewhere: a cache of the test's own, and S3 on loopback."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from s3fs import S3FileSystem

from kit.s3 import S3Server

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shards of remote stores are kept."""
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/labels"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One for all tests but those that kill theirs."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of the test's own."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # connected to the server of another test
    bucket = f"bucket-{next(_numbers)}"
    s3_server.make_bucket(bucket)
    return f"s3://{bucket}"


@pytest.fixture(params=["memory", "s3"])
def far(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty folder at a URL: in this process's memory, or on S3."""
    if request.param == "s3":
        yield f"{request.getfixturevalue('s3')}/stores"
        return
    yield "memory://stores"
    fsspec.filesystem("memory").rm("/", recursive=True)
