"""Mini LibriSpeech from a loopback server, archives of the true layout."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from hkd import corpora, manifest
from hkd.corpora import librispeech, registry
from hkd.corpora.card import Expected, load_card
from hkd.errors import HkdError


@pytest.fixture
def small(server, make_librispeech, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server with both archives, and a card with their checksums and counts."""
    url, folder, _ = server
    card = load_card("mini_librispeech")
    archives = []
    for archive, speakers, first in zip(card.archives, (3, 4), (100, 200), strict=True):
        data = make_librispeech(archive.file.removesuffix(".tar.gz"), speakers, first=first)
        (folder / archive.file).write_bytes(data)
        archives.append(replace(archive, md5=hashlib.md5(data).hexdigest()))
    expected = {"train-clean-5": Expected(utterances=6), "dev-clean-2": Expected(utterances=8)}
    card = replace(card, archives=tuple(archives), parts=expected)
    for module in (librispeech, registry):
        monkeypatch.setattr(module, "load_card", lambda name: card)
    return url


def test_from_nothing_to_a_manifest_with_splits(small: str, tmp_path: Path) -> None:
    whole = corpora.prepare("mini_librispeech", tmp_path / "p", cache=tmp_path / "cache", base_url=small)
    assert len(whole) == 14
    assert {u.split for u in whole} == {"train", "dev", "test"}
    assert len(whole.split("train")) == 6
    speakers = {name: {u.speaker for u in whole.split(name)} for name in ("dev", "test")}
    assert not speakers["dev"] & speakers["test"]
    one = whole.by_id("100-2000-0000")
    assert one.text == "THE TEXT OF 100-2000 0"
    assert (one.recording, one.extra["part"], one.duration) == ("100-2000", "train-clean-5", 0.1) or one.extra[
        "part"
    ] == "dev-clean-2"
    assert manifest.read(tmp_path / "p" / "manifest.jsonl").digest == whole.digest
    before = (tmp_path / "p" / "manifest.jsonl").read_bytes()
    corpora.prepare(
        "mini_librispeech", tmp_path / "p", cache=tmp_path / "cache", base_url="http://127.0.0.1:9"
    )  # all is in the cache
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
    with pytest.raises(HkdError, match="not beside it"):
        corpora.prepare("mini_librispeech", tmp_path / "q", cache=cache, base_url=small)
