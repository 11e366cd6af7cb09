"""What is sure of a word's pieces, against all continuations; where tokens go, against all continuations of a tiny
language model."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hkd.errors import UserError
from hkd.teachers.projected import StudentPieces, TokenMap, spoken, student_subwords, token_texts
from hkd.units.sequences import SubwordModel, train_subwords
from hkd.units.text import WordsConfig, use, words

LETTERS = "ab'"
TEXTS = ("ab abba baab aab bab abab b a aa babba", "abba ab'a bab b ba aba", "aab bb bba a'b a'ba")


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def subwords(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SubwordModel:
    folder = tmp_path_factory.mktemp(request.param)
    texts = [" ".join(text.split()[n::3]) for text in TEXTS for n in range(3)] * 3
    train_subwords(texts, vocab_size=42, kind=request.param, folder=folder)
    return SubwordModel(folder / "subword.model")


def continuations(size: int) -> list[str]:
    return ["".join(letters) for n in range(size + 1) for letters in itertools.product(LETTERS, repeat=n)]


def test_what_is_sure_of_an_open_word_is_what_all_continuations_share(subwords: SubwordModel) -> None:
    student = StudentPieces(subwords)
    assert subwords.is_unigram == bool(student.open("abbabbab"))
    longest = max(len(symbol) for symbol in subwords.inventory.symbols)
    assert longest <= 6
    found = 0
    for word in [w for w in continuations(4) if w[:1] not in ("", "'") and "''" not in w]:
        shared: list[int] | None = None
        for more in continuations(5):
            whole = words(word + more)
            if not whole or (len(whole) > 1 and not (word + more).startswith(whole[0] + "'")):
                continue
            pieces = subwords.encode(whole)[0].tolist()
            same = (
                len(pieces)
                if shared is None
                else next(
                    (n for n, (a, b) in enumerate(zip(shared, pieces, strict=False)) if a != b),
                    min(len(shared), len(pieces)),
                )
            )
            shared = pieces[:same] if shared is None else shared[:same]
        sure = list(student.open(word))
        assert shared is not None
        if subwords.is_unigram:
            assert sure == shared, word
            found += bool(sure)
        else:
            assert sure == []
    assert found or not subwords.is_unigram


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=12))
@example(text="\U00018d80")  # a letter for regex, unassigned for Python 3.11
@example(text="किताब")
@example(text="A'⼀")
def test_a_text_is_read_as_words_reads_it(text: str) -> None:
    said = spoken(text)
    if said is not None:
        assert words(said) == words(text)
        assert len(said.split(" ")) >= 1


def test_texts_of_tokens_spell_what_the_tokenizer_splits(teacher_folder: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    for kind, glue in (("bert", True), ("roberta", False), ("gpt2", False)):
        tokenizer = AutoTokenizer.from_pretrained(teacher_folder(kind))
        texts = token_texts(tokenizer, len(tokenizer) + 3)
        assert texts[len(tokenizer) :] == [None] * 3
        assert all(texts[special] is None for special in tokenizer.all_special_ids)
        tokens = tokenizer(" the cat sat over there", add_special_tokens=False)["input_ids"]
        assert "".join(texts[token] or "?" for token in tokens).split() == ["the", "cat", "sat", "over", "there"]
        subwords_map = TokenMap.of(tokenizer, len(tokenizer), _Nothing())  # type: ignore[arg-type]
        said = ""
        for token in tokenizer(" it's raining", add_special_tokens=False)["input_ids"]:
            said = subwords_map.add(said, subwords_map.texts[token] or "?")
        assert said.split() == ["it's", "raining"]
        assert subwords_map._glue == glue


class _Nothing:
    symbols: tuple[str, ...] = ()


def test_projection_is_refused_where_words_may_end_in_an_apostrophe(tmp_path: Path) -> None:
    use(WordsConfig(apostrophes="letters"))
    try:
        with pytest.raises(UserError, match=r"teacher\.project must be left out where .* apostrophes"):
            student_subwords(tmp_path)
    finally:
        use(WordsConfig())
