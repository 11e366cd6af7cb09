"""Transcript → words. The rule has a name, which stands in every artefact that depends on it.

`hkd-words-1`: Unicode NFKC; lower case; curly apostrophes become straight ones; a token that is a number as a whole is spelled out in
English (`12` → twelve, `2nd` → second, `3.5` → three point five); `&` and `%` are spoken; every other character that is no letter, digit,
mark or apostrophe separates words; apostrophes stay inside words and go at their edges. Digits inside other tokens stay.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any

from hkd.files import digest_of

NORMALISATION = "hkd-words-1"

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇`´", "'"))
_NUMBER = re.compile(r"(?<![\w.,])[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?(?:st|nd|rd|th)?(?![\w]|[.,][0-9])")
_DIGIT = re.compile("[0-9]")
_WORD = re.compile(r"[^\W_](?:[^\W_]|[\u0300-\u036f]|'(?=[^\W_]))*")
_SPOKEN = {"&": " and ", "%": " percent "}
_LARGEST_DIGITS = 15  # longer digit strings are no numbers that anybody speaks


@cache
def _inflect() -> Any:
    import inflect  # heavy, and needed only where digits occur

    return inflect.engine()


@lru_cache(maxsize=1 << 16)
def _spell(number: str) -> str:
    """One number, as digits with an optional fraction or ordinal ending → its words; unchanged where too long to be spoken."""
    if sum(c.isdigit() for c in number) > _LARGEST_DIGITS:
        return number
    return str(_inflect().number_to_words(number.replace(",", ""), andword="")).replace(",", " ").replace("-", " ")


def words(text: str) -> list[str]:
    """The words of a text by the rule `hkd-words-1` (see the module)."""
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES).lower()
    for symbol, spoken in _SPOKEN.items():
        text = text.replace(symbol, spoken)
    if not _DIGIT.search(text):
        return _WORD.findall(text)
    text = _NUMBER.sub(lambda match: f" {_spell(match.group())} ", text)
    tokens = _WORD.findall(text)  # what is left of 192.168.0.1 is numbers again
    return [word for token in tokens for word in (_spell(token).split() if _NUMBER.fullmatch(token) else [token])]


def normalised_lines(texts: Iterable[str]) -> Iterator[str]:
    """Texts as lines of words with one space between; empty ones are left out. Streams."""
    for text in texts:
        if line := " ".join(words(text)):
            yield line


def text_digest(spoken: Iterable[str]) -> bytes:
    """The first 8 bytes of the SHA-256 of an utterance's normalised words: what a label store in any pieces is held against."""
    return bytes.fromhex(digest_of(spoken)[:16])
