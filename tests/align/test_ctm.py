"""CTM files of words and phones."""

from pathlib import Path

import pytest

from hkd.align.alignment import Alignment
from hkd.align.ctm import CtmSource, read_ctm
from hkd.align.imports import import_alignment
from hkd.errors import HkdError, UserError
from hkd.manifest import Manifest, Utterance
from hkd.units.level import MONOPHONE

WORDS = """;; by Kaldi's steps/get_train_ctm.sh
u1 1 0.100 0.300 HELLO 1.00
u1 1 0.45 0.350 well-known 0.98
u2 A 0.00 0.50 a
"""
PHONES = """u1 1 0.00 0.10 SIL
u1 1 0.10 0.10 HH_B
u1 1 0.20 0.05 AH0_I
u1 1 0.25 0.05 L_I
u1 1 0.30 0.10 OW1_E
u1 1 0.40 0.05 SIL
u1 1 0.45 0.10 W_B
u1 1 0.55 0.05 EH1_I
u1 1 0.60 0.05 L_I
u1 1 0.65 0.05 N_I
u1 1 0.70 0.05 OW1_I
u1 1 0.75 0.05 N_E
u2 1 0.00 0.50 AH0_S
"""


def corpus() -> Manifest:
    return Manifest([Utterance(id="u1", text="Hello, well-known!", duration=0.9), Utterance(id="u2", text="A.", duration=0.5)])


def put(folder: Path, words: str = WORDS, phones: str | None = PHONES) -> tuple[Path, Path | None]:
    (folder / "ctm").write_text(words, encoding="utf-8")
    (folder / "phones.ctm").write_text(phones or "", encoding="utf-8")
    return folder / "ctm", folder / "phones.ctm" if phones else None


def test_words_and_phones(tmp_path: Path) -> None:
    words, phones = put(tmp_path)
    report = import_alignment(corpus(), tmp_path / "a.arrow", CtmSource(words, phones=phones))
    assert (report.kept, report.failed, report.unused) == (2, {}, ())
    found = Alignment(tmp_path / "a.arrow")
    row = found["u1"]
    assert row.words == ("hello", "well", "known")
    assert row.word_tier.unit_U.tolist() == [-1, 0, -1, 1, 2, -1]
    assert row.word_tier.start_U1.tolist() == [0, 10, 40, 45, 65, 80, 90]  # 4 and 5 letters of six phones: 2.7, so three
    symbols = found.inventories[MONOPHONE].symbols
    assert [symbols[unit] for unit in row.tiers[MONOPHONE].unit_U] == [
        "SIL",
        "HH",
        "AH0",
        "L",
        "OW1",
        "SIL",
        "W",
        "EH1",
        "L",
        "N",
        "OW1",
        "N",
        "SIL",
    ]
    assert symbols[found.inventories[MONOPHONE].silence or 0] == "SIL"


def test_words_alone_are_a_word_tier(tmp_path: Path) -> None:
    words, _ = put(tmp_path)
    import_alignment(corpus(), tmp_path / "a.arrow", CtmSource(words))
    found = Alignment(tmp_path / "a.arrow")
    assert found.inventories == {}
    assert found["u1"].word_tier.start_U1.tolist() == [0, 10, 40, 45, 61, 80, 90]
    assert found.digest == found.digest


def test_words_share_their_sound_out_to_the_phones_of_a_lexicon(tmp_path: Path) -> None:
    words, _ = put(tmp_path)
    phones = {"HELLO": ("HH", "AH", "L", "OW"), "well-known": ("W", "EH", "L", "N", "OW", "N"), "a": ()}
    report = import_alignment(corpus(), tmp_path / "a.arrow", CtmSource(words, pronounce=phones.__getitem__))
    found = Alignment(tmp_path / "a.arrow")
    assert found["u1"].tiers[MONOPHONE].start_U1.tolist() == [0, 10, 18, 25, 33, 40, 45, 51, 57, 63, 68, 74, 80, 90]
    assert report.failed == {"u2": "no pronunciation for 'a'"}
    assert "coarse" in report.notes[0]


def test_recordings_are_cut_by_the_manifests_times(tmp_path: Path) -> None:
    words, phones = put(tmp_path, WORDS.replace("u1 ", "rec "), PHONES.replace("u1 ", "rec "))
    whole = Manifest(
        [
            Utterance(id="a", text="hello", audio_filepath="/x/rec.wav", offset=0.0, duration=0.42),
            Utterance(id="b", text="well known", audio_filepath="/x/rec.wav", offset=0.42, duration=0.48),
        ]
    )
    report = import_alignment(whole, tmp_path / "a.arrow", CtmSource(words, phones=phones))
    found = Alignment(tmp_path / "a.arrow")
    assert (report.kept, report.unused) == (2, ("u2",))
    assert found["a"].word_tier.start_U1.tolist() == [0, 10, 42]  # 20 ms of silence go to the word
    assert found["b"].word_tier.start_U1.tolist() == [0, 3, 23, 38, 48]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("u1 1 0.0", "has 3 columns"),
        ("u1 1 zero 0.1 a", "no number"),
        ("u1 1 nan 0.1 a", "begins at nan"),
        ("u1 1 0.1 inf a", "lasts inf"),
        ("u1 1 0.1 -0.1 a", "lasts -0.1"),
        ("u1 1 1e300 0.1 a", "begins at 1e300"),
        ("u1 1 0.1 0.1 a\0", "NUL"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "ctm").write_text(f"u0 1 0 1 b\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"ctm:2: ") as caught:
        read_ctm(tmp_path / "ctm")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("words", "phones", "reason"),
    [
        (WORDS.replace("0.45 0.350", "0.30 0.350"), None, "overlap at 0.30"),
        (WORDS.replace("HELLO", "GOODBYE"), None, "'GOODBYE' where the transcript has 'hello'"),
        (WORDS.replace("0.45 0.350", "0.45 3.0"), None, "the sound from 0 to 0.90"),
        (WORDS.replace("0.100 0.300", "0.100 0.01").replace("0.45 0.350", "0.45 0.02"), None, "covers 3%"),
        (WORDS, PHONES.replace("u1 ", "u9 "), "no phones"),
        (WORDS, PHONES.replace("0.40 0.05 SIL", "0.40 0.05 AA_B"), "lies in no word"),
        (WORDS, "".join(line + "\n" for line in PHONES.splitlines() if "AH0_I" not in line and "0.25" not in line), "gap"),
    ],
)
def test_what_does_not_fit_is_a_reason(tmp_path: Path, words: str, phones: str | None, reason: str) -> None:
    one, other = put(tmp_path, words, phones)
    report = import_alignment(corpus(), tmp_path / "a.arrow", CtmSource(one, phones=other))
    assert reason in report.failed["u1"]
    assert report.kept == 1


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    words, _ = put(tmp_path, "x 1 0 1 hello\n")
    with pytest.raises(HkdError, match="none of 2 utterances"):
        import_alignment(corpus(), tmp_path / "a.arrow", CtmSource(words))
    assert not (tmp_path / "a.arrow").exists()
