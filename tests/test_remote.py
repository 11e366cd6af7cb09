"""Copies of files at URLs: fetched once, whole, bounded, and told in one sentence where that fails."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from hkd import remote
from hkd.audio import check_audio, probe, read_audio, stamp, write_wav
from hkd.errors import HkdError, UserError
from hkd.manifest import Utterance


class Handler(SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        self.asked.append(f"{self.command} {self.path}")


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server of tmp_path/web on loopback: its URL, and what was asked of it."""
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    asked: list[str] = []
    handler = type("OneHandler", (Handler,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_sound_at_a_url_is_read_as_that_of_a_folder_and_fetched_once(
    tmp_path: Path, web: tuple[str, list[str]]
) -> None:
    url, asked = web
    wave_S = np.sin(np.arange(16_000) / 9).astype(np.float32) * 0.5
    path = tmp_path / "web" / "a b.wav"
    write_wav(path, wave_S)
    here = Utterance(id="a", text="", audio_filepath=str(path), offset=0.1, duration=0.5)
    for place in (f"{url}/a%20b.wav", f"file://{path}"):
        there = Utterance(id="a", text="", audio_filepath=place, offset=0.1, duration=0.5)
        for _ in range(2):
            np.testing.assert_array_equal(read_audio(there), read_audio(here))
        assert probe(place) == probe(path)
    assert len([line for line in asked if line.startswith("GET")]) == 1
    assert stamp(f"file://{path}")[1:] == stamp(str(path))[1:]
    os.utime(path, ns=(1, 1))
    assert stamp(str(path))[2] == 1


def test_what_cannot_be_had_is_one_sentence(tmp_path: Path, web: tuple[str, list[str]]) -> None:
    url, _ = web
    with pytest.raises(UserError, match=r"nothing\.wav must be there"):
        read_audio(Utterance(id="a", text="", audio_filepath=f"{url}/nothing.wav"))
    with pytest.raises(HkdError, match="cannot be read") as raised:
        read_audio(Utterance(id="a", text="", audio_filepath="http://127.0.0.1:9/a.wav"))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="file system"):
        read_audio(Utterance(id="a", text="", audio_filepath="nofs://a/a.wav"))
    (tmp_path / "web" / "b.wav").write_bytes(b"no sound")
    [problem] = check_audio([Utterance(id="a", text="", audio_filepath=f"{url}/b.wav")]).values()
    assert "cannot be read" in problem
    assert not list((tmp_path / "cache" / "files").glob(".*"))
    (tmp_path / "cache" / "files").rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / "files").write_text("in the way")
    with pytest.raises(HkdError, match="HKD_CACHE"):
        remote.local_copy(f"{url}/b.wav")


def test_over_its_bound_the_cache_drops_what_was_used_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HKD_CACHE", str(tmp_path))
    monkeypatch.setenv("HKD_CACHE_BYTES", "2500")
    system = fsspec.filesystem("memory")
    try:
        for name in "abc":
            system.pipe_file(f"/sound/{name}.wav", name.encode() * 1000)
        copies = [remote.local_copy(f"memory://sound/{name}.wav") for name in "abc"]
        assert all(path.exists() for path in copies)  # all of them in use
        for age, path in zip((3000, 5000, 4000), copies, strict=True):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
        system.pipe_file("/sound/d.wav", b"d" * 1000)
        assert remote.local_copy("memory://sound/d.wav").read_bytes() == b"d" * 1000
        assert [path.exists() for path in copies] == [True, False, False]
        assert remote.local_copy("memory://sound/b.wav").read_bytes() == b"b" * 1000
    finally:
        system.rm("/sound", recursive=True)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HKD_CACHE", str(tmp_path))
    assert remote.default_cache() == tmp_path
    monkeypatch.delenv("HKD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert remote.default_cache() == tmp_path / ".cache" / "hkd"


def test_a_folder_in_a_folder_of_its_name_is_listed() -> None:
    system = fsspec.filesystem("memory")
    for name in ("labels/labels/x", "labels/other", "labels/y/z"):
        system.pipe_file(f"/{name}", b"")
    try:
        assert remote.Remote("memory://labels").names() == ["labels", "other", "y"]
        assert remote.Remote("memory://labels").names("labels") == ["x"]
    finally:
        system.rm("/", recursive=True)
