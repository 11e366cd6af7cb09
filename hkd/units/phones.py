"""Other tools' names of phones: which are silence or noise, what marks the place in the word, what marks stress."""

import re
from collections.abc import Iterable

from hkd.units.inventory import UnitInventory
from hkd.units.level import MONOPHONE

_SILENCES = frozenset(
    (
        "sil",
        "sp",
        "spn",
        "nsn",
        "lau",
        "noise",
        "vocnoise",
        "oov",
        "gbg",
        "gar",
        "bth",
        "brth",
        "unk",
        "[sil]",
        "+nsn+",
        "+spn+",
        "eps",
    )
)  # of any case
_SILENT_WORDS = frozenset(("", "<eps>", "<sil>", "<s>", "</s>", "!sil", "sil", "sp"))
_POSITION = re.compile(r"^(.+)_([BIES])$")
_STRESSED = re.compile(r"^([A-Z]{2})[012]$")  # ARPAbet's vowels


def is_silence_name(phone: str) -> bool:
    """Whether a phone is silence or noise by its name (SIL, sp, spn, +NSN+, the empty string ...)."""
    return not phone or phone.lower().strip("<>") in _SILENCES


def is_silent_word(word: str) -> bool:
    """Whether what a tool wrote for a word says that there is none."""
    return word.lower() in _SILENT_WORDS


def split_position(phone: str) -> tuple[str, str]:
    """`AH1_B` → ("AH1", "B"); a phone without such a suffix → (phone, "")."""
    match = _POSITION.match(phone)
    return (match.group(1), match.group(2)) if match else (phone, "")


def without_stress(phone: str) -> str:
    """`AH1` → `AH`; what is no vowel of ARPAbet stays."""
    match = _STRESSED.match(phone)
    return match.group(1) if match else phone


def phone_inventory(symbols: Iterable[str], silences: Iterable[str] = ()) -> tuple[UnitInventory, tuple[int, ...]]:
    """Phones in order, and the ids of silence and noise: known by their names, or given. The inventory's silence is SIL where there is one."""
    phones, given = tuple(symbols), set(silences)
    quiet = tuple(number for number, phone in enumerate(phones) if is_silence_name(phone) or phone in given)
    main = next((number for number in quiet if phones[number].lower().startswith("sil")), quiet[0] if quiet else None)
    return UnitInventory(level=MONOPHONE, symbols=phones, silence=main), quiet
