"""yesno: the name is the text."""

from pathlib import Path

import pytest

from hkd import corpora
from hkd.errors import UserError
from hkd.testing.files import sound, tar_of, write_files


def yesno(num: int = 12) -> dict[str, bytes]:
    names = ["_".join(f"{n:08b}") for n in range(num)]
    return {"waves_yesno/README": b"", **{f"waves_yesno/{name}.wav": sound(rate_hz=8000) for name in names}}


def test_the_archive_becomes_splits(publish, tmp_path: Path) -> None:
    url = publish("yesno", {"waves_yesno.tar.gz": tar_of(yesno())}, whole={"utterances": 12})
    whole = corpora.prepare("yesno", tmp_path / "p", cache=tmp_path / "c", base_url=url)
    assert whole.by_id("0_0_0_0_1_0_1_1").text == "NO NO NO NO YES NO YES YES"
    assert {u.split for u in whole} == {"train", "dev", "test"}
    assert {u.duration for u in whole} == {0.2}


def test_a_name_that_is_no_text(publish, tmp_path: Path) -> None:
    publish("yesno", {})
    root = write_files(tmp_path / "data", yesno(2))
    (root / "waves_yesno" / "0_1_2.wav").write_bytes(sound())
    with pytest.raises(UserError, match=r"0_1_2\.wav: a name must be eight zeros or ones"):
        corpora.prepare("yesno", tmp_path / "p", root=root)
