"""Phones of text, folded to Lee & Hon's 39 where they are English."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hkd.align import timit
from hkd.evaluate.phones import fold_39, phones_of
from hkd.units.lexicon import Lexicon

PHONES_39 = frozenset(timit.PHONES_39)

TIMIT_61 = (  # noqa: SIM905
    "iy ih eh ey ae aa aw ay ah ao oy ow uh uw ux er ax ix axr ax-h jh ch b d g p t k dx s sh z zh f th v dh m n ng em nx en eng "
    "l r w y hh hv el bcl dcl gcl pcl tcl kcl q pau epi h#"
).split()
CMU_39 = ("AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH").split()  # noqa: SIM905


def test_timits_61_phones_fold_to_exactly_the_39() -> None:
    assert len(TIMIT_61) == 61
    assert len(PHONES_39) == 39
    assert {p for phone in TIMIT_61 for p in fold_39([phone])} == PHONES_39
    assert fold_39(["q"]) == []


def test_cmudicts_39_phones_fold_to_37_of_them() -> None:
    assert len(CMU_39) == 39
    folded = {p for phone in CMU_39 for p in fold_39([phone])}
    assert folded == PHONES_39 - {"dx", "sil"}
    assert fold_39(["AO1", "AA0", "ZH"]) == ["aa", "aa", "sh"]


@given(st.lists(st.sampled_from(TIMIT_61 + CMU_39 + ["SIL", "AH0"])))
def test_folding_is_idempotent_and_closed(phones: list[str]) -> None:
    once = fold_39(phones)
    assert fold_39(once) == once
    assert set(once) <= PHONES_39


def write_lexicon(path: Path, *lines: str) -> Lexicon:
    path.write_text("\n".join(lines) + "\n")
    return Lexicon(path)


def test_homophones_have_the_same_phones(tmp_path: Path) -> None:
    lexicon = write_lexicon(tmp_path / "a.dict", "to T UW1", "two T UW1", "caught K AO1 T", "cot K AA1 T", "cat SIL K AE1 T")
    assert phones_of("to caught", lexicon) == phones_of("two cot", lexicon)
    assert phones_of("cot cat", lexicon) == ["k", "aa", "t", "k", "ae", "t"]


def test_phones_of_another_language_stay_as_they_are(tmp_path: Path) -> None:
    lexicon = write_lexicon(tmp_path / "a.dict", "schon S o: n", "qual q s a1 sil")
    assert phones_of("schon qual house", lexicon) == ["S", "o:", "n", "q", "s", "a1"]
