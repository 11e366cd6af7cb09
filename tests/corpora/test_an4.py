"""AN4: SPHERE files, CMU's lists."""

from pathlib import Path

import pytest

from hkd import corpora
from hkd.audio import check_audio
from hkd.errors import UserError
from hkd.testing.files import sound, tar_of, write_files


def an4(train_speakers: int = 10) -> dict[str, bytes]:
    files: dict[str, bytes] = {"an4/README": b"readme"}
    for part, folder, speakers in (("train", "an4_clstk", train_speakers), ("test", "an4test_clstk", 2)):
        ids, lines = [], []
        for n in range(speakers):
            speaker = f"{part}{n}"
            name = f"an{n}-{speaker}-b"
            files[f"an4/wav/{folder}/{speaker}/{name}.sph"] = sound(format="NIST")
            ids.append(f"{folder}/{speaker}/{name}")
            lines.append(f"<s> ENTER FIVE  SIX </s> ({name})" if part == "train" else f"RUBOUT G M E F ({name})")
        files[f"an4/etc/an4_{part}.fileids"] = ("\n".join(ids) + "\n").encode()
        files[f"an4/etc/an4_{part}.transcription"] = ("\n".join(lines) + "\n").encode()
    return files


def test_the_archive_becomes_splits(publish, tmp_path: Path) -> None:
    url = publish("an4", {"an4_sphere.tar.gz": tar_of(an4())}, parts={"train": {"utterances": 10}, "test": {"utterances": 2}})
    whole = corpora.prepare("an4", tmp_path / "p", cache=tmp_path / "c", base_url=url)
    assert {name: len(whole.split(name)) for name in ("train", "dev", "test")} == {"train": 9, "dev": 1, "test": 2}
    one = whole.by_id("an0-train0-b")
    assert (one.duration, one.speaker) == (0.2, "train0")
    assert {u.text for u in whole} == {"ENTER FIVE SIX", "RUBOUT G M E F"}
    assert check_audio(whole) == []


def test_a_folder_and_what_is_wrong_in_it(publish, tmp_path: Path) -> None:
    publish("an4", {}, parts={})
    root = write_files(tmp_path / "data", an4())
    assert len(corpora.prepare("an4", tmp_path / "p", root=root)) == 12
    transcription = root / "an4" / "etc" / "an4_test.transcription"
    for line, says in (("no id here", r"transcription:1: a line must be TEXT \(ID\)"), ("A (an9-x-b)", "an4_test.fileids too")):
        transcription.write_text(line)
        with pytest.raises(UserError, match=says):
            corpora.prepare("an4", tmp_path / "q", root=root)
    with pytest.raises(UserError, match=r"must be the folder of an4, but there is no etc/an4_train\.fileids"):
        corpora.prepare("an4", tmp_path / "q", root=tmp_path / "p")
