"""Cards: every one in the repository is complete; a manifest is held against its card."""

from dataclasses import replace
from types import MappingProxyType

import pytest

from hkd.corpora.cards import Card, Expected, all_cards, check, differences, parse_card
from hkd.corpora.named import SPEECH
from hkd.corpora.prepare import TEXT
from hkd.errors import HkdError
from hkd.manifest import Utterance


def test_every_card_says_where_from_under_which_licence_and_whose_checksums() -> None:
    cards = all_cards()
    assert {card.name for card in cards} == {*SPEECH, *TEXT}
    for card in cards:
        assert card.kind == ("speech" if card.name in SPEECH else "text")
        assert card.title
        assert card.licence
        assert card.source.startswith(("https://", "http://"))
        for archive in card.archives:
            checksums = [checksum for checksum in (archive.sha256, archive.md5) if checksum]
            assert [len(checksum) for checksum in checksums] in ([64], [32], [])
            assert bool(archive.checksum_source) == bool(checksums)
            assert card.archive(archive.file) is archive
        if card.kind == "speech":
            assert card.split_by
            figures = [*card.splits.values(), *card.parts.values(), *([card.whole] if card.whole else [])]
            assert figures or card.language == "any"
            if card.base_url:
                assert card.archives
                assert card.size_gb


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


def test_parts_that_are_not_there_count_where_all_are_wanted() -> None:
    parts = {"a": Expected(utterances=1), "b": Expected(utterances=1)}
    one = [Utterance(id="x", text="", extra=MappingProxyType({"part": "a"}))]
    whole = Card(name="x", kind="speech", title="", language="en", source="", licence="", parts=parts)
    assert differences(whole, one) == ["part b has 0 utterances instead of 1"]
    assert differences(replace(whole, some_parts=True), one) == []
    assert differences(replace(whole, parts={}, whole=Expected(utterances=2)), one) == ["corpus x has 1 utterances instead of 2"]
