"""The levels of the hierarchy, and a level's inventory: its ordered symbols. A unit's id is its place in the order."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hkd.errors import UserError, check_setting
from hkd.files import digest_of, write_json

SENONE = "senone"  # tied states of context-dependent phones
MONOPHONE = "monophone"
CHARACTER = "character"
SUBWORD = "subword"

LEVELS = (SENONE, MONOPHONE, SUBWORD)  # the hierarchy, unless more is asked for
SPELLED = (CHARACTER, SUBWORD)  # what words are spelled in: without pronunciations, placed on frames by letters
UNIT_LEVELS = (SENONE, MONOPHONE, CHARACTER, SUBWORD)  # all that words can be turned into


@dataclass(frozen=True, kw_only=True)
class UnitInventory:
    """Ordered symbols of one level. Raises UserError where a symbol stands twice or there is none."""

    level: str
    symbols: tuple[str, ...]
    silence: int | None = None  # id of the silence unit: labels frames, is no position of a unit sequence

    def __post_init__(self) -> None:
        if not self.symbols:
            raise UserError(f"an inventory must have symbols, but that of level '{self.level}' has none.")
        if len(set(self.symbols)) != len(self.symbols):
            raise UserError(f"the symbols of level '{self.level}' must be distinct, but some stand twice.")

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def id_of(self) -> dict[str, int]:
        """Symbol → id."""
        return {symbol: number for number, symbol in enumerate(self.symbols)}

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the symbols in order (each preceded by its length)."""
        return digest_of(self.symbols)

    def to_json(self) -> dict[str, Any]:
        """Level, digest, silence, symbols."""
        return {"level": self.level, "digest": self.digest, "silence": self.silence, "symbols": list(self.symbols)}

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "UnitInventory":
        """Read what `save` wrote. Raises UserError where it is missing, broken, or does not match its own digest."""
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")), path)
        except OSError as error:
            raise UserError(f"inventory {path}: {error.strerror}. Run `hkd units train` first.") from None
        except ValueError as error:
            raise UserError(f"{path} must be a unit inventory, but cannot be read as one ({error}).") from None

    @classmethod
    def from_json(cls, value: Any, path: Path) -> "UnitInventory":
        """What `to_json` gave. Raises UserError, which names `path`, where it is broken or its digest differs."""
        try:
            inventory = cls(level=str(value["level"]), symbols=tuple(value["symbols"]), silence=value.get("silence"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} must be a unit inventory, but cannot be read as one ({error}).") from None
        said, own = value.get("digest"), inventory.digest
        check_setting(f"{path}: the digest", said, f"be {own}", said == own, "Make it again.")
        return inventory
