"""Errors to read: each utterance's alignment as sclite prints it, who is understood how well, and what is taken for what."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hkd.evaluate.result import Hypothesis
from hkd.evaluate.score import Edit, Scores

GAP = "*"
NOTHING = "∅"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakerRow:
    """A speaker's utterances, words, errors and word error rate, NaN without words."""

    speaker: str
    utterances: int
    words: int
    errors: int
    rate: float


def by_speaker(rows: Sequence[Hypothesis], scores: Scores) -> list[SpeakerRow]:
    """Speakers from worst to best, those without words last; utterances without a speaker stand under "?"."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.speaker or "?", []).append(number)
    tokens_N, errors_N = scores.tokens_N, scores.errors_N
    found = []
    for speaker, numbers in groups.items():
        words, errors = int(tokens_N[numbers].sum()), int(errors_N[numbers].sum())
        rate = errors / words if words else float("nan")
        found.append(SpeakerRow(speaker=speaker, utterances=len(numbers), words=words, errors=errors, rate=rate))
    return sorted(found, key=lambda row: (-row.rate if row.words else 1.0, row.speaker))


def confusions(scores: Scores, most: int = 20) -> list[tuple[str, str, int]]:
    """(said, understood, how often) by falling count; ∅ on the left for what was added, on the right for what was left out."""
    counts: Counter[tuple[str, str]] = Counter()
    for reference, hypothesis, edits in zip(scores.reference, scores.hypothesis, scores.edits, strict=True):
        for e in edits:
            if e.kind != "equal":
                counts.update(_pairs(reference, hypothesis, e))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(said, understood, count) for (said, understood), count in ordered[:most]]


def _pairs(reference: Sequence[str], hypothesis: Sequence[str], e: Edit) -> list[tuple[str, str]]:
    said, understood = list(reference[e.ref_start : e.ref_stop]), list(hypothesis[e.hyp_start : e.hyp_stop])
    length = max(len(said), len(understood))
    return list(zip(said + [NOTHING] * (length - len(said)), understood + [NOTHING] * (length - len(understood)), strict=True))


def aligned(reference: Sequence[str], hypothesis: Sequence[str], edits: Sequence[Edit]) -> tuple[str, str, str]:
    """REF, HYP and Eval lines: words above each other, gaps as stars, errors in capitals and marked S, I or D."""
    columns: list[tuple[str, str, str]] = []
    for e in edits:
        mark = {"equal": "", "substitute": "S", "insert": "I", "delete": "D"}[e.kind]
        for said, understood in _pairs(reference, hypothesis, e):
            said, understood = ("" if word == NOTHING else word for word in (said, understood))
            width = max(len(said), len(understood))
            if mark:
                said, understood = said.upper() or GAP * width, understood.upper() or GAP * width
            columns.append((said.ljust(width), understood.ljust(width), mark.ljust(width)))
    lines = (" ".join(column[i] for column in columns).rstrip() for i in range(3))
    return tuple(lines)  # type: ignore[return-value]


def listing(rows: Sequence[Hypothesis], scores: Scores) -> str:
    """All utterances with errors, aligned, most errors first; then speakers, then confusions."""
    totals = scores.totals()
    order = sorted(range(len(rows)), key=lambda n: (-int(scores.errors_N[n]), rows[n].id))
    text = [f"{totals['errors']} errors in {totals['tokens']} words, {len(rows)} utterances", ""]
    for n in order:
        if scores.errors_N[n]:
            ref, hyp, mark = aligned(scores.reference[n], scores.hypothesis[n], scores.edits[n])
            who = f" · {rows[n].speaker}" if rows[n].speaker else ""
            text += [
                f"{rows[n].id}{who} · {scores.errors_N[n]} of {scores.tokens_N[n]}",
                f"REF:  {ref}",
                f"HYP:  {hyp}",
                f"Eval: {mark}".rstrip(),
                "",
            ]
    text += ["speaker            utterances  words  errors  WER %"]
    for s in by_speaker(rows, scores):
        rate = f"{100 * s.rate:.1f}" if s.words else "–"
        text.append(f"{s.speaker:<18} {s.utterances:>10} {s.words:>6} {s.errors:>7} {rate:>6}")
    text += ["", "count  said → understood"]
    text += [f"{count:>5}  {said} → {understood}" for said, understood, count in confusions(scores)]
    return "\n".join(text) + "\n"
