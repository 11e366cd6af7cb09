"""LJSpeech: a table with bars, bzip2."""

from pathlib import Path

import pytest

from hkd import corpora
from hkd.errors import UserError
from hkd.testing.files import sound, tar_of, write_files


def ljspeech(num: int = 10) -> dict[str, bytes]:
    rows = [f'LJ001-{n:04d}|Chapter {n}, "see p. {n}"|Chapter number {n}, "see page {n}"' for n in range(num)]
    files = {f"LJSpeech-1.1/wavs/LJ001-{n:04d}.wav": sound(rate_hz=22_050) for n in range(num)}
    return {"LJSpeech-1.1/metadata.csv": ("\n".join(rows) + "\n").encode(), "LJSpeech-1.1/README": b"", **files}


def test_the_archive_becomes_splits(publish, tmp_path: Path) -> None:
    archive = {"LJSpeech-1.1.tar.bz2": tar_of(ljspeech(), packed="bz2")}
    url = publish("ljspeech", archive, whole={"utterances": 10, "hours": 10 * 0.2 / 3600})
    whole = corpora.prepare("ljspeech", tmp_path / "p", cache=tmp_path / "c", base_url=url, download=True)
    assert whole.by_id("LJ001-0003").text == 'Chapter number 3, "see page 3"'
    assert {u.split for u in whole} == {"train", "dev", "test"}


def test_a_row_that_is_none(publish, tmp_path: Path) -> None:
    publish("ljspeech", {})
    root = write_files(tmp_path / "data", ljspeech(2))
    (root / "LJSpeech-1.1" / "metadata.csv").write_text("LJ001-0000|a|b\nno bars\n")
    with pytest.raises(UserError, match=r"metadata\.csv:2: a row must be ID"):
        corpora.prepare("ljspeech", tmp_path / "p", root=root)
