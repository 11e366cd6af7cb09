"""Word n-grams: normalised text in, ARPA out, the same bytes each time."""

import gzip
import math
from pathlib import Path

import pytest

from hkd.decode.arpa import ArpaLm
from hkd.errors import UserError
from hkd.labelling.kneser_ney import WordNgramConfig, train_word_ngram

SENTENCES = ["The dog sees 2 cats.", "The dog sleeps!", "", "A cat sees the dog"]


def test_the_words_are_those_of_the_rule_and_files_may_be_zipped(tmp_path: Path) -> None:
    plain, zipped = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_text("\n".join(SENTENCES[:2]) + "\n")
    zipped.write_bytes(gzip.compress("\n".join(SENTENCES[2:]).encode()))
    for name in ("one.arpa", "two.arpa"):
        assert train_word_ngram([plain, zipped], tmp_path / name, config=WordNgramConfig(), more=["A dog!"]) == 4
    assert (tmp_path / "one.arpa").read_bytes() == (tmp_path / "two.arpa").read_bytes()
    lm = ArpaLm(tmp_path / "one.arpa")
    assert {word for word in lm.number_of if word.isalpha()} == {"the", "dog", "sees", "two", "cats", "sleeps", "a", "cat"}
    state, _ = lm.extend(lm.start(), "the")
    assert lm.extend(state, "dog")[1] > lm.extend(state, "cats")[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt.gz", "one.arpa", "two.arpa"]


def test_a_unigram_is_relative_frequencies(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\n".join(SENTENCES))
    train_word_ngram([text], tmp_path / "one.arpa", config=WordNgramConfig(order=1))
    lm = ArpaLm(tmp_path / "one.arpa")
    tokens = 5 + 3 + 5 + 3  # words, and the end of each sentence
    for word, count in {"the": 3, "dog": 3, "sees": 2, "</s>": 3, "cats": 1}.items():
        assert lm.unigram(word) == pytest.approx(math.log(count / tokens), abs=1e-6)


def test_rare_n_grams_can_be_left_out(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\n".join(SENTENCES))
    train_word_ngram([text], tmp_path / "all.arpa", config=WordNgramConfig(order=2, min_counts=(1,)))
    train_word_ngram([text], tmp_path / "cut.arpa", config=WordNgramConfig(order=2, min_counts=(2,)))
    assert (tmp_path / "cut.arpa").stat().st_size < (tmp_path / "all.arpa").stat().st_size


def test_without_text_it_says_where_it_goes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="into text/"):
        train_word_ngram([], tmp_path / "x.arpa", config=WordNgramConfig())
    for wrong in ({"order": 9}, {"min_counts": (-1,)}):
        with pytest.raises(UserError, match=r"words\.(order|min_counts) must be"):
            WordNgramConfig(**wrong)
