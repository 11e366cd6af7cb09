"""State tying: which senones a word sequence has, by the acoustic model's own rules, and what inventories that gives.

- A phone in context (left and right neighbour, position in the word) has three states, each tied to a senone.
- Text has silence at the utterance's edges only; neighbours reach across words, as pocketsphinx has it.
- Symbols are readable: `AA-0-1234` is senone 1234, state 0 of AA. Ids are the model's own.

Shape letters: U positions, V size of the senone inventory, S states a phone.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.units.inventory import UnitInventory
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.lexicon import model_folder
from hkd.units.mdef import WORD_BEGIN, WORD_END, WORD_INTERNAL, WORD_SINGLE, read_mdef

Pronunciations = Sequence[Sequence[str]]


class StateTying:
    """The tying of one acoustic model; by default that of pocketsphinx's English one (42 phones, 5,126 senones)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or model_folder() / "en-us" / "mdef"
        self.definition = read_mdef(self.path)
        self.phone_id = {phone: number for number, phone in enumerate(self.definition.phones)}
        self._nearest = lru_cache(maxsize=1 << 18)(self._senones_nearest)

    def to_json(self) -> dict[str, Any]:
        """What says that a project's units are of a model definition that lies beside (`hkd.units.acoustic`)."""
        return {"format": 1, "name": "pocketsphinx"}

    @property
    def num_states(self) -> int:
        """Emitting states a phone."""
        return int(self.definition.senones_PS.shape[1])

    @cached_property
    def _owner_VS(self) -> NDArray[np.int32]:
        """For each senone its phone and its state, (V, 2); where several share it, the first."""
        owner = np.full((self.definition.num_senones, 2), -1, np.int32)
        rows = [(row, row) for row in range(len(self.definition.phones))]
        rows += [(context[0], row) for context, row in self.definition.triphones.items()]
        base_P = np.array([base for base, _ in rows], np.int32)
        senones_PS = self.definition.senones_PS[[row for _, row in rows]]
        for state in reversed(range(self.num_states)):
            owner[senones_PS[::-1, state], 0] = base_P[::-1]
            owner[senones_PS[::-1, state], 1] = state
        return owner

    @property
    def phone_of_senone_V(self) -> NDArray[np.int32]:
        """Monophone id of each senone."""
        return self._owner_VS[:, 0]

    @property
    def state_of_senone_V(self) -> NDArray[np.int32]:
        """State number (0 first) of each senone."""
        return self._owner_VS[:, 1]

    @cached_property
    def senone_inventory(self) -> UnitInventory:
        """All senones; `silence` is the first state of SIL."""
        symbols = [f"{self.definition.phones[phone]}-{state}-{number}" for number, (phone, state) in enumerate(self._owner_VS)]
        silence = int(self.definition.senones_PS[self.definition.silence, 0])
        return UnitInventory(level=SENONE, symbols=tuple(symbols), silence=silence)

    @cached_property
    def monophone_inventory(self) -> UnitInventory:
        """The phones without context, fillers included."""
        return UnitInventory(level=MONOPHONE, symbols=self.definition.phones, silence=self.definition.silence)

    @property
    def inventories(self) -> dict[str, UnitInventory]:
        """By level."""
        return {SENONE: self.senone_inventory, MONOPHONE: self.monophone_inventory}

    @cached_property
    def silences(self) -> dict[str, tuple[int, ...]]:
        """Per level the ids that label frames but are no positions: silence and fillers, with all their states."""
        fillers = [number for number, filler in enumerate(self.definition.filler) if filler]
        senones = np.flatnonzero(np.isin(self.phone_of_senone_V, fillers))
        return {SENONE: tuple(senones.tolist()), MONOPHONE: tuple(fillers)}

    def _senones_nearest(self, base: int, left: int, right: int, position: int) -> tuple[int, ...]:
        return tuple(self.definition.senones_PS[self.definition.nearest(base, left, right, position)].tolist())

    def _ids(self, pronunciations: Pronunciations) -> list[list[int]]:
        try:
            ids = [[self.phone_id[phone] for phone in phones] for phones in pronunciations]
        except KeyError as error:
            raise UserError(f"a phone must be one of the acoustic model's, but is {error} instead.") from None
        if not all(ids):
            raise UserError("every word must have a pronunciation, but one has none.")
        return ids

    def monophones(self, pronunciations: Pronunciations) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Phones of each word → (unit_U, word_U): monophone ids and the word of each. Raises UserError for unknown phones."""
        ids = self._ids(pronunciations)
        unit = [phone for phones in ids for phone in phones]
        word = [number for number, phones in enumerate(ids) for _ in phones]
        return np.array(unit, np.int32), np.array(word, np.int32)

    def senones(self, pronunciations: Pronunciations) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Phones of each word → (unit_U, word_U): senones, silence before the first word and after the last. Raises as `monophones`."""
        ids = self._ids(pronunciations)
        flat = [self.definition.silence, *(phone for phones in ids for phone in phones), self.definition.silence]
        unit: list[int] = []
        word: list[int] = []
        at = 1
        for number, phones in enumerate(ids):
            last = len(phones) - 1
            for place, phone in enumerate(phones):
                if last == 0:
                    position = WORD_SINGLE
                else:
                    position = WORD_BEGIN if place == 0 else WORD_END if place == last else WORD_INTERNAL
                unit.extend(self._nearest(phone, flat[at - 1], flat[at + 1], position))
                word.extend([number] * self.num_states)
                at += 1
        return np.array(unit, np.int32), np.array(word, np.int32)
