"""LibriSpeech and Mini LibriSpeech from a loopback server, from archives and from folders of the true layout."""

from pathlib import Path

import pytest

from hkd import corpora, manifest
from hkd.errors import HkdError, UserError


@pytest.fixture
def small(publish, make_librispeech) -> str:
    """A server with both archives of Mini LibriSpeech, and a card with their checksums and counts."""
    archives = {
        f"{part}.tar.gz": make_librispeech(part, n, first=f)
        for part, n, f in (("train-clean-5", 3, 100), ("dev-clean-2", 4, 200))
    }
    return publish("mini_librispeech", archives, parts={"train-clean-5": {"utterances": 6}, "dev-clean-2": {"utterances": 8}})


def test_from_nothing_to_a_manifest_with_splits(small: str, tmp_path: Path) -> None:
    whole = corpora.prepare("mini_librispeech", tmp_path / "p", cache=tmp_path / "cache", base_url=small)
    assert len(whole) == 14
    assert {u.split for u in whole} == {"train", "dev", "test"}
    assert len(whole.split("train")) == 6
    speakers = {name: {u.speaker for u in whole.split(name)} for name in ("dev", "test")}
    assert not speakers["dev"] & speakers["test"]
    one = whole.by_id("100-2000-0000")
    assert one.text == "THE TEXT OF 100-2000 0"
    assert (one.recording, one.extra["part"], one.duration) == ("100-2000", "train-clean-5", 0.1)
    assert manifest.read(tmp_path / "p" / "manifest.jsonl").digest == whole.digest
    assert not list(tmp_path.rglob("cache/**/*.tar.gz"))
    before = (tmp_path / "p" / "manifest.jsonl").read_bytes()
    nowhere = "http://127.0.0.1:9"  # all is in the cache
    corpora.prepare("mini_librispeech", tmp_path / "p", cache=tmp_path / "cache", base_url=nowhere)
    assert (tmp_path / "p" / "manifest.jsonl").read_bytes() == before


def test_a_manifest_that_is_not_as_the_card_says_is_refused(small: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    corpora.prepare("mini_librispeech", tmp_path / "p", cache=cache, base_url=small)
    transcript = next((cache / "mini_librispeech").rglob("*.trans.txt"))
    transcript.write_text(transcript.read_text().splitlines()[0] + "\n")
    with pytest.raises(HkdError, match="utterances instead of"):
        corpora.prepare("mini_librispeech", tmp_path / "q", cache=cache, base_url=small)
    for flac in transcript.parent.glob("*.flac"):
        flac.unlink()
    with pytest.raises(HkdError, match=r"trans\.txt:1: audio file .*\.flac: No such file"):
        corpora.prepare("mini_librispeech", tmp_path / "q", cache=cache, base_url=small)


PARTS = ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other")


@pytest.fixture
def large(publish, make_librispeech) -> tuple[str, dict[str, bytes]]:
    """A server with five of LibriSpeech's seven archives."""
    archives = {f"{part}.tar.gz": make_librispeech(part, 1, first=100 * n) for n, part in enumerate(PARTS, 1)}
    return publish("librispeech", archives, parts={part: {"utterances": 2} for part in PARTS}), archives


def test_large_corpora_are_fetched_when_told_to_and_by_parts(large, tmp_path: Path) -> None:
    url, _ = large
    with pytest.raises(
        UserError, match=r"train-clean-100\.tar\.gz, which is not in .*--root DIR .* or --download \(about 60 GB\)"
    ):
        corpora.prepare("librispeech", tmp_path / "p", cache=tmp_path / "c", base_url=url)
    whole = corpora.prepare("librispeech", tmp_path / "p", cache=tmp_path / "c", base_url=url, download=True, parts=PARTS)
    assert {u.split for u in whole} == {"train", "dev", "dev-other", "test", "test-other"}
    assert {u.extra["part"] for u in whole.split("test")} == {"test-clean"}
    two = corpora.prepare("librispeech", tmp_path / "q", cache=tmp_path / "c", parts=("dev-clean", "train-clean-100"))
    assert [u.split for u in two] == ["train", "train", "dev", "dev"]
    with pytest.raises(UserError, match=r"part of librispeech must be one of train-clean-100, .* but is 'dev' instead"):
        corpora.prepare("librispeech", tmp_path / "r", cache=tmp_path / "c", parts=("dev",))
    with pytest.raises(HkdError, match=r"train-clean-360\.tar\.gz could not be fetched \(404 Not Found\)"):
        corpora.prepare("librispeech", tmp_path / "r", cache=tmp_path / "c", base_url=url, download=True)


def test_a_root_may_hold_folders_or_archives(large, tmp_path: Path) -> None:
    _, archives = large
    corpora.prepare("librispeech", tmp_path / "p", cache=tmp_path / "c", base_url=large[0], download=True, parts=("dev-clean",))
    unpacked = tmp_path / "c" / "librispeech" / "dev-clean"
    for root in (unpacked, unpacked / "LibriSpeech"):
        whole = corpora.prepare("librispeech", tmp_path / "p", cache=tmp_path / "none", root=root)
        assert {u.extra["part"] for u in whole} == {"dev-clean"}
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "test-other.tar.gz").write_bytes(archives["test-other.tar.gz"])
    assert {u.split for u in corpora.prepare("librispeech", tmp_path / "q", cache=tmp_path / "d", root=packed)} == {"test-other"}
    (packed / "dev-other.tar.gz").write_bytes(b"something else")
    with pytest.raises(HkdError, match="sha256"):
        corpora.prepare("librispeech", tmp_path / "q", cache=tmp_path / "d", root=packed)
    assert (packed / "dev-other.tar.gz").exists(), "the user's own file stays"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must hold parts of librispeech"):
        corpora.prepare("librispeech", tmp_path / "q", cache=tmp_path / "e", root=tmp_path / "empty")
