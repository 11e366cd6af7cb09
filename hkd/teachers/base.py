"""What a teacher is: something that says, for every position of an utterance, how likely each unit of its inventory is there.

Labelling knows no more of a language model than this file. Shape letters: U positions of an utterance.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hkd.sparse import TopK
from hkd.units.inventory import UnitInventory
from hkd.units.text import normalisation as rule_of_words

NO_WORD = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherInfo:
    """Who a teacher is; stands in every store that it wrote. `digest` covers weights, tokenizer and options that change labels."""

    name: str
    kind: str  # masked | causal | cloze | ngram
    direction: str  # both | left
    digest: str
    given: str = "outside-position"  # outside-position | outside-phone | left
    normalisation: str = field(default_factory=rule_of_words)  # how a transcript became words
    options: dict[str, Any] = field(default_factory=dict)  # mask_every, context, precision ...
    trained_on_transcripts: str = "no"  # no | cross-fitted | unknown (a downloaded LM)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """One utterance as a teacher reads it: its units, and the word each belongs to (−1: none)."""

    id: str
    unit_U: NDArray[np.int32]
    word_U: NDArray[np.int32]
    before: tuple[int, ...] = ()  # unit ids of what was said before and after, as context only
    after: tuple[int, ...] = ()
    text: bytes = b""  # `hkd.units.text.text_digest` of its words; empty where the teacher need not know


class Teacher(Protocol):
    """A language model over one inventory.

    It may also have `measured(sentences) -> {name: value}`: figures of a sample of what it labels, for the store's card; and
    `has_read(sentences) -> share`: of how many sentences, each its normalised words, it has learnt from.
    """

    figures: dict[str, float | str]  # what is known of its quality, for the store's card; often nothing

    @property
    def level(self) -> str:
        """senone | monophone | character | subword."""

    @property
    def inventory(self) -> UnitInventory:
        """All units it gives mass to; position in the order = id."""

    @property
    def info(self) -> TeacherInfo:
        """What the store records."""

    def encode(self, words: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Words → (unit_U, word_U), for teachers that bring their own pieces. Raises NotImplementedError for aligned levels."""

    def score(self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = ()) -> list[TopK]:
        """Per sentence the top-k rows of all its positions, in order. Does not depend on what stands together in a call,
        up to float rounding; the same call gives the same bytes."""


class BaseTeacher:
    """What teachers share. Without an `encode` of its own a teacher reads the project's units."""

    def __init__(self, *, inventory: UnitInventory, info: TeacherInfo) -> None:
        self.level, self.inventory, self.info = inventory.level, inventory, info
        self.figures: dict[str, float | str] = {}
        self.has_read: Callable[[Iterable[Sequence[str]]], float] | None = None

    def encode(self, words: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Raises NotImplementedError: the units come from the project."""
        raise NotImplementedError(f"teacher '{self.info.name}' reads the project's units and has no pieces of its own")


def cut_rows(rows: TopK, sentences: Sequence[Sentence]) -> list[TopK]:
    """The rows of all sentences, in order → those of each."""
    bounds = np.cumsum([0, *(len(s.unit_U) for s in sentences)]).tolist()
    return [rows[start:stop] for start, stop in pairwise(bounds)]
