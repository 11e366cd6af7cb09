"""Transcript → words: the rule hkd-words-1, pinned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.units.text import normalised_lines, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Call-Forward on No Answer.", "call forward on no answer"),
        ("It’s the dogs' o'clock, 'tis", "it's the dogs o'clock tis"),
        ("Press 1 or 12, the 2nd key", "press one or twelve the second key"),
        ("1,234 & 50% of 3.5", "one thousand two hundred thirty four and fifty percent of three point five"),
        ("mp3 and 192.168.0.1", "mp3 and one hundred ninety two one hundred sixty eight zero one"),
        ("ﬁne ＡＢＣ e\u0301t\u00e9", "fine abc \u00e9t\u00e9"),
        ("snake_case\ttab\nnew", "snake case tab new"),
        ("-- ... !?", ""),
        ("1" * 40, "1" * 40),
    ],
)
def test_the_rule(text: str, expected: str) -> None:
    assert " ".join(words(text)) == expected


@given(st.text())
def test_words_are_clean_and_the_rule_changes_nothing_twice(text: str) -> None:
    once = words(text)
    assert all(word and not set(word) & set(' \t\n.,!?-_"') for word in once)
    assert not any(word.startswith("'") or word.endswith("'") for word in once)
    assert words(" ".join(once)) == once


def test_lines_without_words_are_left_out() -> None:
    assert list(normalised_lines(["Hello, you!", "...", "Bye"])) == ["hello you", "bye"]
