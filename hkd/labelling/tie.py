"""Senones for an alignment that has phones alone (MFA, CTM, CTC): states by thirds of a phone, tied by a tree grown on
the corpus' own sound.

- Every phone has three states, silence and noise too; a phone of fewer than three frames takes some of its neighbours.
- Features: 13 cepstra of the log-mel bins, without the utterance's mean, and their slopes. At most `hours` of sound are
  looked at, of the split `train` alone where the manifest has one.
- The alignment is written again, with a senone tier and phone boundaries that fit it; text becomes senones by the same
  tree.

Shape letters: T frames, U phones of an utterance, F features.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, Tier, UtteranceAlignment, at_least_one_apart, pronunciations, write_alignment
from hkd.audio import read_audio
from hkd.errors import UserError
from hkd.features.fbank import log_mel
from hkd.files import digest_of
from hkd.manifest import Manifest
from hkd.progress import Progress, no_progress
from hkd.timebase import FRAME_SHIFT_S
from hkd.units.clustering import Statistics, grow_tree
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.tying import TreeTying, adopt

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
            raise UserError(
                f"num_senones, min_frames and hours must be positive, but are {self.num_senones}, {self.min_frames}, "
                f"{self.hours:g}."
            )


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
    """Grow a tree, write the alignment with senones in its place, and make the tying the project's own.

    Raises UserError where the alignment has senones already (unless `overwrite`), no phones, or fewer senones are asked
    for than states.
    """
    alignment = Alignment(alignment_path)
    if MONOPHONE not in alignment.inventories:
        raise UserError(
            f"{alignment_path} must have phones to tie the states of, but has words alone. Align with a lexicon."
        )
    if SENONE in alignment.inventories and not overwrite:
        raise UserError(
            f"{alignment_path} must have no senones yet, but has {len(alignment.inventories[SENONE])}. Use --overwrite."
        )
    inventory, quiet = alignment.inventories[MONOPHONE], alignment.silences[MONOPHONE]
    if inventory.silence is None:
        raise UserError(
            f"{alignment_path} must have a phone for silence, but has none. Name it: hkd align --set silence=PHONE."
        )
    stats, seconds = _statistics(manifest, alignment, config, progress)
    states = {phone + 1: NUM_STATES for phone in range(len(inventory))}
    whole = [phone + 1 for phone in quiet]
    try:
        tree, owner = grow_tree(
            stats, states=states, num_senones=config.num_senones, whole=whole, min_frames=float(config.min_frames)
        )
    except ValueError as error:
        raise UserError(
            f"num_senones must be {NUM_STATES * len(inventory)} or more, but is {config.num_senones} ({error})."
        ) from None
    tying = TreeTying(
        phones={phone: number + 1 for number, phone in enumerate(inventory.symbols)}, tree=tree,
        places={phone: tuple(range(number)) for phone, number in states.items()}, owner=owner,
        silence_phones=tuple(inventory.symbols[number] for number in quiet), name="tied",
    )  # fmt: skip
    if tying.monophone_inventory != inventory:
        raise UserError(
            "phones that differ in stress or place alone must be folded before states are tied. Align with --no-stress."
        )
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
    """Of each phone of a row the phone before, itself and the one after, as the tree numbers them.

    Silence stands at both ends; beside a phone noise counts as silence.
    """
    main, quiet = alignment.inventories[MONOPHONE].silence or 0, set(alignment.silences[MONOPHONE])
    unit = row.tiers[MONOPHONE].unit_U.tolist()
    beside = [main, *(main if phone in quiet else phone for phone in unit), main]
    return [(left + 1, phone + 1, right + 1) for left, phone, right in zip(beside, unit, beside[2:], strict=False)]


def state_bounds(tier: Tier) -> NDArray[np.int64]:
    """Boundaries of the states of a tier's phones, 3 U + 1, by thirds, each state a frame at least. Raises ValueError
    where there are too few."""
    start_U1 = tier.start_U1.astype(np.int64)
    if NUM_STATES * len(tier.unit_U) > tier.num_frames:
        raise ValueError(f"{len(tier.unit_U)} phones of {NUM_STATES} states do not fit into {tier.num_frames} frames")
    length_U = np.diff(start_U1)
    inner_US = start_U1[:-1, None] + (length_U[:, None] * np.arange(NUM_STATES) + NUM_STATES // 2) // NUM_STATES
    return np.array(at_least_one_apart([*inner_US.reshape(-1).tolist(), tier.num_frames], tier.num_frames), np.int64)


def _statistics(
    manifest: Manifest, alignment: Alignment, config: TieConfig, progress: Progress
) -> tuple[Statistics, float]:
    """Sums of each state in context over at most `hours` of sound, utterances by the digest of their ids; and the
    seconds."""
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
    """(num_frames, 2 · 13): the cosine transform of the log-mel bins (orthonormal, DCT-II), its mean taken out, and its
    slope."""
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
