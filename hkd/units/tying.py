"""State tying: the senones of a word sequence by an acoustic model's own rules; inventories of its phones and senones.

- Text has silence at the utterance's edges only. Neighbours reach across words.
- Symbols are readable: `AA-0-1234` is senone 1234, state 0 of AA. Ids are the model's own.

A project has pocketsphinx's English model, unless `hkd align --from ...` or `hkd units tie` wrote:

    units/acoustic.json     the tying of another acoustic model, or a phone set alone
    units/acoustic.mdef     pocketsphinx's model definition, where the model is not the English one that it carries
    units/lexicon.dict      the pronunciations that go with it

Shape letters: U positions, V size of the senone inventory, S states a phone, P phones in context or not.
"""

import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import digest_of, digest_of_file, digest_of_json, write_bytes, write_json
from hkd.units.inventory import MONOPHONE, SENONE, UnitInventory
from hkd.units.kaldi import ContextTree, parse_tree
from hkd.units.lexicon import Lexicon, folded, model_folder, phone_inventory, split_position

Pronunciations = Sequence[Sequence[str]]
Sequences = tuple[NDArray[np.int32], NDArray[np.int32]]
FORMAT = 1
ACOUSTIC_FILE, MDEF_FILE, LEXICON_FILE = ACOUSTIC_FILES = ("acoustic.json", "acoustic.mdef", "lexicon.dict")
MADE_FROM_FILE = "made-from.json"
WORD_INTERNAL, WORD_BEGIN, WORD_END, WORD_SINGLE = range(4)
NUM_WORD_POSITIONS = 4
_COUNTS = 10
_NO_SENONES = "the project's alignment must have senones, but has phones alone. Tie states first: `hkd units tie`."
_PHONE = np.dtype([("ssid", "<i4"), ("tmat", "<i4"), ("wpos", "u1"), ("ctx", "u1", (3,))])


@dataclass(frozen=True, kw_only=True)
class ModelDefinition:
    """Phones in context and their tied states. Phones without context come first; `phones` has them by id."""

    phones: tuple[str, ...]
    silence: int
    filler: tuple[bool, ...]
    num_senones: int
    senones_PS: NDArray[np.int32]  # for each phone (in context or not) the senones of its S emitting states
    triphones: dict[tuple[int, int, int, int], int]  # (base, left, right, word position) → row of senones_PS

    def exact(self, base: int, left: int, right: int, position: int) -> int | None:
        """The row of a phone in context, fillers as neighbours counting as silence; None where the model has none."""
        left, right = (self.silence if self.filler[phone] else phone for phone in (left, right))
        return self.triphones.get((base, left, right, position))

    def nearest(self, base: int, left: int, right: int, position: int) -> int:
        """As pocketsphinx backs off: other word positions, lowest first; silence beyond a word's edge; no context."""
        outer_left = self.silence if position in (WORD_BEGIN, WORD_SINGLE) else left
        outer_right = self.silence if position in (WORD_END, WORD_SINGLE) else right
        order = sorted(range(NUM_WORD_POSITIONS), key=lambda tried: tried != position)
        tries = ((*context, tried) for context in ((left, right), (outer_left, outer_right)) for tried in order)
        return next((row for context in tries if (row := self.exact(base, *context)) is not None), base)


def read_mdef(path: Path) -> ModelDefinition:
    """Read pocketsphinx's binary model definition, 2 MB. Raises UserError where the file is none, or truncated.

    The layout, all little-endian: "BMDF", version, length of a format description and that text; ten 32-bit counts; the
    phones' names, NUL-terminated, padded to four bytes; a tree of contexts (8 bytes a node); the phones (12 bytes each:
    state sequence, transition matrix, word position and contexts); the state sequences, 16 bits a state.
    """
    try:
        return _parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"model definition {path}: {error.strerror}.") from None
    except (struct.error, ValueError, IndexError) as error:
        rule = f"{path} must be a binary pocketsphinx model definition (mdef)"
        raise UserError(f"{rule}, but is not ({error}).") from None


def _parse(data: bytes) -> ModelDefinition:
    if data[:4] != b"BMDF":
        raise ValueError("it does not begin with BMDF in little-endian order")
    _version, text_length = struct.unpack_from("<ii", data, 4)
    at = 12 + text_length
    counts = struct.unpack_from(f"<{_COUNTS}i", data, at)
    num_ci, num_phones, num_states, _, num_senones, _, num_sequences, num_context, num_nodes, silence = counts
    if min(counts) < 0 or num_context != 3 or not 1 <= num_states <= 16 or not num_ci <= num_phones:
        raise ValueError(f"its counts {counts} make no sense")
    first = at = at + 4 * _COUNTS
    names = []
    for _ in range(num_ci):
        end = data.index(b"\0", at)
        names.append(data[at:end].decode("ascii"))
        at = end + 1
    at = first + (at - first + 3) // 4 * 4 + 8 * num_nodes
    phone_P = np.frombuffer(data, _PHONE, num_phones, at)
    at += _PHONE.itemsize * num_phones
    (size,) = struct.unpack_from("<i", data, at)
    if size != num_sequences * num_states:
        raise ValueError(f"it has {size} states in its sequences instead of {num_sequences * num_states}")
    sequence_QS = np.frombuffer(data, "<u2", size, at + 4).reshape(num_sequences, num_states)
    context, wpos = phone_P["ctx"].tolist(), phone_P["wpos"].tolist()
    return ModelDefinition(
        phones=tuple(names), silence=silence, num_senones=num_senones,
        filler=tuple(map(bool, wpos[:num_ci])),  # the same byte says "filler" for phones without context
        senones_PS=sequence_QS[phone_P["ssid"]].astype(np.int32),
        triphones={(*context[row], wpos[row]): row for row in range(num_ci, num_phones)},
    )  # fmt: skip


def split_senones(
    senone_U: NDArray[Any], phone_of_V: NDArray[Any], state_of_V: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]:
    """Senones → (phone_P, place_U: the phone of each, state_U). A new phone: it changes, or the state does not rise."""
    phone_U, state_U = phone_of_V[senone_U], state_of_V[senone_U]
    begins_U = np.ones(len(phone_U), np.bool_)
    begins_U[1:] = (phone_U[1:] != phone_U[:-1]) | (state_U[1:] <= state_U[:-1])
    return phone_U[begins_U], np.cumsum(begins_U) - 1, state_U


def by_word(units: Sequence[Sequence[int]]) -> Sequences:
    """The units of each word → (unit_U, word_U)."""
    word = [number for number, own in enumerate(units) for _ in own]
    return np.array([unit for own in units for unit in own], np.int32), np.array(word, np.int32)


class Tying(ABC):
    """Pronunciations → phones and senones, and the inventories of these.

    A label is a phone as the model numbers it, from 1, often with its place in the word; 0 lies beyond an utterance's
    ends. A phone's senones depend on a window of `width` labels, in which it stands at place `central`.
    """

    width, central = 3, 1
    has_senones = True
    monophone_inventory: UnitInventory  # the phones without context, fillers included
    quiet_phones: tuple[int, ...]  # ids of silence and fillers among them
    phone_of: Mapping[int, int]  # label → id among the monophones
    silence: int | None = None  # the label of silence

    @property
    def _owner_V2(self) -> NDArray[np.int32]:
        """Of each senone its phone and state, the first of those that share it. Raises UserError where it has none."""
        raise UserError(_NO_SENONES)

    def states(self, window: tuple[int, ...]) -> tuple[int, ...]:
        """The senones of the central phone of a window of labels. Raises UserError where there are none."""
        raise UserError(_NO_SENONES)

    @abstractmethod
    def _label(self, phone: str, place: str) -> int:
        """The label of a phone at a place in the word: B, I, E, S (alone). Raises KeyError where there is none."""

    @property
    def digest(self) -> str:
        """Of all that its states depend on."""
        return digest_of_json(self.to_json())

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What `load_tying` reads."""

    @property
    def num_labels(self) -> int:
        """The highest label."""
        return max(self.phone_of)

    @cached_property
    def _states(self) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
        return lru_cache(maxsize=1 << 18)(self.states)

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
        owners = enumerate(self._owner_V2.tolist())
        symbols = tuple(f"{names[phone]}-{state}-{number}" for number, (phone, state) in owners)
        silent = [] if main is None else np.flatnonzero((self._owner_V2 == (main, 0)).all(1)).tolist()
        quiet = silent or list(self.silences[SENONE])
        return UnitInventory(level=SENONE, symbols=symbols, silence=quiet[0] if quiet else None)

    @property
    def inventories(self) -> dict[str, UnitInventory]:
        """By level."""
        return ({SENONE: self.senone_inventory} if self.has_senones else {}) | {MONOPHONE: self.monophone_inventory}

    @cached_property
    def silences(self) -> dict[str, tuple[int, ...]]:
        """Per level the ids that label frames but are no positions: silence and fillers, with all their states."""
        quiet = self.quiet_phones
        if not self.has_senones:
            return {MONOPHONE: quiet}
        return {SENONE: tuple(np.flatnonzero(np.isin(self.phone_of_senone_V, quiet)).tolist()), MONOPHONE: quiet}

    def labels(self, phones: Sequence[str]) -> list[int]:
        """The labels of a word's phones. Raises UserError for unknown phones, and where there are none."""
        if not phones:
            raise UserError("every word must have a pronunciation, but one has none.")
        places = "S" if len(phones) == 1 else "B" + "I" * (len(phones) - 2) + "E"
        try:
            return [self._label(phone, place) for phone, place in zip(phones, places, strict=True)]
        except KeyError as error:
            raise UserError(f"a phone must be one of the acoustic model's, but is {error} instead.") from None

    def tied(self, labels: Sequence[int]) -> list[tuple[int, ...]]:
        """All labels of an utterance, silence included → the senones of each one's states."""
        padded = [0] * self.central + list(labels) + [0] * (self.width - 1 - self.central)
        return [self._states(tuple(padded[at : at + self.width])) for at in range(len(labels))]

    def senones(self, pronunciations: Pronunciations) -> Sequences:
        """Phones of each word → (unit_U, word_U): senones, the edges being silence. Raises as `labels`."""
        labels = [self.labels(phones) for phones in pronunciations]
        edge = [] if self.silence is None or not labels else [self.silence]
        states = iter(self.tied([*edge, *chain.from_iterable(labels), *edge])[len(edge) :])
        return by_word([[senone for _ in own for senone in next(states)] for own in labels])

    def monophones(self, pronunciations: Pronunciations) -> Sequences:
        """Phones of each word → (unit_U, word_U): monophone ids. Raises as `labels`."""
        return by_word([[self.phone_of[label] for label in self.labels(phones)] for phones in pronunciations])


class StateTying(Tying):
    """The tying of pocketsphinx's models, by default of its English one (42 phones, 5,126 senones): three states
    a phone in its context. Labels are phone and place in the word as one number; silence lies beyond the ends."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or model_folder() / "en-us" / "mdef"
        self.definition = read_mdef(self.path)
        phones, silence = self.definition.phones, self.definition.silence
        self.phone_id = {phone: number for number, phone in enumerate(phones)}
        self.monophone_inventory = UnitInventory(level=MONOPHONE, symbols=phones, silence=silence)
        self.quiet_phones = tuple(number for number, filler in enumerate(self.definition.filler) if filler)
        num_labels = NUM_WORD_POSITIONS * len(self.phone_id)
        self.phone_of = {1 + place: place // NUM_WORD_POSITIONS for place in range(num_labels)}
        self.silence = self._label(phones[silence], "S")

    def to_json(self) -> dict[str, Any]:
        """What says that a project's units are of a model definition that lies beside."""
        return {"format": FORMAT, "name": "pocketsphinx"}

    @property
    def digest(self) -> str:
        """Of the model definition."""
        return digest_of_file(self.path)

    @cached_property
    def _owner_V2(self) -> NDArray[np.int32]:
        owner = np.full((self.definition.num_senones, 2), -1, np.int32)
        base_of = {row: row for row in range(len(self.definition.phones))}
        base_of |= {row: context[0] for context, row in self.definition.triphones.items()}
        base_P, senones_PS = np.array([*base_of.values()], np.int32), self.definition.senones_PS[[*base_of]]
        for state in reversed(range(senones_PS.shape[1])):
            owner[senones_PS[::-1, state], 0] = base_P[::-1]
            owner[senones_PS[::-1, state], 1] = state
        return owner

    def _label(self, phone: str, place: str) -> int:
        return 1 + NUM_WORD_POSITIONS * self.phone_id[phone] + "IBES".index(place)

    def states(self, window: tuple[int, ...]) -> tuple[int, ...]:
        """The senones of a phone between its neighbours; silence has its own, whatever is beside it."""
        left, label, right = window
        before, after = (self.phone_of.get(beside, self.definition.silence) for beside in (left, right))
        base, position = self.phone_of[label], (label - 1) % NUM_WORD_POSITIONS
        row = base if base == self.definition.silence else self.definition.nearest(base, before, after, position)
        return tuple(self.definition.senones_PS[row].tolist())


@dataclass(kw_only=True, eq=False)
class TreeTying(Tying):
    """The tying of a decision tree, of Kaldi or `hkd units tie`; labels are the model's phones, which may have place
    and stress (AH1_B). Raises UserError where its parts do not belong together."""

    phones: Mapping[str, int]  # the model's, with places in the word; 0 is none
    tree: ContextTree
    places: Mapping[int, tuple[int, ...]]  # by phone: the classes of its states, in order
    owner: Mapping[int, tuple[int, int]]  # by senone: phone, state
    silence_phones: tuple[str, ...] = ()  # folded names, besides those known by name
    stress: bool = True
    name: str = "tree"

    def __post_init__(self) -> None:
        num_owned = 1 + max(self.owner, default=-1)
        if self.tree.num_senones > num_owned:
            raise UserError(
                f"tree and acoustic model must belong together, but have {self.tree.num_senones} and {num_owned} "
                "senones. Give those of one model."
            )
        if missing := [number for number in self.phones.values() if number not in self.places]:
            raise UserError(f"every phone must have states in the acoustic model, but phone {missing[0]} has none.")
        inventory, self.quiet_phones = phone_inventory(dict.fromkeys(self.symbol_of.values()), self.silence_phones)
        self.width, self.central, self.monophone_inventory = self.tree.width, self.tree.central, inventory
        self.phone_of = {label: inventory.id_of[symbol] for label, symbol in self.symbol_of.items()}
        silent = [label for label, phone in self.phone_of.items() if phone == inventory.silence]
        self.silence = silent[0] if silent else None  # SIL, before SIL_B and so on

    @cached_property
    def symbol_of(self) -> dict[int, str]:
        """The model's phones by number, folded."""
        ordered = sorted(self.phones.items(), key=lambda item: item[1])
        return {number: folded(phone, stress=self.stress) for phone, number in ordered}

    @cached_property
    def _owner_V2(self) -> NDArray[np.int32]:
        owner = np.zeros((1 + max(self.owner), 2), np.int32)
        for senone, (phone, state) in self.owner.items():
            owner[senone] = self.phone_of[phone], state
        return owner

    @cached_property
    def _by_place(self) -> dict[tuple[str, str], int]:
        """(folded phone, place in the word) → the model's phone, the first where several fall together."""
        ordered = sorted(self.phones.items(), key=lambda item: -item[1])
        return {(folded(phone, stress=self.stress), split_position(phone)[1]): number for phone, number in ordered}

    def _label(self, phone: str, place: str) -> int:
        """As the model has it, with stress where a lexicon gives it; else by the folded phone, with place or not."""
        found = self.phones.get(f"{phone}_{place}") or self.phones.get(phone)
        found = found or self._by_place.get((phone, place)) or self._by_place.get((phone, ""))
        if not found:
            raise KeyError(phone)
        return found

    def states(self, window: tuple[int, ...]) -> tuple[int, ...]:
        """As the tree has them. Raises UserError where it has none."""
        found = [self.tree.senone(window, place) for place in self.places[window[self.tree.central]]]
        if None in found:
            raise UserError(f"the tree must know every phone in every context, but has no senone for {window}.")
        return tuple(int(senone) for senone in found if senone is not None)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "name": self.name, "stress": self.stress, "silence_phones": list(self.silence_phones),
            "phones": [[phone, number, list(self.places[number])] for phone, number in self.phones.items()],
            "senones": [[senone, *self.owner[senone]] for senone in sorted(self.owner)],
            "tree": self.tree.to_text().split("\n"),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Any) -> "TreeTying":
        """What `to_json` gave. Raises ValueError, KeyError or TypeError where it is something else."""
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}")
        return cls(
            phones={str(phone): int(number) for phone, number, _ in value["phones"]},
            places={int(number): tuple(places) for _, number, places in value["phones"]},
            owner={int(senone): (int(phone), int(state)) for senone, phone, state in value["senones"]},
            tree=parse_tree("\n".join(value["tree"]).encode()), silence_phones=tuple(value["silence_phones"]),
            stress=bool(value["stress"]), name=str(value["name"]),
        )  # fmt: skip


class PhoneTying(Tying):
    """A phone set without senones (MFA, CTM, CTC)."""

    has_senones = False

    def __init__(self, symbols: Iterable[str], silence_phones: Iterable[str] = ()) -> None:
        self.monophone_inventory, self.quiet_phones = phone_inventory(symbols, silence_phones)
        self.phone_of = {number + 1: number for number in range(len(self.monophone_inventory))}

    def _label(self, phone: str, place: str) -> int:
        return self.monophone_inventory.id_of[phone] + 1

    def to_json(self) -> dict[str, Any]:
        symbols = self.monophone_inventory.symbols
        quiet = [symbols[number] for number in self.quiet_phones]
        return {"format": FORMAT, "name": "phones", "phones": list(symbols), "silence_phones": quiet}


def load_tying(folder: Path) -> Tying:
    """The tying of a units folder. Raises UserError where its acoustic.json is broken."""
    path = folder / ACOUSTIC_FILE
    if not path.exists():
        return StateTying()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["name"] == "phones":
            return PhoneTying(value["phones"], value["silence_phones"])
        return StateTying(folder / MDEF_FILE) if value["name"] == "pocketsphinx" else TreeTying.from_json(value)
    except OSError as error:
        raise UserError(f"acoustic model {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} must be an acoustic model's tying, but cannot be read as one ({error}).") from None


def load_lexicon(folder: Path) -> Lexicon:
    """The project's dictionary, or pocketsphinx's where it has none."""
    path = folder / LEXICON_FILE
    if not path.exists():
        return Lexicon()
    return Lexicon(path, within=load_tying(folder).monophone_inventory.symbols)


def acoustic_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that say whose phones and senones these are, by name; none: they are pocketsphinx's."""
    return {name: (folder / name).read_bytes() for name in ACOUSTIC_FILES if (folder / name).exists()}


def adopt(
    folder: Path, tying: Tying, pronunciations: Mapping[str, Sequence[tuple[str, ...]]], *, overwrite: bool = False
) -> None:
    """Make a tying and its pronunciations a project's own.

    Raises UserError where the folder has inventories of another acoustic model, unless `overwrite`.
    """
    for level, inventory in tying.inventories.items():
        path = folder / f"{level}.json"
        if path.exists() and not overwrite and UnitInventory.load(path).digest != inventory.digest:
            raise UserError(
                f"{path} must not be replaced, but is of another acoustic model. Use --overwrite: label stores and LMs "
                "of its units are of no use then."
            )
    lines = [f"{word} {' '.join(phones)}\n" for word in sorted(pronunciations) for phones in pronunciations[word]]
    write_bytes(folder / LEXICON_FILE, "".join(lines).encode())
    if not tying.has_senones:
        (folder / f"{SENONE}.json").unlink(missing_ok=True)
    for level, inventory in tying.inventories.items():
        inventory.save(folder / f"{level}.json")
    if isinstance(tying, StateTying):
        write_bytes(folder / MDEF_FILE, tying.path.read_bytes())
    write_json(folder / ACOUSTIC_FILE, tying.to_json())
    marker = folder / MADE_FROM_FILE
    if marker.exists():  # subwords do not depend on the acoustic model
        made_from = json.loads(marker.read_text(encoding="utf-8"))
        write_json(marker, {**made_from, "acoustic_model": acoustic_digest(tying)})


def acoustic_digest(tying: Tying) -> str:
    """What units depend on besides texts: the inventories."""
    return digest_of(inventory.digest for inventory in tying.inventories.values())
