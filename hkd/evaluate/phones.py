"""Phones of text, to be scored: words → phones by the lexicon, English ones folded to the 39 phones that papers report.

Lee & Hon 1989 (Speaker-independent phone recognition using hidden Markov models, table II) fold the 61 phones of TIMIT into 39:
allophones are joined, closures and pauses become silence, and the glottal stop vanishes. CMUdict's 39 phones are not the same 39: its AO
joins AA and its ZH joins SH here.
"""

from collections.abc import Iterable

from hkd.units.lexicon import Lexicon
from hkd.units.phones import is_silence_name

SILENCE = "sil"
_FOLD = {
    "ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "el": "l", "em": "m", "en": "n", "nx": "n",
    "eng": "ng", "zh": "sh", "ux": "uw",
    **dict.fromkeys(("pcl", "tcl", "kcl", "bcl", "dcl", "gcl", "h#", "#h", "pau", "epi", "sil", "sp", "spn", "<sil>"), SILENCE),
}  # fmt: skip
_DROPPED = frozenset({"q"})


def fold_39(phones: Iterable[str]) -> list[str]:
    """Phones (TIMIT's 61 or ARPAbet, any case, stress marks allowed) → the 39, silences in a row joined.

    Phones of neither set come back in lower case, unchanged. Idempotent.
    """
    folded: list[str] = []
    for phone in phones:
        name = phone.lower().rstrip("012")
        name = _FOLD.get(name, name)
        if name not in _DROPPED and not (name == SILENCE and folded and folded[-1] == SILENCE):
            folded.append(name)
    return folded


def phones_of(text: str, lexicon: Lexicon) -> list[str]:
    """The phones of a text, each word by its one pronunciation; silence is left out. English ones are folded to 39, others stay as they are."""
    phones = [phone for word in text.split() for phone in lexicon.pronounce(word)]
    if not lexicon.is_english:
        return [phone for phone in phones if not is_silence_name(phone)]
    return [phone for phone in fold_39(phones) if phone != SILENCE]
