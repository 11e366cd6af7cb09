"""Senones for an alignment that has phones alone (MFA, CTM, CTC): states by thirds of a phone, tied by a tree grown on
the corpus' own sound.

- Every phone has three states, silence and noise too; a phone of fewer than three frames takes some of its neighbours.
- Features: 13 cepstra of the log-mel bins, without the utterance's mean, and their slopes; of the split `train`.
- The tree (Young, Odell & Woodland 1994) asks for phones in context. A state in context is one diagonal Gaussian, known
  by its count, sum and sum of squares. A set of them has the log-likelihood L = −n/2 · Σ_f (log 2π + 1 + log σ²_f) of
  its own maximum-likelihood Gaussian (equation 1 there).
- Questions come from the data: the sets of phones that arise when phones are merged bottom up, always the pair that
  loses the least; and single phones.
- All (phone, state) begin as leaves; the split that gains most is made next, until there are as many leaves as asked
  for. Ties go to the first: the same statistics give the same tree.
- The alignment is written again, with a senone tier and phone boundaries that fit it.

Shape letters: T frames, U phones of an utterance, F features; M states in context, Q phones (0: none), G sums of a
state (1 + 2 F), K questions, C clusters of phones.
"""

import heapq
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, Tier, UtteranceAlignment, at_least_one_apart, pronunciations, write_alignment
from hkd.audio import read_audio
from hkd.errors import Progress, UserError, no_progress
from hkd.features.fbank import log_mel
from hkd.files import digest_of
from hkd.manifest import Manifest
from hkd.timebase import FRAME_SHIFT_S
from hkd.units.inventory import MONOPHONE, SENONE
from hkd.units.kaldi import PDF_CLASS, ConstantMap, ContextTree, Node, SplitMap, TableMap
from hkd.units.tying import TreeTying, adopt

LEFT, CENTRE, RIGHT = 0, 1, 2  # places of a window of three phones
_VARIANCE_FLOOR = 1e-3  # of the variance of all
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Sums over the frames of each state in context."""

    context_M4: Ints  # left, phone, right, state
    sums_MG: Floats  # number of frames, sum of each feature, sum of its squares

    @cached_property
    def floor_F(self) -> Floats:
        """No Gaussian is narrower: a thousandth of the variance of all frames together."""
        mean_F, square_F = np.split(self.sums_MG[:, 1:].sum(0) / self.sums_MG[:, 0].sum(), 2)
        floor: Floats = np.maximum(_VARIANCE_FLOOR * (square_F - mean_F**2), 1e-8)
        return floor


def log_likelihood(sums: Floats, floor_F: Floats) -> Floats:
    """L of pooled states, (..., G) → (...); 0 where there is nothing."""
    count = sums[..., 0]
    mean_F, square_F = np.split(sums[..., 1:] / np.maximum(count, 1e-10)[..., None], 2, axis=-1)
    variance_F = np.maximum(square_F - mean_F**2, floor_F)
    value: Floats = -0.5 * count * (np.log(2 * np.pi) + 1 + np.log(variance_F)).sum(-1)
    return np.where(count > 0, value, 0.0)


def phone_questions(stats: Statistics, phones: Sequence[int]) -> list[frozenset[int]]:
    """Sets of phones that sound alike, small ones first, each once; no set of all."""
    questions = [frozenset((phone,)) for phone in phones]
    if not questions:
        return []
    clusters, floor_F = questions[:], stats.floor_F
    sums_CG = np.stack([stats.sums_MG[stats.context_M4[:, CENTRE] == phone].sum(0) for phone in phones])
    while len(clusters) > 2:
        own_C = log_likelihood(sums_CG, floor_F)
        first, second = np.triu_indices(len(clusters), 1)
        pooled = sums_CG[first] + sums_CG[second]
        at = int((own_C[first] + own_C[second] - log_likelihood(pooled, floor_F)).argmin())
        pair = (int(first[at]), int(second[at]))
        questions.append(clusters[pair[0]] | clusters[pair[1]])
        sums_CG = np.append(np.delete(sums_CG, pair, 0), pooled[at : at + 1], 0)
        clusters = [cluster for number, cluster in enumerate(clusters) if number not in pair] + questions[-1:]
    return sorted(set(questions), key=lambda question: (len(question), sorted(question)))


@dataclass(kw_only=True, eq=False)
class _Growing:
    """A leaf, with the best question about it and the rows of yes and no; once that is asked, with its children."""

    rows_M: Ints
    place: int = -1
    question: frozenset[int] = frozenset()
    parts: tuple[Ints, ...] = ()
    children: "tuple[_Growing, ...]" = ()


def grow_tree(
    stats: Statistics,
    *,
    states: dict[int, int],
    num_senones: int,
    whole: Collection[int] = (),
    min_frames: float = 100.0,
) -> tuple[ContextTree, dict[int, tuple[int, int]]]:
    """(tree, senone → (phone, state)). states: how many each phone has; whole: phones that are never split (silence).

    Fewer senones than asked for where each split leaves less than `min_frames`. Raises ValueError for too few to ask
    for.
    """
    phone_M, state_M = stats.context_M4[:, CENTRE], stats.context_M4[:, 3]
    roots = {
        (phone, state): _Growing(rows_M=np.flatnonzero((phone_M == phone) & (state_M == state)))
        for phone in states
        for state in range(states[phone])
    }
    if num_senones < len(roots):
        raise ValueError(f"{len(roots)} states without context are more than {num_senones} senones")
    speech = [phone for phone in states if phone not in whole and stats.sums_MG[phone_M == phone, 0].sum() > 0]
    questions = phone_questions(stats, speech) + [frozenset(whole)] * bool(whole)
    asks_KQ = np.zeros((len(questions), max(states) + 1))
    for number, question in enumerate(questions):
        asks_KQ[number, sorted(question)] = 1
    queue: list[tuple[float, int, _Growing]] = []
    offered, num_leaves = 0, len(roots)
    new = [leaf for (phone, _), leaf in roots.items() if phone not in whole and len(leaf.rows_M)]
    while True:
        for leaf in new:
            gain = _best_question(stats, leaf, questions, asks_KQ, min_frames)
            if gain > 0:
                heapq.heappush(queue, (-gain, offered, leaf))
            offered += 1
        if not queue or num_leaves >= num_senones:
            break
        _, _, leaf = heapq.heappop(queue)
        new = [_Growing(rows_M=part) for part in leaf.parts]
        leaf.children = tuple(new)
        num_leaves += 1
    owner: dict[int, tuple[int, int]] = {}
    tables: list[Node | None] = [None] * (max(states) + 1)
    for phone, number in states.items():
        nodes = (_node(roots[phone, state], (phone, state), owner) for state in range(number))
        tables[phone] = TableMap(PDF_CLASS, tuple(nodes))
    return ContextTree(width=3, central=CENTRE, root=TableMap(CENTRE, tuple(tables))), owner


def _best_question(
    stats: Statistics, leaf: _Growing, questions: Sequence[frozenset[int]], asks_KQ: Floats, min_frames: float
) -> float:
    """The gain of the best question about a leaf, which is noted in it; 0 where there is none."""
    sums_MG, floor_F, best = stats.sums_MG[leaf.rows_M], stats.floor_F, 0.0
    own = log_likelihood(sums_MG.sum(0), floor_F)
    for place in (LEFT, RIGHT):
        phone_M = stats.context_M4[leaf.rows_M, place]
        sums_QG = np.zeros((asks_KQ.shape[1], sums_MG.shape[1]))
        np.add.at(sums_QG, phone_M, sums_MG)
        # one product for all would round otherwise, and another of two equal questions would win
        yes_KG = np.concatenate([asks_KQ @ part for part in np.split(sums_QG, (1, 1 + len(floor_F)), 1)], 1)
        no_KG = sums_QG.sum(0) - yes_KG
        gain_K = log_likelihood(yes_KG, floor_F) + log_likelihood(no_KG, floor_F) - own
        gain_K[(yes_KG[:, 0] < min_frames) | (no_KG[:, 0] < min_frames)] = 0
        if len(gain_K) and gain_K.max() > best:
            at = int(gain_K.argmax())
            best, leaf.place, leaf.question = float(gain_K[at]), place, questions[at]
            is_yes_M = np.isin(phone_M, sorted(questions[at]))
            leaf.parts = (leaf.rows_M[is_yes_M], leaf.rows_M[~is_yes_M])
    return best


def _node(leaf: _Growing, of: tuple[int, int], owner: dict[int, tuple[int, int]]) -> Node:
    if not leaf.children:
        senone = len(owner)
        owner[senone] = of
        return ConstantMap(senone)
    yes, no = (_node(child, of, owner) for child in leaf.children)
    return SplitMap(leaf.place, leaf.question, yes, no)


NUM_STATES = 3
NUM_CEPSTRA = 13
TRAIN = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class TieConfig:
    """How states are tied."""

    num_senones: int = 2000  # leaves of the decision tree, at most
    min_frames: int = 100  # of a senone
    hours: float = 20.0  # of sound that is looked at, at most

    def __post_init__(self) -> None:
        if self.num_senones < 1 or self.min_frames < 1 or not self.hours > 0:
            found = f"{self.num_senones}, {self.min_frames}, {self.hours:g}"
            raise UserError(f"num_senones, min_frames and hours must be positive, but are {found}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TieReport:
    """What came out. `failed`: utterances that have fewer frames than states."""

    senones: int
    phones: int
    utterances: int
    hours: float  # that the tree was grown on
    failed: dict[str, str]


def tie(
    manifest: Manifest,
    alignment_path: Path,
    units: Path,
    *,
    config: TieConfig,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> TieReport:
    """Grow a tree, write the alignment with senones in its place, and make the tying the project's own. Raises
    UserError for an alignment with senones (unless `overwrite`) or without phones, or too few senones."""
    alignment = Alignment(alignment_path)
    if MONOPHONE not in alignment.inventories:
        rule = f"{alignment_path} must have phones to tie the states of"
        raise UserError(f"{rule}, but has words alone. Align with a lexicon.")
    if SENONE in alignment.inventories and not overwrite:
        count = len(alignment.inventories[SENONE])
        raise UserError(f"{alignment_path} must have no senones yet, but has {count}. Use --overwrite.")
    inventory, quiet = alignment.inventories[MONOPHONE], alignment.silences[MONOPHONE]
    if inventory.silence is None:
        remedy = "Name it: hkd align --set silence=PHONE."
        raise UserError(f"{alignment_path} must have a phone for silence, but has none. {remedy}")
    stats, seconds = _statistics(manifest, alignment, config, progress)
    states = {phone + 1: NUM_STATES for phone in range(len(inventory))}
    whole = [phone + 1 for phone in quiet]
    try:
        tree, owner = grow_tree(
            stats, states=states, num_senones=config.num_senones, whole=whole, min_frames=float(config.min_frames)
        )
    except ValueError as error:
        least = NUM_STATES * len(inventory)
        raise UserError(f"num_senones must be {least} or more, but is {config.num_senones} ({error}).") from None
    tying = TreeTying(
        phones={phone: number + 1 for number, phone in enumerate(inventory.symbols)}, tree=tree,
        places={phone: tuple(range(number)) for phone, number in states.items()}, owner=owner,
        silence_phones=tuple(inventory.symbols[number] for number in quiet), name="tied",
    )  # fmt: skip
    if tying.monophone_inventory != inventory:
        rule = "phones that differ in stress or place alone must be folded before states are tied"
        raise UserError(f"{rule}. Align with --no-stress.")
    rows, failed = _with_senones(alignment, tying)
    said = pronunciations(alignment)
    made_by = {**alignment.aligner, "tied": {**asdict(config), "tree": digest_of([tree.to_text()])}}
    adopt(units, tying, said, overwrite=overwrite)
    write_alignment(
        alignment_path, rows, manifest_digest=alignment.manifest_digest, inventories=tying.inventories,
        silences=tying.silences,
        aligner=made_by, failed={**alignment.failed, **failed},
    )  # fmt: skip
    return TieReport(
        senones=len(owner), phones=len(inventory), utterances=len(rows), hours=round(seconds / 3600, 4), failed=failed
    )


def _triples(alignment: Alignment, row: UtteranceAlignment) -> list[tuple[int, int, int]]:
    """Of each phone of a row the phone before, itself and the one after, as the tree numbers them. Silence stands at
    both ends; beside a phone noise counts as silence."""
    main, quiet = alignment.inventories[MONOPHONE].silence or 0, set(alignment.silences[MONOPHONE])
    unit = row.tiers[MONOPHONE].unit_U.tolist()
    beside = [main, *(main if phone in quiet else phone for phone in unit), main]
    return [(left + 1, phone + 1, right + 1) for left, phone, right in zip(beside, unit, beside[2:], strict=False)]


def state_bounds(tier: Tier) -> NDArray[np.int64]:
    """Boundaries of a tier's states, 3 U + 1: thirds of phones, a frame at least. Raises ValueError for too few."""
    start_U1 = tier.start_U1.astype(np.int64)
    if NUM_STATES * len(tier.unit_U) > tier.num_frames:
        raise ValueError(f"{len(tier.unit_U)} phones of {NUM_STATES} states do not fit into {tier.num_frames} frames")
    length_U = np.diff(start_U1)
    inner_US = start_U1[:-1, None] + (length_U[:, None] * np.arange(NUM_STATES) + NUM_STATES // 2) // NUM_STATES
    return np.array(at_least_one_apart([*inner_US.reshape(-1).tolist(), tier.num_frames], tier.num_frames), np.int64)


def _statistics(
    manifest: Manifest, alignment: Alignment, config: TieConfig, progress: Progress
) -> tuple[Statistics, float]:
    """Sums of each state in context over at most `hours` of sound, utterances by their ids' digests; the seconds."""
    heard = manifest.where(lambda u: u.split == TRAIN) or manifest
    ids = sorted((u.id for u in heard if u.id in alignment), key=lambda name: digest_of([name]))
    sums: dict[tuple[int, int, int, int], NDArray[np.float64]] = {}
    seconds = 0.0
    for number, name in enumerate(ids):
        if seconds > config.hours * 3600:
            break
        row = alignment[name]
        try:
            bounds = state_bounds(row.tiers[MONOPHONE])
        except ValueError:
            continue
        feats_TF = cepstra(read_audio(manifest.by_id(name)), row.num_frames)
        frame_TG = np.concatenate([np.ones((len(feats_TF), 1)), feats_TF, feats_TF**2], 1)
        sums_T1G = np.concatenate([np.zeros((1, frame_TG.shape[1])), frame_TG.cumsum(0)])
        for place, triple in enumerate(_triples(alignment, row)):
            for state in range(NUM_STATES):
                first, last = bounds[NUM_STATES * place + state : NUM_STATES * place + state + 2].tolist()
                key = (*triple, state)
                sums[key] = sums.get(key, 0.0) + sums_T1G[last] - sums_T1G[first]
        seconds += row.num_frames * FRAME_SHIFT_S
        progress(number + 1, len(ids))
    if not sums:
        raise UserError("tying states needs utterances with sound and an alignment, but there are none that fit.")
    keys = sorted(sums)
    return Statistics(context_M4=np.array(keys, np.int64), sums_MG=np.stack([sums[key] for key in keys])), seconds


def cepstra(wave_S: NDArray[np.float32], num_frames: int) -> NDArray[np.float64]:
    """(num_frames, 2 · 13): log-mel bins' cosine transform (orthonormal, DCT-II), its mean taken out; and its slope."""
    mel_TF = np.asarray(log_mel(torch.from_numpy(wave_S)), np.float64)
    bins = mel_TF.shape[1]
    basis_FC = np.cos(np.pi / bins * (np.arange(bins)[:, None] + 0.5) * np.arange(NUM_CEPSTRA)) * np.sqrt(2 / bins)
    ceps_TC = mel_TF @ basis_FC
    if len(ceps_TC) < num_frames:
        ceps_TC = np.concatenate([ceps_TC, np.repeat(ceps_TC[-1:], num_frames - len(ceps_TC), 0)])
    ceps_TC = ceps_TC[:num_frames] - ceps_TC.mean(0)
    slope_TC = np.gradient(ceps_TC, axis=0) if num_frames > 1 else np.zeros_like(ceps_TC)
    return np.concatenate([ceps_TC, slope_TC], 1)


def _with_senones(alignment: Alignment, tying: TreeTying) -> tuple[list[UtteranceAlignment], dict[str, str]]:
    """All rows with a senone tier, phone and word boundaries moved with it; and why others have none."""
    rows, failed = [], {}
    for name in alignment:
        row = alignment[name]
        phone_tier = row.tiers[MONOPHONE]
        try:
            bounds = state_bounds(phone_tier)
        except ValueError as error:
            failed[name] = str(error)
            continue
        senones = [senone for triple in _triples(alignment, row) for senone in tying.tied([*triple])[1]]
        start_U1 = np.append(bounds[:-1:NUM_STATES], bounds[-1]).astype(np.int32)
        moved = dict(zip(phone_tier.start_U1.tolist(), start_U1.tolist(), strict=True))
        word_start = np.array([moved[frame] for frame in row.word_tier.start_U1.tolist()], np.int32)
        tiers = {
            SENONE: Tier(unit_U=np.array(senones, np.int32), start_U1=bounds.astype(np.int32)),
            MONOPHONE: Tier(unit_U=phone_tier.unit_U, start_U1=start_U1),
        }
        rows.append(replace(row, tiers=tiers, word_tier=Tier(unit_U=row.word_tier.unit_U, start_U1=word_start)))
    if not rows:
        raise UserError("tying states needs utterances with three frames a phone, but there are none.")
    return rows, failed
