"""What an evaluation leaves: figures that follow from the hypotheses alone, and errors to read."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.errors import UserError
from hkd.evaluate.score import (
    METRICS,
    NOTHING,
    Hypothesis,
    by_speaker,
    confusions,
    listing,
    read_result,
    result_paths,
    score_all,
    score_words,
)


def test_the_figures_follow_from_the_hypotheses_alone(evaluated) -> None:  # type: ignore[no-untyped-def]
    for run in evaluated.runs:
        report = read_result(run, "test")
        again = score_all(report.hypotheses)
        rows = [json.loads(line) for line in result_paths(run, "test")[1].read_text().splitlines()]
        for metric in METRICS:
            rate = report.errors[metric]
            assert rate.rate == again[metric].rate
            assert {name: getattr(rate, name) for name in again[metric].totals()} == again[metric].totals()
            counts = [row[metric] for row in rows]
            assert sum(c["tokens"] for c in counts) == rate.tokens
            assert sum(c["substitutions"] + c["insertions"] + c["deletions"] for c in counts) == rate.errors


def test_what_is_missing_or_broken_is_said_with_the_command(evaluated, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="Run `hkd evaluate none --split dev` first"):
        read_result(evaluated.runs[0], "dev")
    folder = tmp_path / "broken"
    for source, target in zip(result_paths(evaluated.runs[0], "test"), result_paths(folder, "test"), strict=True):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read as one"):
        read_result(folder, "test")


WORDS = st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=7).map(" ".join)


def rows_of(pairs: list[tuple[str, str]]) -> list[Hypothesis]:
    return [
        Hypothesis(id=f"u{n}", speaker="xyz"[n % 3], seconds=1.0, reference=a, hypothesis=b)
        for n, (a, b) in enumerate(pairs)
    ]


def test_errors_are_marked_in_columns() -> None:
    rows = rows_of([("the cat sat down", "the hat sat"), ("a bb", "a bb"), ("", "a")])
    text = listing(rows, score_words([r.reference for r in rows], [r.hypothesis for r in rows]))
    lines = text.splitlines()
    assert lines[2:6] == ["u0 · x · 2 of 4", "REF: the cat sat down", "HYP: the hat sat ****", "           S        D"]
    assert lines[7:11] == ["u2 · z · 1 of 0", "REF: *", "HYP: a", "     I"]


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
def test_speakers_and_confusions_add_up(pairs: list[tuple[str, str]]) -> None:
    rows = rows_of(pairs)
    scores = score_words([r.reference for r in rows], [r.hypothesis for r in rows])
    speakers = by_speaker(rows, scores)
    assert sum(s.errors for s in speakers) == scores.errors_N.sum()
    assert sum(s.words for s in speakers) == scores.tokens_N.sum()
    assert sum(s.utterances for s in speakers) == len(rows)
    found = confusions(scores, most=1000)
    assert sum(count for _, _, count in found) == scores.errors_N.sum()
    assert sum(count for said, _, count in found if said == NOTHING) == scores.insertions_N.sum()
    assert sum(count for _, understood, count in found if understood == NOTHING) == scores.deletions_N.sum()
    assert listing(rows, scores).startswith(f"{scores.errors_N.sum()} errors in {scores.tokens_N.sum()} words")


def test_the_worst_come_first() -> None:
    rows = rows_of([("a bb", "a bb"), ("a bb", "a"), ("a bb", "")])
    scores = score_words([r.reference for r in rows], [r.hypothesis for r in rows])
    assert [s.speaker for s in by_speaker(rows, scores)] == ["z", "y", "x"]
    text = listing(rows, scores)
    assert text.index("u2 · z") < text.index("u1 · y")
    assert "u0" not in text
    assert pytest.approx(by_speaker(rows, scores)[1].rate) == 0.5


def test_speakers_without_words_come_last_with_a_dash() -> None:
    rows = rows_of([("", "bb"), ("a", "a"), ("", "")])
    scores = score_words([r.reference for r in rows], [r.hypothesis for r in rows])
    assert [s.speaker for s in by_speaker(rows, scores)] == ["y", "x", "z"]
    text = listing(rows, scores)
    assert "nan" not in text
    assert text.count(" –\n") == 2
