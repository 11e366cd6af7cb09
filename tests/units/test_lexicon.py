"""Words → phones."""

from pathlib import Path

import pytest

from hkd.errors import UserError
from hkd.units.lexicon import Lexicon
from hkd.units.tying import StateTying


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon()


def test_listed_words_and_their_variants(lexicon: Lexicon) -> None:
    assert lexicon.pronounce("hello") == ("HH", "AH", "L", "OW")
    assert lexicon.variants("the")[0] == lexicon.pronounce("the")
    assert len(lexicon.variants("the")) > 1
    assert "hello" in lexicon
    assert "zorblat" not in lexicon


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("waldo's", "W AA L D OW Z"),  # voiced
        ("zorblat's", "Z AO R B L AH T S"),
        ("café", "K AH F EY"),
        ("pbx", "P IY B IY EH K S"),  # no vowel: read letter by letter
        ("mp3", ""),
        ("ł", ""),
        ("", ""),
    ],
)
def test_endings_accents_acronyms_and_what_is_no_word(lexicon: Lexicon, word: str, phones: str) -> None:
    if word == "zorblat's":
        assert lexicon.pronounce(word) == (*lexicon.pronounce("zorblat"), "S")
    else:
        assert lexicon.pronounce(word) == tuple(phones.split())


def test_sibilants_take_a_vowel_before_s(lexicon: Lexicon) -> None:
    stem = lexicon.pronounce("zorbladge")
    assert lexicon.pronounce("zorbladge's") == ((*stem, "IH", "Z") if stem[-1] in {"JH", "Z", "S"} else (*stem, "Z"))


def test_only_phones_of_the_acoustic_model(lexicon: Lexicon) -> None:
    phones = set(StateTying().definition.phones)
    assert {phone for word in list(lexicon._variants)[::50] for phone in lexicon.pronounce(word)} <= phones
    assert set(lexicon.pronounce("blorgify")) <= phones


def test_unknown_words_are_listed_once_in_order(lexicon: Lexicon) -> None:
    assert lexicon.unknown(["mp3", "hello", "h4x", "mp3"]) == ["mp3", "h4x"]


def test_a_missing_dictionary_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Lexicon(tmp_path / "none.dict").pronounce("a")
