"""Whose phones and senones a project has: pocketsphinx's, unless its units folder says otherwise.

    units/acoustic.json     the tying of another acoustic model (Kaldi's, `hkd units tie`), or a phone set alone (MFA, CTM, CTC)
    units/acoustic.mdef     pocketsphinx's model definition, where the model is not the English one that it carries
    units/lexicon.dict      the pronunciations that go with it

`hkd align --from ...` and `hkd units tie` write them; text becomes phones and senones by them from then on.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import digest_of, write_bytes, write_json
from hkd.units.inventory import UnitInventory
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.lexicon import Lexicon
from hkd.units.phones import phone_inventory
from hkd.units.tree_tying import TreeTying
from hkd.units.tying import StateTying

ACOUSTIC_FILE = "acoustic.json"
LEXICON_FILE = "lexicon.dict"
MDEF_FILE = "acoustic.mdef"
MADE_FROM_FILE = "made-from.json"
ACOUSTIC_FILES = (ACOUSTIC_FILE, MDEF_FILE, LEXICON_FILE)
Sequences = tuple[NDArray[np.int32], NDArray[np.int32]]
Pronunciations = Sequence[Sequence[str]]


class Tying(Protocol):
    """Pronunciations → units, and the inventories of these."""

    @property
    def inventories(self) -> dict[str, UnitInventory]: ...
    @property
    def silences(self) -> dict[str, tuple[int, ...]]: ...
    @property
    def phone_of_senone_V(self) -> NDArray[np.int32]: ...
    @property
    def state_of_senone_V(self) -> NDArray[np.int32]: ...
    def monophones(self, pronunciations: Pronunciations) -> Sequences: ...
    def senones(self, pronunciations: Pronunciations) -> Sequences: ...


class PhoneTying:
    """A phone set without senones."""

    def __init__(self, symbols: Iterable[str], silence_phones: Iterable[str] = ()) -> None:
        self._inventory, quiet = phone_inventory(symbols, silence_phones)
        self.inventories = {MONOPHONE: self._inventory}
        self.silences = {MONOPHONE: quiet}

    @property
    def phone_of_senone_V(self) -> NDArray[np.int32]:
        """Raises UserError: there are no senones."""
        raise _no_senones()

    state_of_senone_V = phone_of_senone_V

    def monophones(self, pronunciations: Pronunciations) -> Sequences:
        """Phones of each word → (unit_U, word_U). Raises UserError for unknown phones, and words without any."""
        if not all(pronunciations):
            raise UserError("every word must have a pronunciation, but one has none.")
        try:
            unit = [self._inventory.id_of[phone] for phones in pronunciations for phone in phones]
        except KeyError as error:
            raise UserError(f"a phone must be one of the alignment's, but is {error} instead.") from None
        word = [number for number, phones in enumerate(pronunciations) for _ in phones]
        return np.array(unit, np.int32), np.array(word, np.int32)

    def senones(self, pronunciations: Pronunciations) -> Sequences:
        """Raises UserError: there are none."""
        raise _no_senones()

    def to_json(self) -> dict[str, Any]:
        """What `load_tying` reads."""
        quiet = [self._inventory.symbols[number] for number in self.silences[MONOPHONE]]
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
    tying: TreeTying | PhoneTying | StateTying,
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
