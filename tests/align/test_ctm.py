"""CTM files of words and phones."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.align.alignment import Alignment
from hkd.align.files import CtmSource, read_ctm
from hkd.align.fit import import_alignment
from hkd.errors import HkdError, UserError
from hkd.manifest import Manifest, Utterance
from hkd.units.inventory import MONOPHONE

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
    return Manifest(
        [Utterance(id="u1", text="Hello, well-known!", duration=0.9), Utterance(id="u2", text="A.", duration=0.5)]
    )


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
    # 4 and 5 letters of six phones: 2.7, so three
    assert row.word_tier.start_U1.tolist() == [0, 10, 40, 45, 65, 80, 90]
    symbols = found.inventories[MONOPHONE].symbols
    phones = " ".join(symbols[unit] for unit in row.tiers[MONOPHONE].unit_U)
    assert phones == "SIL HH AH0 L OW1 SIL W EH1 L N OW1 N SIL"
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


def times(rows: str, text: str, seconds: float, folder: Path) -> list[int]:
    (folder / "a.CTM").write_text(rows, encoding="utf-8")
    whole = Manifest([Utterance(id="u", text=text, duration=seconds)])
    import_alignment(whole, folder / "a.arrow", CtmSource(folder / "a.CTM"), overwrite=True)
    return Alignment(folder / "a.arrow")["u"].word_tier.start_U1.tolist()


def test_times_that_were_rounded_each_for_itself_are_told_from_overlaps(tmp_path: Path) -> None:
    # 0.104 + 0.296 = 0.400: begin and duration rounded are 0.10 + 0.30; 0.395 + 0.109 → 0.40 + 0.11, the next at
    # 0.504 → 0.50
    rows = "u 1 0.10 0.30 a\nu 1 0.40 0.11 b\nu 1 0.50 0.20 c\nu 1 0.71 0.29 d\n"
    assert times(rows, "a b c d", 1.0, tmp_path) == [0, 10, 40, 51, 70, 100]
    one_decimal = "u 1 0.1 0.4 a\nu 1 0.4 0.3 b\nu 1 0.8 0.3 c\n"  # 0.1 s either way, at both ends too
    assert times(one_decimal, "a b c", 1.02, tmp_path) == [0, 50, 70, 102]
    finer = "u 1 0.100 0.400 a\nu 1 0.480 0.300 b\n"
    with pytest.raises(HkdError, match=r"overlap at 0\.48"):
        times(finer, "a b", 1.0, tmp_path)
    with pytest.raises(HkdError, match=r"overlap at 0\.38"):
        times("u 1 0.10 0.30 a\nu 1 0.38 0.30 b\n", "a b", 1.0, tmp_path)


@settings(max_examples=60, deadline=None)
# The silence before the first word stays short: words that cover less than half of the sound are refused for another
# reason.
@given(st.lists(st.integers(60, 500), min_size=2, max_size=12), st.integers(0, 100))
def test_no_rounding_to_10_ms_drops_an_utterance_or_moves_a_word_by_more(
    tmp_path_factory, lengths: list[int], begin: int
) -> None:
    edges = np.cumsum([begin, *lengths]) / 1000 + 0.0041
    rows = "".join(f"u 1 {a:.2f} {b - a:.2f} w\n" for a, b in itertools.pairwise(edges))
    found = times(rows, "w " * len(lengths), float(edges[-1]) + 0.004, tmp_path_factory.mktemp("ctm"))
    begins = found[-len(lengths) - 1 :] if begin < 46 else found[1 : len(lengths) + 2]
    assert np.abs(np.array(begins[1:]) / 100 - edges[1:]).max() <= 0.0201


def test_a_word_of_no_duration_is_named_with_its_line_and_silence_of_none_is_nothing(tmp_path: Path) -> None:
    words, _ = put(tmp_path, WORDS.replace("0.45 0.350 well-known", "0.45 0.00 well-known"), None)
    report = import_alignment(corpus(), tmp_path / "a.arrow", CtmSource(words))
    assert report.failed == {"u1": f"{words}:3: the word 'well-known' at 0.45 s has no duration"}
    for silence in ("<eps>", "SIL", "[noise]", "<v-noise>"):
        put(tmp_path, WORDS + f"u1 1 0.42 0.00 {silence}\n")
        assert import_alignment(corpus(), tmp_path / "b.arrow", CtmSource(words), overwrite=True).failed == {}
    put(tmp_path, WORDS + "u1 1 0.42 0.00 <unk>\n")
    assert ":5: the word '<unk>'" in import_alignment(corpus(), tmp_path / "c.arrow", CtmSource(words)).failed["u1"]
    words, phones = put(tmp_path, phones=PHONES.replace("0.60 0.05 L_I", "0.60 0.00 L_I"))
    report = import_alignment(corpus(), tmp_path / "d.arrow", CtmSource(words, phones=phones))
    assert report.failed == {"u1": f"{phones}:9: the phone 'L_I' at 0.6 s has no duration"}


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
        (
            WORDS,
            "".join(line + "\n" for line in PHONES.splitlines() if "AH0_I" not in line and "0.25" not in line),
            "gap",
        ),
    ],
)
def test_what_does_not_fit_is_a_reason(tmp_path: Path, words: str, phones: str | None, reason: str) -> None:
    one, other = put(tmp_path, words, phones)
    report = import_alignment(corpus(), tmp_path / "a.arrow", CtmSource(one, phones=other))
    assert reason in report.failed["u1"]
    assert report.kept == 1


def test_phones_by_number_are_refused(tmp_path: Path) -> None:
    numbers = {name: str(n) for n, name in enumerate({line.split()[4] for line in PHONES.splitlines()}, 1)}
    rows = [line.split() for line in PHONES.splitlines()]
    words, phones = put(tmp_path, WORDS, "".join(" ".join([*row[:4], numbers[row[4]]]) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"must name its phones, but has numbers alone.* utils/int2sym\.pl -f 5"):
        import_alignment(corpus(), tmp_path / "a.arrow", CtmSource(words, phones=phones))


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    words, _ = put(tmp_path, "x 1 0 1 hello\n")
    with pytest.raises(HkdError, match=r"none of 2 utterances .* What was aligned has names such as 'x'"):
        import_alignment(corpus(), tmp_path / "a.arrow", CtmSource(words))
    assert not (tmp_path / "a.arrow").exists()


SIDES = [("A", "B"), ("a", "b"), ("1", "2"), ("0", "1")]
BOTH = """rec {0} 0.00 0.40 yes
rec {1} 0.10 0.50 no
rec {0} 0.40 0.60 please
rec {1} 0.60 0.35 thanks
"""
BOTH_PHONES = """rec {1} 0.10 0.20 N_B
rec {1} 0.30 0.30 OW1_E
rec {1} 0.60 0.35 TH_S
rec {0} 0.00 0.20 Y_B
rec {0} 0.20 0.20 S_E
rec {0} 0.40 0.60 P_S
"""


def side(name: str, text: str, channel: int | None, offset: float = 0.0, seconds: float = 1.0) -> Utterance:
    return Utterance(id=name, text=text, audio_filepath="/x/rec.wav", channel=channel, offset=offset, duration=seconds)


@pytest.mark.parametrize("names", SIDES)
def test_an_utterance_gets_its_own_side(tmp_path: Path, names: tuple[str, str]) -> None:
    words, phones = put(tmp_path, BOTH.format(*names), BOTH_PHONES.format(*names))
    whole = Manifest([side("second", "no thanks", 1), side("first", "yes please", 0)])
    report = import_alignment(whole, tmp_path / "a.arrow", CtmSource(words, phones=phones))
    assert (report.kept, report.failed, report.unused) == (2, {}, ())
    found = Alignment(tmp_path / "a.arrow")
    assert found["first"].words == ("yes", "please")
    assert found["first"].word_tier.start_U1.tolist() == [0, 40, 100]
    assert found["second"].words == ("no", "thanks")
    assert found["second"].word_tier.start_U1.tolist() == [0, 10, 60, 95, 100]
    symbols = found.inventories[MONOPHONE].symbols
    assert [symbols[unit] for unit in found["first"].tiers[MONOPHONE].unit_U] == ["Y", "S", "P"]
    assert [symbols[unit] for unit in found["second"].tiers[MONOPHONE].unit_U] == ["sil", "N", "OW1", "TH", "sil"]


@pytest.mark.parametrize("names", SIDES)
def test_both_sides_are_cut_by_segments(tmp_path: Path, names: tuple[str, str]) -> None:
    words, _ = put(tmp_path, BOTH.format(*names))
    rows = [side("a1", "yes", 0, 0.0, 0.4), side("b1", "no", 1, 0.0, 0.6), side("a2", "please", 0, 0.4, 0.6)]
    rows.append(side("b2", "thanks", 1, 0.6, 0.4))
    report = import_alignment(Manifest(rows), tmp_path / "a.arrow", CtmSource(words))
    assert (report.kept, report.failed, report.unused) == (4, {}, ())
    found = Alignment(tmp_path / "a.arrow")
    assert {name: found[name].word_tier.start_U1.tolist() for name in found} == {
        "a1": [0, 40], "b1": [0, 10, 60], "a2": [0, 60], "b2": [0, 35, 40],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["A", "b", "1", "2", "0", "-"])
@pytest.mark.parametrize("channel", [None, 0, 1])
def test_a_side_that_stands_alone_is_taken_whatever_its_name(tmp_path: Path, name: str, channel: int | None) -> None:
    words, _ = put(tmp_path, f"rec {name} 0.00 0.40 yes\nrec {name} 0.40 0.60 please\n")
    report = import_alignment(Manifest([side("u", "yes please", channel)]), tmp_path / "a.arrow", CtmSource(words))
    assert (report.kept, report.unused) == (1, ())
    assert Alignment(tmp_path / "a.arrow")["u"].word_tier.start_U1.tolist() == [0, 40, 100]


def test_a_side_that_stands_alone_is_not_given_to_two_channels(tmp_path: Path) -> None:
    words, _ = put(tmp_path, "rec B 0.00 1.00 yes\n")
    whole = Manifest([side("first", "yes", 0), side("second", "yes", 1)])
    report = import_alignment(whole, tmp_path / "a.arrow", CtmSource(words))
    assert report.failed == {
        "first": f"{words} has the side B of 'rec', but its channel 0 (from 0) is none of them: "
        "sides are A, B ... or 1, 2 ..."
    }
    one_side = "".join(line + "\n" for line in BOTH_PHONES.format("1", "2").splitlines() if line.startswith("rec 1"))
    words, phones = put(tmp_path, BOTH.format("1", "2"), one_side)
    whole = Manifest([side("first", "yes please", 0), side("second", "no thanks", 1)])
    report = import_alignment(whole, tmp_path / "b.arrow", CtmSource(words, phones=phones))
    assert report.kept == 1
    assert report.failed["second"].startswith(f"{phones} has the side 1 of 'rec', but its channel 1 (from 0)")


def test_sides_are_never_mixed(tmp_path: Path) -> None:
    words, _ = put(tmp_path, BOTH.format("A", "B") + "u 1 0.0 1.0 hello\n")
    rows = [side("mixed", "yes no please thanks", None), side("third", "yes please", 2)]
    whole = Manifest([*rows, Utterance(id="u", text="hello", duration=1.0)])
    report = import_alignment(whole, tmp_path / "a.arrow", CtmSource(words))
    assert report.kept == 1
    assert report.failed == {
        "mixed": f"{words} has the sides A, B of 'rec', but the manifest names no channel: give it a channel (from 0), "
        "or name the CTM's lines by utterance",
        "third": f"{words} has the sides A, B of 'rec', but its channel 2 (from 0) is none of them: "
        "sides are A, B ... or 1, 2 ...",
    }
    assert report.unused == ("rec, side A", "rec, side B")


def test_a_side_that_no_utterance_asks_for_is_named(tmp_path: Path) -> None:
    words, _ = put(tmp_path, BOTH.format("left", "1"))
    report = import_alignment(Manifest([side("u", "no thanks", 0)]), tmp_path / "a.arrow", CtmSource(words))
    assert (report.kept, report.unused) == (1, ("rec, side LEFT",))
