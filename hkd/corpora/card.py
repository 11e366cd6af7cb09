"""A corpus' card: where it comes from, under which licence, what its archives hash to, and what the finished manifest must hold.

Cards are TOML files, one a corpus (`data_manifests/` in the repository). A checksum stands there only with the source that publishes it.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hkd.errors import HkdError
from hkd.files import shipped
from hkd.manifest import Utterance

CARDS = shipped("data_manifests")
HOURS_TOLERANCE = 0.005  # of the expected hours: formats of the same sound differ by a few samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """One file to be had. At most one of `sha256` and `md5` is set, and only together with who publishes it."""

    file: str
    checksum_source: str = ""
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What a part or split must hold; None is not checked."""

    utterances: int | None = None
    hours: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A corpus' card."""

    name: str
    kind: str  # speech | text
    title: str
    language: str
    source: str
    licence: str
    archives: tuple[Archive, ...] = ()
    packages: tuple[str, ...] = ()  # Debian packages
    base_url: str = ""  # empty: cannot be downloaded without a form or a licence
    size_gb: float | None = None  # of the archives together, about
    split_by: str = ""
    figures_source: str = ""  # who publishes the expected utterances and hours
    sentences: int | None = None  # text corpora
    whole: Expected | None = None  # what all splits together must hold
    some_parts: bool = False  # whether a manifest may hold some of the parts alone
    splits: Mapping[str, Expected] = field(default_factory=dict)
    parts: Mapping[str, Expected] = field(default_factory=dict)  # the publisher's parts: the extra field `part`

    def archive(self, file: str) -> Archive | None:
        """The archive of that name, or None."""
        return next((archive for archive in self.archives if archive.file == file), None)


def parse_card(table: Mapping[str, Any]) -> Card:
    """A card from its TOML table. Raises TypeError for unknown or missing keys."""
    values = dict(table)
    values["archives"] = tuple(Archive(**archive) for archive in table.get("archives", ()))
    values["packages"] = tuple(table.get("packages", ()))
    if "whole" in table:
        values["whole"] = Expected(**table["whole"])
    for name in ("splits", "parts"):
        values[name] = {key: Expected(**expected) for key, expected in table.get(name, {}).items()}
    return Card(**values)


def load_card(name: str) -> Card:
    """The card of a known corpus."""
    return parse_card(tomllib.loads((CARDS / f"{name}.toml").read_text(encoding="utf-8")))


def all_cards() -> list[Card]:
    """All cards, by name."""
    return [load_card(path.stem) for path in sorted(CARDS.glob("*.toml"))]


def differences(card: Card, utterances: Iterable[Utterance]) -> list[str]:
    """What the utterances have otherwise than the card says, a sentence each."""
    counts: dict[tuple[str, str], int] = {}
    seconds: dict[tuple[str, str], float] = {}
    for utterance in utterances:
        for key in (("split", str(utterance.split)), ("part", str(utterance.extra.get("part"))), ("corpus", card.name)):
            counts[key] = counts.get(key, 0) + 1
            seconds[key] = seconds.get(key, 0.0) + (utterance.duration or 0.0)
    expectations = {("split", name): expected for name, expected in card.splits.items()}
    expectations |= {
        ("part", name): expected for name, expected in card.parts.items() if not card.some_parts or ("part", name) in counts
    }
    if card.whole is not None:
        expectations["corpus", card.name] = card.whole
    found = []
    for (kind, name), expected in expectations.items():
        number, hours = counts.get((kind, name), 0), seconds.get((kind, name), 0.0) / 3600
        if expected.utterances is not None and number != expected.utterances:
            found.append(f"{kind} {name} has {number} utterances instead of {expected.utterances}")
        if expected.hours is not None and abs(hours - expected.hours) > HOURS_TOLERANCE * expected.hours:
            found.append(f"{kind} {name} has {hours:.3f} hours instead of {expected.hours:.3f}")
    return found


def check(card: Card, utterances: Iterable[Utterance]) -> None:
    """Raise HkdError where the finished manifest is not what the card says."""
    found = differences(card, utterances)
    if found:
        raise HkdError(
            f"corpus {card.name} must be as its card says, but {'; '.join(found)}. Fetch it anew, or say --from to take it as it is."
        )
