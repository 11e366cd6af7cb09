"""State tying by a decision tree, as Kaldi trains it or `hkd units tie` does: text → phones and senones, as `StateTying` gives for pocketsphinx.

- The model's phones may carry their place in the word (AH1_B …) and stress; the inventory folds places always, stress where it is asked to.
- Text has silence at the utterance's edges only; beyond them the tree sees nothing (0). Neighbours reach across words.
- Symbols are readable: `AH-1-57` is senone 57, state 1 of AH. A senone that several phones share is named after the first.

Shape letters: U positions, V senones.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import write_json
from hkd.units.inventory import UnitInventory
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.phones import phone_inventory, split_position, without_stress
from hkd.units.tree import ContextTree, parse_tree

FORMAT = 1
Pronunciations = Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeTying:
    """One acoustic model's tying. Raises UserError where tree, phones and states do not belong together."""

    phones: Mapping[str, int]  # the model's, with places in the word; 0 is none
    tree: ContextTree
    places: Mapping[int, tuple[int, ...]]  # by phone: the classes of its states, in order
    owner: Mapping[int, tuple[int, int]]  # by senone: phone, state
    silence_phones: tuple[str, ...] = ()  # folded names, besides those known by name
    stress: bool = True
    name: str = "tree"

    def __post_init__(self) -> None:
        if self.tree.num_senones > 1 + max(self.owner, default=-1):
            raise UserError(
                f"tree and acoustic model must belong together, but have {self.tree.num_senones} and {1 + max(self.owner, default=-1)} "
                "senones. Give those of one model."
            )
        if missing := [number for number in self.phones.values() if number not in self.places]:
            raise UserError(f"every phone must have states in the acoustic model, but phone {missing[0]} has none.")
        object.__setattr__(self, "_tied", lru_cache(maxsize=1 << 18)(self._tied_uncached))

    def fold(self, phone: str) -> str:
        """A phone of the model → its symbol in the inventory."""
        base = split_position(phone)[0]
        return base if self.stress else without_stress(base)

    @cached_property
    def symbol_of(self) -> dict[int, str]:
        """The model's phones by number, folded."""
        return {number: self.fold(phone) for phone, number in sorted(self.phones.items(), key=lambda item: item[1])}

    @cached_property
    def _phone_inventory(self) -> tuple[UnitInventory, tuple[int, ...]]:
        return phone_inventory(dict.fromkeys(self.symbol_of.values()), self.silence_phones)

    @property
    def monophone_inventory(self) -> UnitInventory:
        """The phones, folded, in the order of the model's numbers."""
        return self._phone_inventory[0]

    @cached_property
    def _owner_V2(self) -> NDArray[np.int32]:
        owner = np.zeros((1 + max(self.owner), 2), np.int32)
        for senone, (phone, state) in self.owner.items():
            owner[senone] = self.monophone_inventory.id_of[self.symbol_of[phone]], state
        return owner

    @property
    def phone_of_senone_V(self) -> NDArray[np.int32]:
        """Monophone id of each senone."""
        return self._owner_V2[:, 0]

    @property
    def state_of_senone_V(self) -> NDArray[np.int32]:
        """State number (0 first) of each senone."""
        return self._owner_V2[:, 1]

    @cached_property
    def senone_inventory(self) -> UnitInventory:
        """All senones; `silence` is the first state of silence."""
        names = self.monophone_inventory.symbols
        symbols = tuple(f"{names[phone]}-{state}-{number}" for number, (phone, state) in enumerate(self._owner_V2.tolist()))
        main = self.monophone_inventory.silence
        silent = [] if main is None else np.flatnonzero((self._owner_V2 == (main, 0)).all(1)).tolist()
        quiet = silent or list(self.silences[SENONE])
        return UnitInventory(level=SENONE, symbols=symbols, silence=quiet[0] if quiet else None)

    @property
    def inventories(self) -> dict[str, UnitInventory]:
        """By level."""
        return {SENONE: self.senone_inventory, MONOPHONE: self.monophone_inventory}

    @cached_property
    def silences(self) -> dict[str, tuple[int, ...]]:
        """Per level the ids that label frames but are no positions: silence and noise, with all their states."""
        quiet = self._phone_inventory[1]
        return {SENONE: tuple(np.flatnonzero(np.isin(self.phone_of_senone_V, quiet)).tolist()), MONOPHONE: quiet}

    @cached_property
    def _by_place(self) -> dict[tuple[str, str], int]:
        """(folded phone, place in the word) → the model's phone; where stress is folded, several phones fall together: the first counts."""
        found: dict[tuple[str, str], int] = {}
        for phone, number in sorted(self.phones.items(), key=lambda item: item[1]):
            found.setdefault((self.fold(phone), split_position(phone)[1]), number)
        return found

    def _number(self, phone: str, place: str) -> int:
        for symbol in (f"{phone}_{place}", phone):  # as the model has it, with stress where a lexicon gives it
            if symbol in self.phones:
                return self.phones[symbol]
        number = self._by_place.get((phone, place), self._by_place.get((phone, "")))
        if number is None:
            raise UserError(f"a phone must be one of the acoustic model's, but is '{phone}' instead.")
        return number

    def model_phones(self, pronunciations: Pronunciations) -> list[list[int]]:
        """The model's phones of each word, with their places in it. Raises UserError for unknown phones and words without any."""
        found = []
        for phones in pronunciations:
            if not phones:
                raise UserError("every word must have a pronunciation, but one has none.")
            places = "S" if len(phones) == 1 else "B" + "I" * (len(phones) - 2) + "E"
            found.append([self._number(phone, place) for phone, place in zip(phones, places, strict=True)])
        return found

    def monophones(self, pronunciations: Pronunciations) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Phones of each word → (unit_U, word_U): monophone ids and the word of each. Raises UserError for unknown phones."""
        ids = self.model_phones(pronunciations)
        unit = [self.monophone_inventory.id_of[self.symbol_of[phone]] for phones in ids for phone in phones]
        word = [number for number, phones in enumerate(ids) for _ in phones]
        return np.array(unit, np.int32), np.array(word, np.int32)

    def senones(self, pronunciations: Pronunciations) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Phones of each word → (unit_U, word_U): senones, silence before the first word and after the last. Raises as `monophones`."""
        ids = self.model_phones(pronunciations)
        quiet = self.monophone_inventory.silence
        edge = [] if quiet is None or not ids else [self._number(self.monophone_inventory.symbols[quiet], "")]
        flat = [*edge, *(phone for phones in ids for phone in phones), *edge]
        word_of = [number for number, phones in enumerate(ids) for _ in phones]
        units = self.tied(flat)
        unit: list[int] = []
        word: list[int] = []
        for number, states in zip(word_of, units[len(edge) : len(units) - len(edge)], strict=True):
            unit += states
            word += [number] * len(states)
        return np.array(unit, np.int32), np.array(word, np.int32)

    def tied(self, phones: Sequence[int]) -> list[tuple[int, ...]]:
        """A sequence of the model's phones, silence included → the senones of each one's states."""
        before, after = self.tree.central, self.tree.width - 1 - self.tree.central
        padded = [0] * before + list(phones) + [0] * after
        return [self.window_senones(tuple(padded[at : at + self.tree.width])) for at in range(len(phones))]

    def window_senones(self, window: tuple[int, ...]) -> tuple[int, ...]:
        """The senones of the central phone of `tree.width` phones; 0 stands beyond the ends. Raises UserError where the tree has none."""
        found: tuple[int, ...] = self._tied(window)  # type: ignore[attr-defined]
        return found

    def _tied_uncached(self, window: tuple[int, ...]) -> tuple[int, ...]:
        found = [self.tree.senone(window, place) for place in self.places[window[self.tree.central]]]
        if None in found:
            raise UserError(f"the tree must know every phone in every context, but has no senone for {window}.")
        return tuple(int(senone) for senone in found if senone is not None)

    def to_json(self) -> dict[str, Any]:
        """What `load` reads."""
        return {
            "format": FORMAT, "name": self.name, "stress": self.stress, "silence_phones": list(self.silence_phones),
            "phones": [[phone, number, list(self.places[number])] for phone, number in self.phones.items()],
            "senones": [[senone, *self.owner[senone]] for senone in sorted(self.owner)],
            "tree": self.tree.to_text().split("\n"),
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "TreeTying":
        """Read what `save` wrote. Raises UserError where it is something else."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']}")
            return cls(
                phones={str(phone): int(number) for phone, number, _ in value["phones"]},
                places={int(number): tuple(places) for _, number, places in value["phones"]},
                owner={int(senone): (int(phone), int(state)) for senone, phone, state in value["senones"]},
                tree=parse_tree("\n".join(value["tree"]).encode()), silence_phones=tuple(value["silence_phones"]),
                stress=bool(value["stress"]), name=str(value["name"]),
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"acoustic model {path}: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} must be an acoustic model's tying, but cannot be read as one ({error}).") from None
