"""Word n-grams: normalised text in, ARPA out, the same bytes each time."""

import gzip
import math
import random
from pathlib import Path

import pytest

from hkd.decode.lm import ArpaLm
from hkd.errors import UserError
from hkd.labelling.ngram import WordNgramConfig, train_word_ngram

SENTENCES = ["The dog sees 2 cats.", "The dog sleeps!", "", "A cat sees the dog"]


def test_the_words_are_those_of_the_rule_and_files_may_be_zipped(tmp_path: Path) -> None:
    plain, zipped = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_text("\n".join(SENTENCES[:2]) + "\n")
    zipped.write_bytes(gzip.compress("\n".join(SENTENCES[2:]).encode()))
    for name in ("one.arpa", "two.arpa"):
        assert train_word_ngram([plain, zipped], tmp_path / name, config=WordNgramConfig(), more=["A dog!"]) == 4
    assert (tmp_path / "one.arpa").read_bytes() == (tmp_path / "two.arpa").read_bytes()
    lm = ArpaLm(tmp_path / "one.arpa")
    assert {word for word in lm.number_of if word.isalpha()} == {
        "the",
        "dog",
        "sees",
        "two",
        "cats",
        "sleeps",
        "a",
        "cat",
    }
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


def test_what_hardly_matters_can_be_pruned(tmp_path: Path) -> None:
    text = write_walk(tmp_path / "a.txt", sentences=300, seed=0)
    for name, prune in {"all": 0.0, "same": 0.0, "cut": 1e-3}.items():
        train_word_ngram([text], tmp_path / f"{name}.arpa", config=WordNgramConfig(prune=prune))
    assert (tmp_path / "same.arpa").read_bytes() == (tmp_path / "all.arpa").read_bytes()
    assert (tmp_path / "cut.arpa").stat().st_size < 0.8 * (tmp_path / "all.arpa").stat().st_size


def test_longer_histories_are_better_on_unseen_sentences(tmp_path: Path) -> None:
    text, unseen = (
        write_walk(tmp_path / f"{seed}.txt", sentences=count, seed=seed) for seed, count in ((0, 400), (1, 50))
    )
    found = []
    for order in (1, 2, 3):
        train_word_ngram([text], tmp_path / "n.arpa", config=WordNgramConfig(order=order))
        found.append(perplexity(ArpaLm(tmp_path / "n.arpa"), unseen))
    assert found[0] > 1.2 * found[1] > 1.2 * 2 * found[2], found


def write_walk(path: Path, *, sentences: int, seed: int) -> Path:
    """Sentences of twelve of thirty words; the two words before favour a word over two others, and any other is
    rare."""
    draw = random.Random(seed)
    names = [f"w{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(30)]
    lines = []
    for _ in range(sentences):
        before, last, line = 0, 0, []
        for _ in range(12):
            likely = [(7 * last + 11 * before) % 30, (7 * last + 1) % 30, (7 * last + 2) % 30]
            before, last = last, draw.choices([*likely, draw.randrange(30)], [60, 15, 15, 10])[0]
            line.append(names[last])
        lines.append(" ".join(line))
    path.write_text("\n".join(lines) + "\n")
    return path


def perplexity(lm: ArpaLm, text: Path) -> float:
    total, count = 0.0, 0
    for line in text.read_text().splitlines():
        state = lm.start()
        for word in line.split():
            state, logp = lm.extend(state, word)
            total, count = total + logp, count + 1
    return math.exp(-total / count)


def test_without_text_it_says_where_it_goes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="into text/"):
        train_word_ngram([], tmp_path / "x.arpa", config=WordNgramConfig())
    for wrong in ({"order": 9}, {"prune": -1.0}):
        with pytest.raises(UserError, match=r"words\.(order|prune) must be"):
            WordNgramConfig(**wrong)
