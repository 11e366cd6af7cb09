"""Phones, error counts held against jiwer, and intervals and tests held against simulation."""

from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.align.files import PHONES_39 as TIMIT_39
from hkd.evaluate.score import (
    block_sums,
    bootstrap_interval,
    fold_39,
    matched_pairs,
    paired_bootstrap,
    phones_of,
    score_characters,
    score_tokens,
    score_words,
    segment_differences,
)
from hkd.units.lexicon import Lexicon

PHONES_39 = frozenset(TIMIT_39)

TIMIT_61 = (  # noqa: SIM905
    "iy ih eh ey ae aa aw ay ah ao oy ow uh uw ux er ax ix axr ax-h jh ch b d g p t k dx s sh z zh f th v dh m n ng em "
    "nx en eng l r w y hh hv el bcl dcl gcl pcl tcl kcl q pau epi h#"
).split()
CMU_39 = (  # noqa: SIM905
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
).split()


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
    lexicon = write_lexicon(
        tmp_path / "a.dict", "to T UW1", "two T UW1", "caught K AO1 T", "cot K AA1 T", "cat SIL K AE1 T"
    )
    assert phones_of("to caught", lexicon) == phones_of("two cot", lexicon)
    assert phones_of("cot cat", lexicon) == ["k", "aa", "t", "k", "ae", "t"]


def test_phones_of_another_language_stay_as_they_are(tmp_path: Path) -> None:
    lexicon = write_lexicon(tmp_path / "a.dict", "schon S o: n", "qual q s a1 sil")
    assert phones_of("schon qual house", lexicon) == ["S", "o:", "n", "q", "s", "a1"]


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
        said, understood = reference[e.ref_start_idx : e.ref_end_idx], hypothesis[e.hyp_start_idx : e.hyp_end_idx]
        assert e.type != "equal" or said == understood
        rebuilt += understood
    assert rebuilt == hypothesis


def test_counts_must_match() -> None:
    with pytest.raises(ValueError, match="there must be 2 hypotheses, but there are 1"):
        score_words(["a", "b"], ["a"])


NUM_SIMULATIONS = 300


def simulate(
    random: np.random.Generator, *, num_speakers: int, per_speaker: int, spread: float
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Binomial errors on 5-15 words an utterance; a speaker's own error rate is Beta around 0.3, utterances are
    independent given it."""
    rate_G = random.beta(0.3 / spread, 0.7 / spread, size=num_speakers) if spread else np.full(num_speakers, 0.3)
    speaker_N = np.repeat(np.arange(num_speakers), per_speaker)
    tokens_N = random.integers(5, 16, size=len(speaker_N))
    return random.binomial(tokens_N, rate_G[speaker_N]), tokens_N, [f"s{s}" for s in speaker_N]


def coverage(*, spread: float, by_speaker: bool, num_speakers: int = 30, per_speaker: int = 6) -> float:
    random = np.random.default_rng(7)
    hits = 0
    for number in range(NUM_SIMULATIONS):
        errors_N, tokens_N, speaker_N = simulate(
            random, num_speakers=num_speakers, per_speaker=per_speaker, spread=spread
        )
        interval = bootstrap_interval(
            errors_N, tokens_N, group_N=speaker_N if by_speaker else None, num_draws=400, seed=number
        )
        assert interval is not None
        hits += interval.low <= 0.3 <= interval.high
    return hits / NUM_SIMULATIONS


def test_coverage_of_the_interval_by_utterance_where_utterances_are_independent() -> None:
    assert 0.91 <= coverage(spread=0.0, by_speaker=False) <= 0.99


def test_where_speakers_differ_only_the_interval_by_speaker_covers() -> None:
    assert 0.92 <= coverage(spread=0.15, by_speaker=True) <= 0.99
    assert coverage(spread=0.15, by_speaker=False) <= 0.80


def test_few_speakers_make_intervals_wider_not_false() -> None:
    assert 0.92 <= coverage(spread=0.15, by_speaker=True, num_speakers=12, per_speaker=20) <= 0.99


def false_alarms_by_speaker(num_speakers: int, per_speaker: int = 20) -> float:
    """How often p < 0.05 where each run suits each speaker better or worse, and none is better on the whole."""
    random = np.random.default_rng(1)
    speaker_N = np.repeat(np.arange(num_speakers), per_speaker)
    alarms = 0
    for number in range(NUM_SIMULATIONS):
        logit_G = random.normal(-0.85, 0.5, num_speakers)
        tokens_N = random.integers(5, 16, size=len(speaker_N))
        a_N, b_N = (
            random.binomial(tokens_N, (1 / (1 + np.exp(-logit_G - random.normal(0, 0.2, num_speakers))))[speaker_N])
            for _ in range(2)
        )
        comparison = paired_bootstrap(
            a_N, b_N, tokens_N, group_N=[f"s{s}" for s in speaker_N], num_draws=400, seed=number
        )
        assert comparison is not None
        alarms += comparison.p < 0.05
    return alarms / NUM_SIMULATIONS


@pytest.mark.parametrize("num_speakers", [6, 12])
def test_the_paired_bootstrap_holds_its_level_with_few_speakers(num_speakers: int) -> None:
    assert false_alarms_by_speaker(num_speakers) <= 0.07


def test_the_paired_bootstrap_holds_its_level_when_runs_are_alike() -> None:
    random = np.random.default_rng(3)
    false_alarms = 0
    for number in range(NUM_SIMULATIONS):
        tokens_N = random.integers(5, 16, size=60)
        a_N, b_N = random.binomial(tokens_N, 0.3), random.binomial(tokens_N, 0.3)
        comparison = paired_bootstrap(a_N, b_N, tokens_N, num_draws=400, seed=number)
        assert comparison is not None
        false_alarms += comparison.p < 0.05
    assert false_alarms / NUM_SIMULATIONS <= 0.08


def test_a_clear_difference_is_seen_and_signed() -> None:
    random = np.random.default_rng(5)
    tokens_N = random.integers(5, 16, size=200)
    a_N, b_N = random.binomial(tokens_N, 0.2), random.binomial(tokens_N, 0.4)
    comparison = paired_bootstrap(a_N, b_N, tokens_N, num_draws=2000)
    assert comparison is not None
    assert comparison.p < 0.01
    assert comparison.low is not None
    assert comparison.high is not None
    assert comparison.low < comparison.difference < comparison.high < 0
    other = paired_bootstrap(b_N, a_N, tokens_N, num_draws=2000)
    assert other is not None
    assert other.difference == -comparison.difference


def test_a_run_against_itself_is_no_difference() -> None:
    comparison = paired_bootstrap([1, 2, 3], [1, 2, 3], [4, 4, 4], num_draws=99)
    assert comparison is not None
    assert (comparison.p, comparison.difference) == (1.0, 0.0)


def test_the_seed_alone_decides_and_one_block_has_no_interval() -> None:
    first = bootstrap_interval([1, 2, 0, 4], [5, 5, 5, 5], seed=1, num_draws=500)
    assert first == bootstrap_interval([1, 2, 0, 4], [5, 5, 5, 5], seed=1, num_draws=500)
    assert bootstrap_interval([1, 2], [5, 5], group_N=["s", "s"]) is None
    empty = bootstrap_interval([1, 0, 0], [4, 0, 0], num_draws=500)  # most draws have no token, and say nothing
    assert empty is not None
    assert (empty.low, empty.high) == (0.25, 0.25)
    assert paired_bootstrap([1], [2], [5]) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abc")), min_size=1))
def test_block_sums_add_up(rows: list[tuple[int, str]]) -> None:
    value_N, group_N = zip(*rows, strict=True)
    sums = block_sums(value_N, group_N)
    assert len(sums) == len(set(group_N))
    assert sums.sum() == sum(value_N)


REFERENCE = "a b c d e f g h i j"


@pytest.mark.parametrize(
    ("a", "b", "differences"),
    [
        (REFERENCE, REFERENCE, []),
        ("a b X d e f g h i j", REFERENCE, [1]),
        ("X b c d e f g h i X", REFERENCE, [1, 1]),  # eight right words between
        ("X b X d e f g h i j", REFERENCE, [2]),  # one right word is no buffer
        ("X b c X e f g h i j", REFERENCE, [1, 1]),  # two are
        ("X b c d e f g h i j", "a X c d e f g h i j", [0]),  # neighbours: one segment
        ("a b z z c d e f g h i j", "a b c d e f g i j", [2, -1]),  # insertions in a gap; a deletion
    ],
)
def test_segments_are_bounded_by_two_right_words(a: str, b: str, differences: list[int]) -> None:
    assert segment_differences(score_words([REFERENCE], [a]), score_words([REFERENCE], [b])).tolist() == differences


def test_utterances_bound_segments_and_differences_sum_to_the_difference_of_errors() -> None:
    random = np.random.default_rng(0)
    words = REFERENCE.split()

    def noisy() -> str:
        return " ".join(w for w in (random.choice([w, w, w, "x", ""]) for w in words) if w)

    references = [REFERENCE] * 40
    a, b = (
        score_words(references, [noisy() for _ in references]),
        score_words(references, [noisy() for _ in references]),
    )
    differences = segment_differences(a, b)
    assert differences.sum() == a.errors_N.sum() - b.errors_N.sum()
    comparison, same = matched_pairs(a, b), matched_pairs(a, a)
    assert comparison is not None
    assert 0 <= comparison.p <= 1
    assert same is not None
    assert same.p == 1


def test_matched_pairs_holds_its_level_when_runs_are_alike() -> None:
    random = np.random.default_rng(11)
    words = REFERENCE.split()
    references = [REFERENCE] * 30
    p_values = []
    for _ in range(100):
        a, b = (
            score_words(references, [" ".join(np.where(random.random(10) < 0.15, "x", words)) for _ in references])
            for _ in range(2)
        )
        comparison = matched_pairs(a, b)
        assert comparison is not None
        p_values.append(comparison.p)
    assert np.mean(np.array(p_values) < 0.05) <= 0.12


def test_matched_pairs_say_nothing_where_nothing_spreads() -> None:
    references = [REFERENCE] * 9
    a = score_words(references, ["X b c d e f g h i j"] * 2 + references[2:])
    assert matched_pairs(a, score_words(references, references)) is None
    comparison = matched_pairs(
        score_words(references, ["X b c d X Y g h i j"] + ["X b c d e f g h i j"] * 2 + references[3:]), a
    )
    assert comparison is not None
    assert comparison.p > 0.2


def test_other_references_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same references"):
        segment_differences(score_words(["a"], ["a"]), score_words(["b"], ["a"]))
