"""Words → unit sequences at any level, and the same from an alignment.

`Units` is a project's folder `units/`: an inventory a level (senone.json ...), subword.model, character.model.
Shape letters: U positions of an utterance.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hkd.artefact import check_same
from hkd.errors import UserError
from hkd.files import digest_of, write_json
from hkd.units.inventory import UnitInventory
from hkd.units.level import CHARACTER, SENONE, SPELLED, SUBWORD, UNIT_LEVELS
from hkd.units.lexicon import Lexicon
from hkd.units.subword import Kind, SubwordModel, model_file, train_subwords
from hkd.units.text import normalisation, normalised_lines
from hkd.units.tying import MADE_FROM_FILE, Sequences, Tying, acoustic_digest, load_lexicon, load_tying


def inventory_path(folder: Path, level: str) -> Path:
    """Where a level's inventory lies in a units folder."""
    return folder / f"{level}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitsConfig:
    """The table [units] of hkd.toml."""

    vocab_size: int = 500  # of the subwords
    kind: Kind = "unigram"  # unigram | bpe | char; char: the student's own subwords are characters

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise UserError(f"vocab_size must be 2 or more, but is {self.vocab_size} instead. Try 500.")


class Units:
    """The units of a project: inventories, and what turns words into them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models: dict[str, SubwordModel] = {}  # by spelled level

    @cached_property
    def lexicon(self) -> Lexicon:
        """Words → phones."""
        return load_lexicon(self.folder)

    @cached_property
    def tying(self) -> Tying:
        """Phones → senones, by the project's acoustic model; refuses inventories of another one."""
        tying = load_tying(self.folder)
        for inventory in tying.inventories.values():
            path = inventory_path(self.folder, inventory.level)
            if path.exists() and UnitInventory.load(path).digest != inventory.digest:
                raise UserError(
                    f"{path} must be the project's acoustic model's inventory, but its digest differs. Make it anew."
                )
        return tying

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that there are inventories of, from fine to coarse."""
        return tuple(level for level in UNIT_LEVELS if inventory_path(self.folder, level).exists())

    def spelling(self, level: str) -> SubwordModel:
        """The SentencePiece model of a spelled level. Raises UserError where it is missing or broken."""
        if level not in self._models:
            self._models[level] = SubwordModel(self.folder / model_file(level), level=level)
        return self._models[level]

    def inventory(self, level: str) -> UnitInventory:
        """The inventory of a level. Raises UserError where it is missing or broken."""
        return UnitInventory.load(inventory_path(self.folder, level))

    def encode(self, words: Sequence[str], level: str) -> Sequences:
        """Normalised words → (unit_U, word_U). Raises UserError for unknown levels, and at phone levels for words
        without pronunciation."""
        if level in SPELLED:
            return self.spelling(level).encode(words)
        if level not in UNIT_LEVELS:
            raise UserError(f"level must be one of {', '.join(UNIT_LEVELS)}, but is '{level}' instead.")
        phones = [self.lexicon.pronounce(word) for word in words]
        if not all(phones):
            raise UserError(f"every word must have a pronunciation, but {self.lexicon.unknown(words)} have none.")
        return self.tying.senones(phones) if level == SENONE else self.tying.monophones(phones)


def train_units(
    texts: Iterable[str],
    folder: Path,
    *,
    vocab_size: int = 500,
    kind: Kind = "unigram",
    other_splits: Iterable[str] = (),
    overwrite: bool = False,
) -> dict[str, UnitInventory]:
    """Write a units folder: subwords and characters of `texts`, senones and monophones of the project's acoustic model.
    Deterministic.

    Letters and marks (not of ASCII) that only `other_splits` have are units too, so that every transcript can be
    spelled. A folder that was made from the same texts with the same settings is left. Raises UserError where it was
    not, unless `overwrite`.
    """
    lines = sorted(normalised_lines(texts))
    seen = set().union(*lines)
    letters = "".join(sorted({c for line in normalised_lines(other_splits) for c in line if not c.isascii()} - seen))
    tying = load_tying(folder)
    inventories = tying.inventories
    made_from = {
        "normalisation": normalisation(), "vocab_size": vocab_size, "kind": kind, "texts": digest_of(lines),
        "acoustic_model": acoustic_digest(tying),
    }  # fmt: skip
    if letters:
        made_from["letters"] = letters
    marker = folder / MADE_FROM_FILE
    if marker.exists():
        was = json.loads(marker.read_text(encoding="utf-8"))
        if was == made_from:
            if not inventory_path(folder, CHARACTER).exists():  # of a folder that is older than this level
                train_subwords(lines, kind="char", letters=letters, folder=folder, level=CHARACTER)
            return {level: UnitInventory.load(inventory_path(folder, level)) for level in (*inventories, *SPELLED)}
        if not overwrite:
            remedy = "Use --overwrite: alignments stay valid, subword labels and models do not."
            check_same(f"{folder} must be of the same settings and texts", was, made_from, remedy)
    for level, inventory in inventories.items():
        inventory.save(inventory_path(folder, level))
    characters = train_subwords(lines, kind="char", letters=letters, folder=folder, level=CHARACTER)
    subwords = train_subwords(lines, vocab_size=vocab_size, kind=kind, letters=letters, folder=folder)
    write_json(marker, made_from)  # last: it says that the folder is complete
    return {**inventories, CHARACTER: characters, SUBWORD: subwords}
