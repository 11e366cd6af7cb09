"""TIMIT as the LDC delivers it, in upper and lower case."""

from pathlib import Path

import pytest

from hkd import corpora
from hkd.audio import check_audio
from hkd.corpora.named import CORE_TEST, DEV, timit_split_of
from hkd.errors import UserError
from hkd.testing.files import sound, write_files

SPEAKERS = {"TRAIN/DR1/FCJF0": 1, "TRAIN/DR8/MTCS0": 1, "TEST/DR1/FAKS0": 1, "TEST/DR2/MWEW0": 1, "TEST/DR7/MDLR1": 0}


def timit(*, upper: bool = True) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for speaker in SPEAKERS:
        for sentence, text in (
            ("SA1", "She had your dark suit."),
            ("SI648", "A sailboat may have a bone in her teeth one minute."),
        ):
            stem = f"TIMIT/{speaker}/{sentence}"
            files |= {
                f"{stem}.WAV": sound(format="NIST"),
                f"{stem}.TXT": f"0 3200 {text} \n".encode(),
                f"{stem}.PHN": b"0 3200 h#\n",
                f"{stem}.WRD": b"0 3200 she\n",
            }
    return files if upper else {name.lower(): data for name, data in files.items()}


def test_the_lists_of_speakers() -> None:
    assert (len(CORE_TEST), len(DEV), len(CORE_TEST & DEV)) == (24, 50, 0)
    assert all(name[0] in "fm" and len(name) == 5 for name in CORE_TEST | DEV)
    assert [timit_split_of("test", name) for name in ("mwew0", "faks0", "mdlr1")] == ["test", "dev", None]


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("below", ["", "TIMIT", "data"])
def test_either_case_gives_the_same_utterances(publish, tmp_path: Path, upper: bool, below: str) -> None:
    publish("timit", {}, splits={"train": {"utterances": 2}, "dev": {"utterances": 1}, "test": {"utterances": 1}})
    root = write_files(
        tmp_path / "ldc",
        {name.replace("TIMIT/", f"{below}/" if below else ""): data for name, data in timit(upper=upper).items()},
    )
    (next(root.rglob("*[0-9].[Ww][Aa][Vv]")).parent / "SI9.WAV.wav").write_bytes(b"a copy as RIFF is left alone")
    whole = corpora.prepare("timit", tmp_path / "p", root=root)
    assert [(u.id, u.split, u.speaker) for u in sorted(whole, key=lambda u: u.id)] == [
        ("FAKS0-SI648", "dev", "FAKS0"), ("FCJF0-SI648", "train", "FCJF0"), ("MTCS0-SI648", "train", "MTCS0"), ("MWEW0-SI648", "test", "MWEW0"),
    ]  # fmt: skip
    assert whole[0].text == "A sailboat may have a bone in her teeth one minute."
    assert check_audio(whole) == []


def test_what_is_missing(publish, tmp_path: Path) -> None:
    publish("timit", {})
    with pytest.raises(
        UserError, match=r"without a form or a licence: get it from https://catalog\.ldc\.upenn\.edu/LDC93S1 and give --root DIR"
    ):
        corpora.prepare("timit", tmp_path / "p", cache=tmp_path / "c", download=True)
    root = write_files(tmp_path / "ldc", timit())
    transcript = next(root.rglob("SI*.TXT"))
    transcript.write_text("no times")
    with pytest.raises(UserError, match=r"TXT:1: a transcript must be START END TEXT"):
        corpora.prepare("timit", tmp_path / "p", root=root)
    transcript.unlink()
    with pytest.raises(UserError, match=r"SI648\.TXT: No such file"):
        corpora.prepare("timit", tmp_path / "p", root=root)
