"""Phone error rates from text: words → phones by the lexicon, folded to the 39 phones that papers report.

Lee & Hon 1989 (Speaker-independent phone recognition using hidden Markov models, table II) fold the 61 phones of TIMIT into 39:
allophones are joined, closures and pauses become silence, and the glottal stop vanishes. CMUdict's 39 phones are not the same 39: its AO
joins AA and its ZH joins SH here.
"""

from collections.abc import Callable, Iterable, Sequence

from hkd.evaluate.score import Scores, score_tokens

SILENCE = "sil"
_FOLD = {
    "ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "el": "l", "em": "m", "en": "n", "nx": "n",
    "eng": "ng", "zh": "sh", "ux": "uw",
    **dict.fromkeys(("pcl", "tcl", "kcl", "bcl", "dcl", "gcl", "h#", "#h", "pau", "epi", "sil", "sp", "spn", "<sil>"), SILENCE),
}  # fmt: skip
_DROPPED = frozenset({"q"})
PHONES_39 = frozenset(
    (
        "iy", "ih", "eh", "ae", "ah", "uw", "uh", "aa", "ey", "ay", "oy", "aw", "ow", "er", "l", "r", "w", "y", "m", "n",
        "ng", "v", "f", "dh", "th", "z", "s", "sh", "jh", "ch", "b", "p", "d", "dx", "t", "g", "k", "hh", SILENCE,
    )
)  # fmt: skip


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


def score_phones(references: Sequence[str], hypotheses: Sequence[str], pronounce: Callable[[str], Sequence[str]]) -> Scores:
    """Phone errors between texts, each word by its one pronunciation, folded to 39; silence is no token."""

    def phones(text: str) -> list[str]:
        return [p for p in fold_39(phone for word in text.split() for phone in pronounce(word)) if p != SILENCE]

    return score_tokens([phones(r) for r in references], [phones(h) for h in hypotheses])
