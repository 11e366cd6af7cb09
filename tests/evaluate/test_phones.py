"""Folding to Lee & Hon's 39 phones."""

from hypothesis import given
from hypothesis import strategies as st

from hkd.evaluate.phones import PHONES_39, fold_39, score_phones

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


def test_homophones_are_no_phone_errors() -> None:
    lexicon = {
        "to": ["T", "UW1"],
        "two": ["T", "UW"],
        "caught": ["K", "AO", "T"],
        "cot": ["K", "AA", "T"],
        "cat": ["K", "AE", "T"],
    }
    assert score_phones(["to caught"], ["two cot"], lexicon.__getitem__).totals()["errors"] == 0
    scores = score_phones(["cot two"], ["cat"], lexicon.__getitem__)
    assert scores.totals() == {"tokens": 5, "errors": 3, "substitutions": 1, "insertions": 0, "deletions": 2}
