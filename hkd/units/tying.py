"""State tying: which senones a word sequence has, by an acoustic model's own rules, and the inventories of its phones and senones.

- `StateTying`: pocketsphinx's model definition (`mdef`). A phone in context (both neighbours, position in the word) has three tied states.
- `TreeTying`: a decision tree, of Kaldi or of `hkd units tie`. The model's phones may carry their place in the word (AH1_B) and stress.
- `PhoneTying`: phones alone (MFA, CTM, CTC).
- Text has silence at the utterance's edges only. Neighbours reach across words.
- Symbols are readable: `AA-0-1234` is senone 1234, state 0 of AA. Ids are the model's own.

A project has pocketsphinx's English model, unless its units folder says otherwise; `hkd align --from ...` and `hkd units tie` write:

    units/acoustic.json     the tying of another acoustic model, or a phone set alone
    units/acoustic.mdef     pocketsphinx's model definition, where the model is not the English one that it carries
    units/lexicon.dict      the pronunciations that go with it

Shape letters: U positions, V size of the senone inventory, S states a phone, P phones in context or not.
"""

import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import digest_of, write_bytes, write_json
from hkd.units.inventory import UnitInventory
from hkd.units.kaldi import ContextTree, parse_tree
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.lexicon import Lexicon, model_folder, phone_inventory, split_position, without_stress

Pronunciations = Sequence[Sequence[str]]
Sequences = tuple[NDArray[np.int32], NDArray[np.int32]]
WORD_INTERNAL, WORD_BEGIN, WORD_END, WORD_SINGLE = range(4)
NUM_WORD_POSITIONS = 4
_COUNTS = 10
_PHONE = np.dtype([("ssid", "<i4"), ("tmat", "<i4"), ("wpos", "u1"), ("ctx", "u1", (3,))])


@dataclass(frozen=True, kw_only=True)
class ModelDefinition:
    """Phones in context and their tied states. Context-independent phones come first; their id is their place in `phones`."""

    phones: tuple[str, ...]
    silence: int
    filler: tuple[bool, ...]
    num_senones: int
    num_ci_senones: int
    senones_PS: NDArray[np.int32]  # for each phone (in context or not) the senones of its S emitting states
    triphones: dict[tuple[int, int, int, int], int]  # (base, left, right, word position) → row of senones_PS

    def exact(self, base: int, left: int, right: int, position: int) -> int | None:
        """The row of a phone in context, fillers as neighbours counting as silence; None where the model has none."""
        left = self.silence if self.filler[left] else left
        right = self.silence if self.filler[right] else right
        return self.triphones.get((base, left, right, position))

    def nearest(self, base: int, left: int, right: int, position: int) -> int:
        """As pocketsphinx backs off: other word positions (lowest first); silence beyond a word's edge; the phone without context."""
        edges_left = (WORD_BEGIN, WORD_SINGLE)
        edges_right = (WORD_END, WORD_SINGLE)
        contexts = [(left, right)]
        silent = (
            self.silence if self.filler[left] or position in edges_left else left,
            self.silence if self.filler[right] or position in edges_right else right,
        )
        if silent != contexts[0]:
            contexts.append(silent)
        order = [position, *(p for p in range(NUM_WORD_POSITIONS) if p != position)]
        for context_left, context_right in contexts:
            for tried in order:
                row = self.exact(base, context_left, context_right, tried)
                if row is not None:
                    return row
        return base


def read_mdef(path: Path) -> ModelDefinition:
    """Read pocketsphinx's binary model definition. Raises UserError where the file is none, truncated, or of another layout.

    The layout (all little-endian here, the magic tells the byte order): "BMDF", version, length of a format description and that text; ten
    32-bit counts; the phones' names, NUL-terminated, padded to four bytes; a tree of contexts (8 bytes a node); the phones (12 bytes each:
    state sequence, transition matrix, word position and contexts); the state sequences, 16 bits a state. It is about 2 MB and read whole.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"model definition {path}: {error.strerror}.") from None
    try:
        return _parse(data)
    except (struct.error, ValueError, IndexError) as error:
        raise UserError(f"{path} must be a binary pocketsphinx model definition (mdef), but is not ({error}).") from None


def _parse(data: bytes) -> ModelDefinition:
    if data[:4] != b"BMDF":
        raise ValueError("it does not begin with BMDF in little-endian order")
    _version, text_length = struct.unpack_from("<ii", data, 4)
    at = 12 + text_length
    counts = struct.unpack_from(f"<{_COUNTS}i", data, at)
    num_ci, num_phones, num_states, num_ci_senones, num_senones, _tmat, num_sequences, num_context, num_nodes, silence = counts
    if min(counts) < 0 or num_context != 3 or not 1 <= num_states <= 16 or not num_ci <= num_phones:
        raise ValueError(f"its counts {counts} make no sense")
    at += 4 * _COUNTS
    first = at
    names = []
    for _ in range(num_ci):
        end = data.index(b"\0", at)
        names.append(data[at:end].decode("ascii"))
        at = end + 1
    at = first + (at - first + 3) // 4 * 4
    at += 8 * num_nodes
    phone_P = np.frombuffer(data, _PHONE, num_phones, at)
    at += _PHONE.itemsize * num_phones
    (size,) = struct.unpack_from("<i", data, at)
    if size != num_sequences * num_states:
        raise ValueError(f"it has {size} states in its sequences instead of {num_sequences * num_states}")
    sequence_QS = np.frombuffer(data, "<u2", size, at + 4).reshape(num_sequences, num_states)
    ci = slice(0, num_ci)
    context = phone_P["ctx"].tolist()
    wpos = phone_P["wpos"].tolist()
    triphones = {(*context[row], wpos[row]): row for row in range(num_ci, num_phones)}
    return ModelDefinition(
        phones=tuple(names),
        silence=silence,
        filler=tuple(bool(value) for value in phone_P["wpos"][ci]),  # the same byte says "filler" for phones without context
        num_senones=num_senones,
        num_ci_senones=num_ci_senones,
        senones_PS=sequence_QS[phone_P["ssid"]].astype(np.int32),
        triphones=triphones,
    )


def split_senones(
    senone_U: NDArray[Any], phone_of_V: NDArray[Any], state_of_V: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]:
    """Senones → (phone_P, place_U: the phone that each belongs to, state_U). A phone begins where it changes or the state does not rise."""
    phone_U, state_U = phone_of_V[senone_U], state_of_V[senone_U]
    begins_U = np.ones(len(phone_U), np.bool_)
    begins_U[1:] = (phone_U[1:] != phone_U[:-1]) | (state_U[1:] <= state_U[:-1])
    return phone_U[begins_U], np.cumsum(begins_U) - 1, state_U


class Tying(ABC):
    """Pronunciations → phones and senones, and the inventories of these."""

    @property
    @abstractmethod
    def monophone_inventory(self) -> UnitInventory:
        """The phones without context, fillers included."""

    @property
    @abstractmethod
    def _quiet_phones(self) -> tuple[int, ...]:
        """Ids of silence and fillers among the phones."""

    @property
    @abstractmethod
    def _owner_V2(self) -> NDArray[np.int32]:
        """Of each senone its phone and its state; of senones that several share, the first."""

    @abstractmethod
    def senones(self, pronunciations: Pronunciations) -> Sequences:
        """Phones of each word → (unit_U, word_U): senones, silence before the first word and after the last. Raises as `monophones`."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What `load_tying` reads."""

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
        names, main = self.monophone_inventory.symbols, self.monophone_inventory.silence
        symbols = tuple(f"{names[phone]}-{state}-{number}" for number, (phone, state) in enumerate(self._owner_V2.tolist()))
        silent = [] if main is None else np.flatnonzero((self._owner_V2 == (main, 0)).all(1)).tolist()
        quiet = silent or list(self.silences[SENONE])
        return UnitInventory(level=SENONE, symbols=symbols, silence=quiet[0] if quiet else None)

    @property
    def inventories(self) -> dict[str, UnitInventory]:
        """By level."""
        return {SENONE: self.senone_inventory, MONOPHONE: self.monophone_inventory}

    @cached_property
    def silences(self) -> dict[str, tuple[int, ...]]:
        """Per level the ids that label frames but are no positions: silence and fillers, with all their states."""
        quiet = self._quiet_phones
        return {SENONE: tuple(np.flatnonzero(np.isin(self.phone_of_senone_V, quiet)).tolist()), MONOPHONE: quiet}

    def _ids(self, pronunciations: Pronunciations) -> list[list[int]]:
        """Monophone ids of each word. Raises UserError for unknown phones, and words without any."""
        try:
            ids = [[self.monophone_inventory.id_of[phone] for phone in phones] for phones in pronunciations]
        except KeyError as error:
            raise UserError(f"a phone must be one of the acoustic model's, but is {error} instead.") from None
        if not all(ids):
            raise UserError("every word must have a pronunciation, but one has none.")
        return ids

    def monophones(self, pronunciations: Pronunciations) -> Sequences:
        """Phones of each word → (unit_U, word_U): monophone ids and the word of each. Raises UserError for unknown phones."""
        ids = self._ids(pronunciations)
        unit = [phone for phones in ids for phone in phones]
        word = [number for number, phones in enumerate(ids) for _ in phones]
        return np.array(unit, np.int32), np.array(word, np.int32)


class StateTying(Tying):
    """The tying of one acoustic model; by default that of pocketsphinx's English one (42 phones, 5,126 senones)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or model_folder() / "en-us" / "mdef"
        self.definition = read_mdef(self.path)
        self.phone_id = {phone: number for number, phone in enumerate(self.definition.phones)}
        self._nearest = lru_cache(maxsize=1 << 18)(self._senones_nearest)

    def to_json(self) -> dict[str, Any]:
        """What says that a project's units are of a model definition that lies beside (`hkd.units.tying`)."""
        return {"format": 1, "name": "pocketsphinx"}

    @property
    def num_states(self) -> int:
        """Emitting states a phone."""
        return int(self.definition.senones_PS.shape[1])

    @cached_property
    def _owner_V2(self) -> NDArray[np.int32]:
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

    @cached_property
    def monophone_inventory(self) -> UnitInventory:
        """The phones without context, fillers included."""
        return UnitInventory(level=MONOPHONE, symbols=self.definition.phones, silence=self.definition.silence)

    @property
    def _quiet_phones(self) -> tuple[int, ...]:
        return tuple(number for number, filler in enumerate(self.definition.filler) if filler)

    def _senones_nearest(self, base: int, left: int, right: int, position: int) -> tuple[int, ...]:
        return tuple(self.definition.senones_PS[self.definition.nearest(base, left, right, position)].tolist())

    def senones(self, pronunciations: Pronunciations) -> Sequences:
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


FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeTying(Tying):
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
    def _quiet_phones(self) -> tuple[int, ...]:
        return self._phone_inventory[1]

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

    def _ids(self, pronunciations: Pronunciations) -> list[list[int]]:
        id_of = self.monophone_inventory.id_of
        return [[id_of[self.symbol_of[phone]] for phone in phones] for phones in self.model_phones(pronunciations)]

    def senones(self, pronunciations: Pronunciations) -> Sequences:
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


ACOUSTIC_FILE = "acoustic.json"
LEXICON_FILE = "lexicon.dict"
MDEF_FILE = "acoustic.mdef"
MADE_FROM_FILE = "made-from.json"
ACOUSTIC_FILES = (ACOUSTIC_FILE, MDEF_FILE, LEXICON_FILE)


class PhoneTying(Tying):
    """A phone set without senones."""

    def __init__(self, symbols: Iterable[str], silence_phones: Iterable[str] = ()) -> None:
        self._inventory, self._quiet = phone_inventory(symbols, silence_phones)

    @property
    def monophone_inventory(self) -> UnitInventory:
        """The phones."""
        return self._inventory

    @property
    def inventories(self) -> dict[str, UnitInventory]:
        """By level: monophones alone."""
        return {MONOPHONE: self._inventory}

    @cached_property
    def silences(self) -> dict[str, tuple[int, ...]]:
        """Ids of the phones that are silence or noise."""
        return {MONOPHONE: self._quiet}

    @property
    def _quiet_phones(self) -> tuple[int, ...]:
        return self._quiet

    @property
    def _owner_V2(self) -> NDArray[np.int32]:
        raise _no_senones()

    def senones(self, pronunciations: Pronunciations) -> Sequences:
        """Raises UserError: there are none."""
        raise _no_senones()

    def to_json(self) -> dict[str, Any]:
        """What `load_tying` reads."""
        quiet = [self._inventory.symbols[number] for number in self._quiet]
        return {"format": 1, "name": "phones", "phones": list(self._inventory.symbols), "silence_phones": quiet}


def _no_senones() -> UserError:
    return UserError("the project's alignment must have senones, but has phones alone. Tie states first: `hkd units tie`.")


def load_tying(folder: Path) -> Tying:
    """The tying of a units folder. Raises UserError where its acoustic.json is broken."""
    path = folder / ACOUSTIC_FILE
    if not path.exists():
        return StateTying()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["name"] == "phones":
            return PhoneTying(value["phones"], value["silence_phones"])
        if value["name"] == "pocketsphinx":
            return StateTying(folder / MDEF_FILE)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} must be an acoustic model's tying, but cannot be read as one ({error}).") from None
    return TreeTying.load(path)


def load_lexicon(folder: Path) -> Lexicon:
    """The project's dictionary, or pocketsphinx's where it has none."""
    path = folder / LEXICON_FILE
    if not path.exists():
        return Lexicon()
    return Lexicon(path, within=load_tying(folder).inventories[MONOPHONE].symbols)


def acoustic_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that say whose phones and senones these are, by name; none where they are pocketsphinx's."""
    return {name: (folder / name).read_bytes() for name in ACOUSTIC_FILES if (folder / name).exists()}


def adopt(
    folder: Path,
    tying: Tying,
    pronunciations: Mapping[str, Sequence[tuple[str, ...]]],
    *,
    overwrite: bool = False,
) -> bool:
    """Make a tying and its pronunciations a project's own; whether anything changed.

    Raises UserError where the folder has inventories of another acoustic model, unless `overwrite`.
    """
    for level, inventory in tying.inventories.items():
        path = folder / f"{level}.json"
        if path.exists() and not overwrite and UnitInventory.load(path).digest != inventory.digest:
            raise UserError(
                f"{path} must not be replaced, but is of another acoustic model. Use --overwrite: label stores and LMs of its units are of "
                "no use then."
            )
    lines = [f"{word} {' '.join(phones)}\n" for word in sorted(pronunciations) for phones in pronunciations[word]]
    data = "".join(lines).encode()
    before = digest_of(path.read_bytes() for path in (folder / ACOUSTIC_FILE, folder / LEXICON_FILE) if path.exists())
    write_bytes(folder / LEXICON_FILE, data)
    if SENONE not in tying.inventories:
        (folder / f"{SENONE}.json").unlink(missing_ok=True)
    for level, inventory in tying.inventories.items():
        inventory.save(folder / f"{level}.json")
    if isinstance(tying, StateTying):
        write_bytes(folder / MDEF_FILE, tying.path.read_bytes())
    write_json(folder / ACOUSTIC_FILE, tying.to_json())
    marker = folder / MADE_FROM_FILE
    if marker.exists():  # subwords do not hang on the acoustic model
        made_from = json.loads(marker.read_text(encoding="utf-8"))
        write_json(marker, {**made_from, "acoustic_model": acoustic_digest(tying)})
    return before != digest_of(path.read_bytes() for path in (folder / ACOUSTIC_FILE, folder / LEXICON_FILE))


def acoustic_digest(tying: Tying) -> str:
    """What units hang on besides texts: the inventories."""
    return digest_of(inventory.digest for inventory in tying.inventories.values())
