"""What a teacher is: what says, for every position of an utterance, how likely each unit of its inventory is there.

Labelling knows no more of a language model than this file. Shape letters: U positions of an utterance.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.sparse import TopK
from hkd.units.inventory import UnitInventory
from hkd.units.text import normalisation as rule_of_words

NO_WORD = -1
GIVEN = ("outside-position", "outside-phone", "left")  # what a position is conditioned on


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherInfo:
    """What every store records of its teacher. `digest` covers weights, tokenizer and options that change labels."""

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


class Teacher(ABC):
    """A language model over one inventory. It may also have `measured(sentences) -> {name: value}`: figures of a sample
    of what it labels, for the store's card."""

    def __init__(self, *, inventory: UnitInventory, info: TeacherInfo) -> None:
        """inventory: all units that get mass, of its level; position in the order = id."""
        self.level, self.inventory, self.info = inventory.level, inventory, info
        self.figures: dict[str, float | str] = {}  # what is known of its quality, for the store's card
        # of how many sentences, each its normalised words, it has learnt from, of 1; None where nobody knows
        self.has_read: Callable[[Iterable[Sequence[str]]], float] | None = None

    def encode(self, words: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Words → (unit_U, word_U). Raises NotImplementedError where a teacher has no pieces of its own."""
        raise NotImplementedError(f"teacher '{self.info.name}' reads the project's units and has no pieces of its own")

    @abstractmethod
    def score(self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = ()) -> list[TopK]:
        """Per sentence the top-k rows of all its positions, in order. Does not depend on what stands together in a
        call, up to float rounding; the same call gives the same bytes."""


def cut_rows(rows: TopK, sentences: Sequence[Sentence]) -> list[TopK]:
    """The rows of all sentences, in order → those of each."""
    bounds = np.cumsum([0, *(len(s.unit_U) for s in sentences)]).tolist()
    return [rows[start:stop] for start, stop in pairwise(bounds)]
