"""Letters of pieces: every kind of symbol that tokenizers write; byte-level ones against the tokenizers package."""

import pytest

from hkd.units.letters import letters_per_unit


@pytest.mark.parametrize(
    ("symbol", "letters"),
    [
        ("▁participant", 11), ("s", 1), ("▁", 0), ("▁'", 0), ("'s", 1), ("##ing", 3), ("##", 0), ("low</w>", 3), ("low@@", 3),
        ("é", 1), ("▁é", 1), ("12", 2), (",", 0), ("<unk>", 1), ("[UNK]", 1), ("<0x41>", 1), ("<0x20>", 0), ("<0xC3>", 1),
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
