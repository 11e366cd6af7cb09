"""TIMIT's .PHN and .WRD in the layout of the LDC's disc."""

from pathlib import Path

import numpy as np
import pytest

from hkd.align.alignment import Alignment, aligned_to_units, pronunciations
from hkd.align.files import FOLD_61, PHONES_39, TimitSource, folded_dictionary
from hkd.align.fit import import_alignment
from hkd.errors import HkdError, UserError
from hkd.manifest import Manifest, Utterance
from hkd.units.inventory import MONOPHONE
from hkd.units.lexicon import Lexicon
from kit.files import write_files

# As the disc has them: samples at 16 kHz, `this suit` shares its s, a glottal stop and a pause between words.
PHN = """0 2260 h#
2260 2900 dh
2900 3800 ix
3800 5400 s
5400 6600 ux
6600 7000 tcl
7000 7480 t
7480 7700 q
7700 8900 ao
8900 9100 dcl
9100 9400 jh
9400 9900 axr
9900 10500 pau
10500 12000 zh
12000 12900 ax-h
12900 16100 h#
"""
WRD = """2260 5400 this
3800 7480 suit
7700 9900 Audger
10500 12900 zha
"""


def disc(*, upper: bool = True, phn: str = PHN, wrd: str = WRD, speaker: str = "TRAIN/DR1/FCJF0") -> dict[str, bytes]:
    stem = f"TIMIT/{speaker}/SI648"
    files = {
        f"{stem}.PHN": phn.encode(),
        f"{stem}.WRD": wrd.encode(),
        f"{stem}.TXT": b"0 16160 This suit, Audger: zha.\n",
    }
    return files if upper else {name.lower(): data for name, data in files.items()}


def corpus(text: str = "This suit, Audger: zha.") -> Manifest:
    return Manifest([Utterance(id="FCJF0-SI648", text=text, duration=1.01)])


def test_the_map_is_the_fields() -> None:
    assert (len(FOLD_61), len(PHONES_39), len(set(PHONES_39))) == (61, 39, 39)
    assert set(FOLD_61.values()) == set(PHONES_39)
    olds, news = "ix ao zh el nx eng axr hv ux q", "ih aa sh l n ng er hh uw sil"
    assert " ".join(FOLD_61[old] for old in olds.split(" ")) == news
    silent = " ".join(phone for phone, folded in FOLD_61.items() if folded == "sil")
    assert silent == "pcl tcl kcl bcl dcl gcl h# pau epi q"


@pytest.mark.parametrize("upper", [True, False])
def test_segments_become_frames(tmp_path: Path, upper: bool) -> None:
    root = write_files(tmp_path / "ldc", disc(upper=upper))
    report = import_alignment(corpus(), tmp_path / "a.arrow", TimitSource(root))
    assert (report.kept, report.failed, report.unused) == (1, {}, ())
    found = Alignment(tmp_path / "a.arrow")
    row, symbols = found["FCJF0-SI648"], found.inventories[MONOPHONE].symbols
    assert symbols == PHONES_39
    tier = row.tiers[MONOPHONE]
    times = [int(line.split()[0]) for line in PHN.splitlines()]
    assert tier.start_U1.tolist() == [*((2 * time + 160) // 320 for time in times), 101]
    assert [symbols[unit] for unit in tier.unit_U] == [FOLD_61[line.split()[2]] for line in PHN.splitlines()]
    assert row.word_tier.unit_U.tolist() == [-1, 0, 1, -1, 2, -1, 3, -1]
    assert row.word_tier.start_U1.tolist() == [0, 14, 24, 47, 48, 62, 66, 81, 101]  # the shared s is the later word's
    unit_U, word_U = aligned_to_units(row, MONOPHONE, found.silences[MONOPHONE])
    assert " ".join(symbols[unit] for unit in unit_U) == "dh ih s uw t aa jh er sh ah"  # closures are no positions
    assert np.array_equal(word_U, [0, 0, 1, 1, 1, 2, 2, 2, 3, 3])
    assert pronunciations(found)["suit"] == [("s", "uw", "t")]


def test_the_corpus_own_sentences_and_no_others(tmp_path: Path) -> None:
    root = write_files(tmp_path / "ldc", {**disc(), **disc(speaker="TEST/DR2/MWEW0")})
    report = import_alignment(corpus(), tmp_path / "a.arrow", TimitSource(root))
    assert (report.kept, report.unused) == (1, ("MWEW0-SI648",))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"phn": PHN.replace(" zh\n", " xx\n")}, "one of TIMIT's 61, but is 'xx'"),
        ({"phn": PHN.replace("2260 2900 dh", "2260 dh")}, r"PHN:2: a line must be `START END LABEL`"),
        ({"wrd": WRD.replace("suit", "boot")}, "has the word 'boot' where the transcript has 'suit'"),
        ({"phn": PHN.replace("5400 6600 ux", "2600 6600 ux")}, "overlap"),
    ],
)
def test_what_is_broken_is_a_reason(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    root = write_files(tmp_path / "ldc", disc(**change))
    with pytest.raises(HkdError, match=reason):
        import_alignment(corpus(), tmp_path / "a.arrow", TimitSource(root))


def test_a_sentence_without_words_is_a_reason(tmp_path: Path) -> None:
    root = write_files(tmp_path / "ldc", disc())
    next(root.rglob("*.WRD")).unlink()
    with pytest.raises(HkdError, match=r"SI648\.WRD: No such file"):
        import_alignment(corpus(), tmp_path / "a.arrow", TimitSource(root))
    with pytest.raises(UserError, match="holds none"):
        TimitSource(tmp_path / "nowhere")


def test_words_that_nobody_said_are_folded_too() -> None:
    said = folded_dictionary(Lexicon())
    assert said["azure"][0] == ("ae", "sh", "er")
    assert said["law"] == [("l", "aa")]
    assert {phone for rows in said.values() for phones in rows for phone in phones} <= set(PHONES_39)
