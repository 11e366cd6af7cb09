"""Cards: every one in the repository is complete; a manifest is held against its card."""

from types import MappingProxyType

import pytest

from hkd.corpora.card import Card, Expected, all_cards, check, differences, parse_card
from hkd.corpora.registry import SPEECH, TEXT
from hkd.errors import HkdError
from hkd.manifest import Utterance


def test_every_card_says_where_from_under_which_licence_and_whose_checksums() -> None:
    cards = all_cards()
    assert {card.name for card in cards} == {*SPEECH, *TEXT}
    for card in cards:
        assert card.kind == ("speech" if card.name in SPEECH else "text")
        assert card.title
        assert card.licence
        assert card.source.startswith("https://")
        assert card.archives
        for archive in card.archives:
            assert (archive.sha256 is None) != (archive.md5 is None)
            assert len(archive.sha256 or archive.md5 or "") in (64, 32)
            assert archive.checksum_source
            assert card.archive(archive.file) is archive
        if card.kind == "speech":
            assert card.splits or card.parts
            assert card.split_by


def corpus(numbers: dict[str, int]) -> list[Utterance]:
    return [
        Utterance(id=f"{split}{n}", text="", duration=36.0, extra=MappingProxyType({"split": split}))
        for split, number in numbers.items()
        for n in range(number)
    ]


def card(**splits: Expected) -> Card:
    return Card(name="x", kind="speech", title="", language="en", source="", licence="", splits=splits)


def test_what_differs_is_said() -> None:
    expected = card(train=Expected(utterances=3, hours=0.03), dev=Expected(utterances=1, hours=0.01))
    assert differences(expected, corpus({"train": 3, "dev": 1})) == []
    check(expected, corpus({"train": 3, "dev": 1}))
    assert differences(expected, corpus({"train": 2, "dev": 1})) == [
        "split train has 2 utterances instead of 3",
        "split train has 0.020 hours instead of 0.030",
    ]
    with pytest.raises(HkdError, match="split dev has 0 utterances instead of 1"):
        check(expected, corpus({"train": 3}))
    assert differences(card(train=Expected()), []) == []


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(TypeError):
        parse_card({"name": "x", "kind": "speech", "licens": "?"})
