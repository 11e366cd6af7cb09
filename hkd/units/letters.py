"""How many letters a piece of a word spells, by its symbol alone: SentencePiece's, WordPiece's, byte-level and byte-fallback ones.

Marks of a word's begin or of a piece within a word (▁, Ġ, ##, </w>, @@) are no letters, nor is punctuation; a byte counts where a character begins.
"""

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MARKS = re.compile(r"^(?:▁|##)+|(?:</w>|@@)$")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPECIAL = re.compile(r"<[^>]*>|\[[A-Z]+\d*\]")


@lru_cache(maxsize=16)
def letters_per_unit(symbols: tuple[str, ...]) -> NDArray[np.int64]:
    """letter_V: letters and digits of each symbol, marks left out. An inventory with pieces that begin in Ġ is read as byte-level."""
    byte_of = _byte_of() if any(symbol.startswith("Ġ") for symbol in symbols) else None
    return np.array([_letters(symbol, byte_of) for symbol in symbols], np.int64)


def _letters(symbol: str, byte_of: dict[str, int] | None) -> int:
    if match := _BYTE.fullmatch(symbol):
        return _begins_letter(int(match.group(1), 16))
    if _SPECIAL.fullmatch(symbol):
        return 1  # an unknown word's piece stands for something
    if byte_of is not None and all(c in byte_of for c in symbol):
        data = bytes(byte_of[c] for c in symbol)
        try:
            return sum(c.isalnum() for c in data.decode())
        except UnicodeDecodeError:
            return sum(map(_begins_letter, data))
    return sum(c.isalnum() for c in _MARKS.sub("", symbol))


def _begins_letter(byte: int) -> int:
    """1 where a byte of UTF-8 begins a character that is not ASCII, or is an ASCII letter or digit."""
    return int(byte >= 0xC0 or (byte < 0x80 and chr(byte).isalnum()))


def _byte_of() -> dict[str, int]:
    """The printable character that byte-level tokenizers write for a byte → the byte: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
