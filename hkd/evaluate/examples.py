"""Utterances to look at: sound, alignment, the teachers' top candidates, and what every run made of them."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, Positions, UtteranceAlignment, word_positions
from hkd.audio import read_audio, to_int16
from hkd.evaluate.charts import TierView, timeline
from hkd.evaluate.result import EvaluationReport
from hkd.evaluate.score import score_words
from hkd.labels.reader import LabelReader
from hkd.manifest import Manifest, Utterance
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.letters import letters_per_unit
from hkd.units.level import UNIT_LEVELS

MAX_AUDIO_S = 12.0  # longer sound is not embedded
NUM_CANDIDATES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One of the teacher's likeliest units at a position."""

    unit: str
    p: float
    is_reference: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What the teacher says of one position."""

    reference: str
    p: float | None
    candidates: tuple[Candidate, ...]
    tail: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Opinions:
    """A store's cards for an utterance."""

    store: str
    level: str
    teacher: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """All there is to show of an utterance."""

    id: str
    speaker: str | None
    split: str | None
    seconds: float
    reference: str
    audio: str | None  # a data: address
    drawing: Markup | None
    opinions: tuple[Opinions, ...]
    hypotheses: tuple[tuple[str, Markup, int], ...]  # run, marked text, word errors


def choose_ids(reports: Sequence[EvaluationReport], stores: Mapping[str, LabelReader], number: int) -> list[str]:
    """Utterances where the runs differ most, those that all stores cover first; short ones before long ones; deterministic."""
    if not reports:
        return []
    rows = reports[0].hypotheses
    errors = [score_words([r.reference for r in x.hypotheses], [r.hypothesis for r in x.hypotheses]).errors_N for x in reports]
    spread_N = np.ptp(np.stack(errors), axis=0)
    order = sorted(
        range(len(rows)),
        key=lambda i: (
            rows[i].seconds > MAX_AUDIO_S,
            -sum(rows[i].id in store for store in stores.values()),
            -int(spread_N[i]),
            rows[i].seconds,
            rows[i].id,
        ),
    )
    return [rows[i].id for i in order[:number]]


def make_example(
    utterance: Utterance,
    *,
    reports: Sequence[EvaluationReport],
    alignment: Alignment | None,
    stores: Mapping[str, LabelReader],
) -> Example:
    """Gather it. Raises UserError where the sound cannot be read."""
    wave_S = read_audio(utterance)
    aligned = alignment[utterance.id] if alignment is not None and utterance.id in alignment else None
    covering = {name: store for name, store in stores.items() if utterance.id in store}
    covering = dict(sorted(covering.items(), key=lambda item: level_rank(item[1].spec.level)))
    found = {name: opinions_of(store, utterance.id) for name, store in covering.items()}
    drawing = None
    if alignment is not None and aligned is not None:
        drawing = timeline(wave_S, tier_views(alignment, aligned, covering, found))
    hypotheses = []
    for report in reports:
        row = next((r for r in report.hypotheses if r.id == utterance.id), None)
        if row is not None:
            hypotheses.append((report.name, *marked(row.reference, row.hypothesis)))
    return Example(
        id=utterance.id,
        speaker=utterance.speaker,
        split=utterance.split,
        seconds=len(wave_S) / SAMPLE_RATE_HZ,
        reference=next((r.reference for report in reports for r in report.hypotheses if r.id == utterance.id), utterance.text),
        audio=flac_address(wave_S) if len(wave_S) <= MAX_AUDIO_S * SAMPLE_RATE_HZ else None,
        drawing=drawing,
        opinions=tuple(found.values()),
        hypotheses=tuple(hypotheses),
    )


def level_rank(level: str) -> int:
    """Levels from fine to coarse, others last."""
    return UNIT_LEVELS.index(level) if level in UNIT_LEVELS else len(UNIT_LEVELS)


def flac_address(wave_S: NDArray[np.float32]) -> str:
    """The sound as a data: address (FLAC, 16 bit)."""
    import soundfile

    data = io.BytesIO()
    soundfile.write(data, to_int16(wave_S), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(data.getvalue()).decode()


def marked(reference: str, hypothesis: str) -> tuple[Markup, int]:
    """The hypothesis with its errors marked (<del> left out, <ins> added, <mark> instead of), and how many there are."""
    scores = score_words([reference], [hypothesis])
    words, said = scores.reference[0], scores.hypothesis[0]
    parts: list[Markup] = []
    for e in scores.edits[0]:
        wanted, got = " ".join(words[e.ref_start : e.ref_stop]), " ".join(said[e.hyp_start : e.hyp_stop])
        if e.kind == "equal":
            parts.append(escape(got))
        elif e.kind == "substitute":
            parts.append(Markup('<mark title="instead of: {}">{}</mark>').format(wanted, got))
        elif e.kind == "insert":
            parts.append(Markup("<ins>{}</ins>").format(got))
        else:
            parts.append(Markup("<del>{}</del>").format(wanted))
    return Markup(" ").join(parts), int(scores.errors_N[0])


def opinions_of(store: LabelReader, utterance_id: str) -> Opinions:
    """A store's top candidates at every position of an utterance."""
    block = store.block([utterance_id])
    topk, symbols = block.topk, store.spec.inventory.symbols
    cards = []
    for n in range(len(topk)):
        gold = int(topk.gold_N[n])
        pairs = list(zip(topk.ids_NK[n].tolist(), np.exp(topk.logp_NK[n].astype(np.float64)).tolist(), strict=True))
        shown = pairs[:NUM_CANDIDATES]
        cards.append(
            Card(
                reference=symbols[gold] if gold >= 0 else "∅",
                p=float(np.exp(topk.gold_logp_N[n])) if gold >= 0 else None,
                candidates=tuple(Candidate(unit=symbols[u], p=p, is_reference=u == gold) for u, p in shown),
                tail=max(0.0, 1.0 - sum(p for _, p in shown)),
            )
        )
    teacher = store.spec.teacher
    name = f"{teacher.get('name', '?')}, given {teacher.get('given', '?')}"
    return Opinions(store=store.spec.name, level=store.spec.level, teacher=name, cards=tuple(cards))


def store_positions(alignment: Alignment, aligned: UtteranceAlignment, store: LabelReader) -> Positions | None:
    """Where a store's positions lie in time; None where its sequence is not that of the alignment."""
    block = store.block([aligned.id])
    if store.spec.level in alignment.inventories:
        found = alignment.positions(aligned.id, store.spec.level)
        return found if len(found.unit_U) == len(block.topk) else None
    letters_V = letters_per_unit(store.spec.inventory.symbols)
    return word_positions(aligned, block.word_N, block.topk.gold_N, letters_V=letters_V)


def tier_views(
    alignment: Alignment, aligned: UtteranceAlignment, stores: Mapping[str, LabelReader], found: Mapping[str, Opinions]
) -> list[TierView]:
    """Words, subwords, monophones and senones, coarse to fine, each with the first store's probability of the reference."""
    by_level: dict[str, tuple[Positions, Opinions]] = {}
    for name, store in stores.items():
        where = store_positions(alignment, aligned, store)
        if where is not None:
            by_level.setdefault(store.spec.level, (where, found[name]))
    bounds = aligned.word_tier.start_U1.tolist()
    words = [aligned.words[unit] if unit >= 0 else "" for unit in aligned.word_tier.unit_U.tolist()]
    views = [TierView(name="word", start=bounds[:-1], stop=bounds[1:], labels=words)]
    for level in reversed(UNIT_LEVELS):
        if level in by_level:
            views.append(_view(level, *by_level[level]))
        elif level in alignment.inventories:
            where = alignment.positions(aligned.id, level)
            labels = [alignment.inventories[level].symbols[unit] for unit in where.unit_U.tolist()]
            views.append(TierView(name=level, start=where.start_U.tolist(), stop=where.stop_U.tolist(), labels=labels))
    return views


def _view(level: str, where: Positions, opinions: Opinions) -> TierView:
    hover = [_hover(card) for card in opinions.cards]
    kept = [i for i, (a, b) in enumerate(zip(where.start_U.tolist(), where.stop_U.tolist(), strict=True)) if b > a]
    columns: dict[str, Any] = {
        "start": [int(where.start_U[i]) for i in kept],
        "stop": [int(where.stop_U[i]) for i in kept],
        "labels": [opinions.cards[i].reference for i in kept],
        "sure": [opinions.cards[i].p for i in kept],
        "hover": [hover[i] for i in kept],
    }
    return TierView(name=level, **columns)


def _hover(card: Card) -> str:
    return f"{card.reference} · " + ", ".join(f"{c.unit} {c.p:.2f}" for c in card.candidates)


def examples(
    manifest: Manifest,
    *,
    reports: Sequence[EvaluationReport],
    alignment: Alignment | None,
    stores: Mapping[str, LabelReader],
    number: int = 3,
) -> list[Example]:
    """Some utterances of the split; where the stores cover none of it, one more that they cover, so that labels can be seen."""
    known = {u.id for u in manifest}
    chosen = [name for name in choose_ids(reports, stores, number) if name in known]
    if stores and not any(u in store for u in chosen for store in stores.values()):
        covered = (u.id for u in manifest if u.audio_filepath and all(u.id in store for store in stores.values()))
        chosen += [name for name in covered if alignment is None or name in alignment][:1]
    return [make_example(manifest.by_id(name), reports=reports, alignment=alignment, stores=stores) for name in chosen]


__all__ = ["Candidate", "Card", "Example", "Opinions", "choose_ids", "examples", "make_example", "marked", "opinions_of"]
