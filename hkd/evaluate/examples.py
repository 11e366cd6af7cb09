"""Example utterances of the report: sound, alignment, the teachers' top candidates, and the hypothesis of every run."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, Positions, UtteranceAlignment, word_positions
from hkd.audio import read_audio, to_int16
from hkd.evaluate.charts import DrawnTier, timeline
from hkd.evaluate.result import EvaluationReport
from hkd.evaluate.score import score_words
from hkd.labels.store import LabelReader
from hkd.manifest import Manifest, Utterance
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.level import UNIT_LEVELS
from hkd.units.subword import letters_per_unit

MAX_AUDIO_S = 12.0  # longer sound is not embedded
NUM_CANDIDATES = 5


class Candidate(NamedTuple):
    """One of the teacher's likeliest units at a position."""

    unit: str
    p: float
    is_reference: bool


class PositionLabel(NamedTuple):
    """A position: its gold unit and the teacher's probability of it (None where there is none), and the candidates."""

    reference: str
    p: float | None
    candidates: tuple[Candidate, ...]


class StoreLabels(NamedTuple):
    """A store's labels of an utterance."""

    store: str
    level: str
    teacher: str
    positions: tuple[PositionLabel, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One utterance of the report."""

    id: str
    speaker: str | None
    split: str | None
    seconds: float
    reference: str
    audio: str | None  # a data: address
    drawing: Markup | None
    labels: tuple[StoreLabels, ...]
    hypotheses: tuple[tuple[str, Markup, int], ...]  # run, marked text, word errors


def examples(
    manifest: Manifest,
    *,
    reports: Sequence[EvaluationReport],
    alignment: Alignment | None,
    stores: Mapping[str, LabelReader],
    number: int = 3,
) -> list[Example]:
    """Some utterances of the split. Where the stores cover none of them, one more that they cover, so that labels are shown."""
    known = {u.id for u in manifest}
    chosen = [name for name in _choose_ids(reports, stores, number) if name in known]
    if stores and not any(u in store for u in chosen for store in stores.values()):
        covered = (u.id for u in manifest if u.audio_filepath and all(u.id in store for store in stores.values()))
        chosen += [name for name in covered if alignment is None or name in alignment][:1]
    return [_example(manifest.by_id(name), reports, alignment, stores) for name in chosen]


def _choose_ids(reports: Sequence[EvaluationReport], stores: Mapping[str, LabelReader], number: int) -> list[str]:
    """Utterances where the runs differ most; those that all stores cover first, short ones before long ones."""
    if not reports:
        return []
    rows = reports[0].hypotheses
    errors = [score_words([r.reference for r in x.hypotheses], [r.hypothesis for r in x.hypotheses]).errors_N for x in reports]
    spread_N = np.ptp(np.stack(errors), axis=0)
    ranks = [
        (row.seconds > MAX_AUDIO_S, -sum(row.id in store for store in stores.values()), -int(spread), row.seconds, row.id)
        for row, spread in zip(rows, spread_N, strict=True)
    ]
    return [name for *_, name in sorted(ranks)[:number]]


def _example(
    utterance: Utterance,
    reports: Sequence[EvaluationReport],
    alignment: Alignment | None,
    stores: Mapping[str, LabelReader],
) -> Example:
    """Raises UserError where the sound cannot be read."""
    wave_S = read_audio(utterance)
    covering = sorted((s for s in stores.values() if utterance.id in s), key=lambda s: (level_rank(s.spec.level), s.spec.name))
    labels = tuple(labels_of(store, utterance.id) for store in covering)
    drawing = None
    if alignment is not None and utterance.id in alignment:
        drawing = timeline(wave_S, _tiers(alignment, alignment[utterance.id], covering, labels))
    rows = [(report.name, row) for report in reports for row in report.hypotheses if row.id == utterance.id]
    return Example(
        id=utterance.id,
        speaker=utterance.speaker,
        split=utterance.split,
        seconds=len(wave_S) / SAMPLE_RATE_HZ,
        reference=rows[0][1].reference if rows else utterance.text,
        audio=flac_address(wave_S) if len(wave_S) <= MAX_AUDIO_S * SAMPLE_RATE_HZ else None,
        drawing=drawing,
        labels=labels,
        hypotheses=tuple((name, *marked(row.reference, row.hypothesis)) for name, row in rows),
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
    """The hypothesis with its errors marked (<del> left out, <ins> added, <mark> instead of), and their number."""
    scores = score_words([reference], [hypothesis])
    said, heard = scores.reference[0], scores.hypothesis[0]
    forms = {
        "equal": "{1}",
        "substitute": '<mark title="instead of: {0}">{1}</mark>',
        "insert": "<ins>{1}</ins>",
        "delete": "<del>{0}</del>",
    }
    parts: list[Markup] = []
    for e in scores.edits[0]:
        wanted, got = " ".join(said[e.ref_start_idx : e.ref_end_idx]), " ".join(heard[e.hyp_start_idx : e.hyp_end_idx])
        parts.append(Markup(forms[e.type]).format(escape(wanted), escape(got)))
    return Markup(" ").join(parts), int(scores.errors_N[0])


def labels_of(store: LabelReader, utterance_id: str) -> StoreLabels:
    """A store's top candidates at every position of an utterance."""
    topk, symbols = store.block([utterance_id]).topk, store.spec.inventory.symbols
    positions = []
    for ids, logp_K, gold, gold_logp in zip(topk.ids_NK, topk.logp_NK, topk.gold_N, topk.gold_logp_N, strict=True):
        p_K = np.exp(logp_K[:NUM_CANDIDATES].astype(np.float64))
        candidates = tuple(
            Candidate(symbols[u], p, bool(u == gold)) for u, p in zip(ids[: len(p_K)].tolist(), p_K.tolist(), strict=True)
        )
        known = gold >= 0
        p = float(np.exp(gold_logp)) if known else None
        positions.append(PositionLabel(symbols[gold] if known else "∅", p, candidates))
    teacher = store.spec.teacher
    name = f"{teacher.get('name', '?')}, given {teacher.get('given', '?')}"
    return StoreLabels(store.spec.name, store.spec.level, name, tuple(positions))


def store_positions(alignment: Alignment, aligned: UtteranceAlignment, store: LabelReader) -> Positions | None:
    """The times of a store's positions; None where its sequence is not that of the alignment."""
    block = store.block([aligned.id])
    if store.spec.level in alignment.inventories:
        found = alignment.positions(aligned.id, store.spec.level)
        return found if len(found.unit_U) == len(block.topk) else None
    letters_V = letters_per_unit(store.spec.inventory.symbols)
    return word_positions(aligned, block.word_N, block.topk.gold_N, letters_V=letters_V)


def _tiers(
    alignment: Alignment, aligned: UtteranceAlignment, stores: Sequence[LabelReader], labels: Sequence[StoreLabels]
) -> list[DrawnTier]:
    """Words, subwords, monophones and senones, each with its first store's probability of the reference."""
    bounds = aligned.word_tier.start_U1.tolist()
    words = [aligned.words[unit] if unit >= 0 else "" for unit in aligned.word_tier.unit_U.tolist()]
    tiers = [DrawnTier(name="word", start=bounds[:-1], stop=bounds[1:], labels=words)]
    labelled: dict[str, DrawnTier] = {}
    for store, own in zip(stores, labels, strict=True):
        where = store_positions(alignment, aligned, store)
        if where is not None and own.level not in labelled:
            times = zip(where.start_U.tolist(), where.stop_U.tolist(), own.positions, strict=True)
            kept = [row for row in times if row[1] > row[0]]
            shown = [label for _, _, label in kept]
            hover = [f"{label.reference} · " + ", ".join(f"{c.unit} {c.p:.2f}" for c in label.candidates) for label in shown]
            labelled[own.level] = DrawnTier(
                name=own.level, start=[start for start, _, _ in kept], stop=[stop for _, stop, _ in kept],
                labels=[label.reference for label in shown], sure=[label.p for label in shown], hover=hover,
            )  # fmt: skip
    for level in reversed(UNIT_LEVELS):
        if level in labelled:
            tiers.append(labelled[level])
        elif level in alignment.inventories:
            where = alignment.positions(aligned.id, level)
            names = [alignment.inventories[level].symbols[unit] for unit in where.unit_U.tolist()]
            tiers.append(DrawnTier(name=level, start=where.start_U.tolist(), stop=where.stop_U.tolist(), labels=names))
    return tiers
