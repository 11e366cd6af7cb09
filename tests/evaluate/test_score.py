"""Counts and rates equal jiwer's on random texts; the alignment rebuilds the hypothesis."""

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.evaluate.score import score_characters, score_tokens, score_words

WORDS = st.lists(st.sampled_from(["a", "b", "ab", "c'd"]), max_size=8)
TEXT = WORDS.map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)


@given(PAIRS)
def test_words_equal_jiwer(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (list(part) for part in zip(*pairs, strict=True))
    ours, theirs = score_words(references, hypotheses), jiwer.process_words(references, hypotheses)
    totals = ours.totals()
    assert (totals["substitutions"], totals["insertions"], totals["deletions"]) == (
        theirs.substitutions,
        theirs.insertions,
        theirs.deletions,
    )
    assert ours.rate == theirs.wer if totals["tokens"] else np.isnan(ours.rate)


@given(PAIRS)
def test_characters_equal_jiwer(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (list(part) for part in zip(*pairs, strict=True))
    ours, theirs = score_characters(references, hypotheses), jiwer.process_characters(references, hypotheses)
    assert ours.totals()["errors"] == theirs.substitutions + theirs.insertions + theirs.deletions
    assert ours.rate == theirs.cer if ours.totals()["tokens"] else np.isnan(ours.rate)


@given(PAIRS)
def test_a_row_is_what_the_utterance_alone_gives_and_rows_sum_to_the_totals(pairs: list[tuple[str, str]]) -> None:
    scores = score_words(*(list(part) for part in zip(*pairs, strict=True)))
    for row, (reference, hypothesis) in enumerate(pairs):
        alone = score_words([reference], [hypothesis])
        assert alone.errors_N[0] == scores.errors_N[row]
        assert alone.edits[0] == scores.edits[row]
    assert scores.totals()["errors"] == scores.errors_N.sum()


@given(WORDS, WORDS)
def test_the_edits_turn_the_reference_into_the_hypothesis(reference: list[str], hypothesis: list[str]) -> None:
    (edits,) = score_tokens([reference], [hypothesis]).edits
    rebuilt: list[str] = []
    for e in edits:
        equal = e.kind == "equal"
        assert not equal or reference[e.ref_start : e.ref_stop] == hypothesis[e.hyp_start : e.hyp_stop]
        rebuilt += hypothesis[e.hyp_start : e.hyp_stop]
    assert rebuilt == hypothesis


def test_counts_must_match() -> None:
    with pytest.raises(ValueError, match="there must be 2 hypotheses, but there are 1"):
        score_words(["a", "b"], ["a"])
