"""SentencePiece: deterministic training, word by word encoding, decoding."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.errors import UserError
from hkd.testing.teachers import tiny_sentences
from hkd.units.inventory import UnitInventory
from hkd.units.sequences import SubwordModel, letters_per_unit, train_subwords

TEXTS = tiny_sentences(60)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SubwordModel:
    folder = tmp_path_factory.mktemp("subword")
    train_subwords(TEXTS, vocab_size=80, folder=folder)
    return SubwordModel(folder / "subword.model")


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_the_same_texts_give_the_same_bytes_in_any_order_and_place(tmp_path: Path, kind: str) -> None:
    first = train_subwords(TEXTS, vocab_size=80, kind=kind, folder=tmp_path / "a")
    second = train_subwords(reversed(TEXTS), vocab_size=80, kind=kind, folder=tmp_path / "elsewhere")
    assert first.digest == second.digest
    for name in ("subword.model", "subword.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a" / "subword.model").read_bytes()
    assert (
        UnitInventory.load(tmp_path / "a" / "subword.json").digest
        == first.digest
        == SubwordModel(tmp_path / "a" / "subword.model").inventory.digest
    )


@given(st.lists(st.from_regex(r"[a-z]+('[a-z]+)?", fullmatch=True), max_size=6))
def test_any_english_words_come_back(model: SubwordModel, words: list[str]) -> None:
    unit_U, word_U = model.encode(words)
    assert model.decode(unit_U.tolist()) == " ".join(words)
    assert unit_U.dtype == word_U.dtype == np.int32
    assert np.array_equal(np.unique(word_U), np.arange(len(words)))
    for number, word in enumerate(words):  # a word's pieces do not depend on its neighbours
        assert np.array_equal(unit_U[word_U == number], model.encode([word])[0])


def test_characters_that_training_never_saw_are_the_unknown_piece(model: SubwordModel) -> None:
    assert 0 in model.encode(["жук"])[0]
    assert model.inventory.symbols[0] == "<unk>"


def test_any_ids_decode(model: SubwordModel) -> None:
    assert model.decode([]) == ""
    model.decode(reversed(range(len(model.inventory))))


def test_what_cannot_be_trained_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs text"):
        train_subwords(["...", ""], vocab_size=50, folder=tmp_path)
    with pytest.raises(UserError, match="at least 29"):
        train_subwords(TEXTS, vocab_size=5, folder=tmp_path)
    with pytest.raises(UserError, match="unigram, bpe or char"):
        train_subwords(TEXTS, kind="word", folder=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Run `hkd units train`"):
        SubwordModel(tmp_path / "subword.model")
    (tmp_path / "subword.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="SentencePiece"):
        SubwordModel(tmp_path / "subword.model")


def test_a_small_text_gives_fewer_than_asked_for(tmp_path: Path) -> None:
    assert 29 <= len(train_subwords(["a tiny text"], vocab_size=5000, folder=tmp_path)) < 5000


def test_characters_are_the_alphabet_and_the_word_mark(tmp_path: Path) -> None:
    inventory = train_subwords(TEXTS, vocab_size=2, kind="char", folder=tmp_path, level="character")
    assert set(inventory.symbols) == {"<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz'"}
    assert (inventory.level, sorted(path.name for path in tmp_path.iterdir())) == (
        "character",
        ["character.json", "character.model"],
    )
    model = SubwordModel(tmp_path / "character.model", level="character")
    unit_U, word_U = model.encode(["don't", "x"])
    assert "".join(inventory.symbols[unit] for unit in unit_U) == "▁don't▁x"
    assert word_U.tolist() == [0] * 6 + [1] * 2
    assert model.decode(unit_U.tolist()) == "don't x"


@pytest.mark.parametrize(
    ("symbol", "letters"),
    [
        ("▁participant", 11), ("s", 1), ("▁", 0), ("▁'", 0), ("'s", 1), ("##ing", 3), ("##", 0), ("low</w>", 3),
        ("low@@", 3),
        ("é", 1), ("▁é", 1), ("12", 2), (",", 0), ("<unk>", 1), ("[UNK]", 1), ("<0x41>", 1), ("<0x20>", 0),
        ("<0xC3>", 1),
        ("<0xA9>", 0), ("", 0),
    ],
)  # fmt: skip
def test_marks_are_no_letters(symbol: str, letters: int) -> None:
    assert letters_per_unit((symbol,)).tolist() == [letters]


@pytest.mark.parametrize("text", ["the participants", "café żółw", "naïve 12", "don't", "東京", "😀 ok"])
def test_byte_level_pieces_count_the_characters_that_they_spell(text: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE(vocab={"Ġ": 0, **{c: n for n, c in enumerate(pre_tokenizers.ByteLevel.alphabet(), 1)}}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    whole = tuple(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    wanted = sum(c.isalnum() for c in text)
    assert letters_per_unit(("Ġ", *whole)).sum() == wanted  # words as they are written
    single = tuple(tokenizer.encode(text).tokens)
    assert letters_per_unit(("Ġ", *single)).sum() == sum(
        c.isalnum() or ord(c) > 127 for c in text
    )  # bytes: any character from Latin-1 on
