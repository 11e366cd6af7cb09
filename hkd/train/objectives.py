"""What a student is taught by: the registry of objectives, and the terms of their losses.

    L = L_main + Σ [ α · L_hard ] + Σ [ λ · L_kd ]

An objective says which label stores it reads, what its main output's term is, and what heads it adds. A new one is an `Objective` handed to
`register`; nothing else in hkd names it. Terms called hard-LEVEL are weighted by α, those called kd-STORE by λ, all others by 1.

Shape letters: B utterances, T encoder frames, S slots, M labelled slots, N positions, K kept ids, V units.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hkd.errors import UserError
from hkd.features.pretrained import Upstream
from hkd.labels.store import LabelReader
from hkd.losses import ctc_interpolation, ctc_loss, ctc_occupancy, hard_cross_entropy, sparse_cross_entropy, sparse_kl
from hkd.stream.join import Join
from hkd.stream.loader import Batch, SoftLabels
from hkd.student.config import NUM_BINS, EncoderConfig, HeadConfig, SpeechEncoderConfig, StudentConfig, default_slots, default_tap
from hkd.student.model import StudentOutput
from hkd.student.speech_encoder import open_speech_encoder
from hkd.train.config import KdConfig, TrainConfig
from hkd.units.level import LEVELS, SENONE, SUBWORD, UNIT_LEVELS


class Term(Protocol):
    """One term of the loss."""

    @property
    def name(self) -> str:
        """As metrics call it."""

    @property
    def reads(self) -> Mapping[str, int]:
        """Label stores that it reads → slots an encoder frame that their labels are placed on; 0 for labels that need no slots."""

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """The slots (flat indices) that it reads of each head."""

    def count(self, batch: Batch) -> float:
        """What its sum is divided by."""

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """The sum over the batch, a scalar."""


Taught = tuple[HeadConfig | None, Term]


@dataclass(frozen=True, kw_only=True)
class CtcTerm:
    """The main output's CTC loss, divided by target units: so it is of the size of a frame's cross-entropy."""

    name: str = "ctc"

    @property
    def reads(self) -> Mapping[str, int]:
        """None."""
        return {}

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """None: the main output is read whole."""
        return {}

    def count(self, batch: Batch) -> float:
        """Target units."""
        return float(len(batch.target_L))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """−log p(target), summed."""
        return ctc_loss(output.logits_BTV, output.length_B, batch.target_L, batch.target_length_B).sum()


@dataclass(frozen=True, kw_only=True)
class HybridTerm:
    """The main output's frame cross-entropy over senones; with `store`, against w · teacher + (1 − w) · reference.

    A slot without a teacher's label (silence, an utterance that the store lacks) has its whole reference loss.
    """

    name: str = "senone"
    store: str | None = None
    weight: float = 0.0
    kd: KdConfig = field(default_factory=KdConfig)
    column: int | None = None  # of lse_NJ, for the teacher's temperature

    @property
    def reads(self) -> Mapping[str, int]:
        """The teacher's store, on every slot."""
        return {} if self.store is None else {self.store: default_slots(SENONE)}

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """None: the main output is read whole."""
        return {}

    def count(self, batch: Batch) -> float:
        """Labelled slots."""
        return float(len(batch.hard[SENONE].slot_M))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """Cross-entropy, summed."""
        logits_NV = output.logits_BTV.flatten(0, 1)
        hard = batch.hard[SENONE]
        loss_M = hard_cross_entropy(logits_NV.index_select(0, hard.slot_M), hard.unit_M)
        if self.store is None:
            return loss_M.sum()
        soft = batch.soft[self.store]
        weight_S = torch.ones(len(logits_NV), device=logits_NV.device)
        weight_S[soft.slot_M] = 1 - self.weight
        teacher = _teacher(soft, self.kd, column=self.column)
        soft_M = sparse_cross_entropy(logits_NV.index_select(0, soft.slot_M), **teacher)
        return (loss_M * weight_S[hard.slot_M]).sum() + self.weight * soft_M.sum()


@dataclass(frozen=True, kw_only=True)
class InterpolationTerm:
    """(1 − w) · CTC + w · Σ_t Σ_u γ_t(u) · CE(p_u, q_t), γ the detached CTC occupancies (DESIGN, section 5), a target unit.

    An utterance without labels has its whole CTC loss.
    """

    store: str
    weight: float
    kd: KdConfig = field(default_factory=KdConfig)
    column: int | None = None
    name: str = "ctc"

    @property
    def reads(self) -> Mapping[str, int]:
        """The teacher's store, without slots."""
        return {self.store: 0}

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """None: the main output is read whole."""
        return {}

    def count(self, batch: Batch) -> float:
        """Target units."""
        return float(len(batch.target_L))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """Both parts, summed."""
        logits_BTV = output.logits_BTV
        reference_B = ctc_loss(logits_BTV, output.length_B, batch.target_L, batch.target_length_B)
        soft = batch.soft[self.store]
        labelled_B = soft.offset_B1[1:] > soft.offset_B1[:-1]
        teacher_B = _by_occupancy(batch, output, logits_BTV, soft, self.kd, self.column, class_offset=1)
        return (torch.where(labelled_B, 1 - self.weight, 1.0) * reference_B + self.weight * teacher_B).sum()


@dataclass(frozen=True, kw_only=True)
class HardTerm:
    """A hard head: cross-entropy against the reference at each labelled slot."""

    name: str
    head: str
    level: str
    label_smoothing: float = 0.0

    @property
    def reads(self) -> Mapping[str, int]:
        """None."""
        return {}

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """The labelled ones."""
        return {self.head: batch.hard[self.level].slot_M}

    def count(self, batch: Batch) -> float:
        """Labelled slots."""
        return float(len(batch.hard[self.level].slot_M))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """Cross-entropy, summed."""
        return hard_cross_entropy(
            output.heads[self.head], batch.hard[self.level].unit_M, label_smoothing=self.label_smoothing
        ).sum()


@dataclass(frozen=True, kw_only=True)
class KdTerm:
    """An auxiliary head: divergence from the teacher's top-k at each labelled slot, or of each segment's mean."""

    name: str
    head: str
    store: str
    kd: KdConfig
    column: int | None = None  # of lse_NJ, for the teacher's temperature
    num_slots: int = 1  # of the head

    @property
    def reads(self) -> Mapping[str, int]:
        """The teacher's store, on the head's slots."""
        return {self.store: self.num_slots}

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """The labelled ones."""
        return {self.head: batch.soft[self.store].slot_M}

    def count(self, batch: Batch) -> float:
        """Labelled slots; with `segments`, positions that have one."""
        soft = batch.soft[self.store]
        return float(len(torch.unique(soft.position_M)) if self.kd.where == "segments" else len(soft.slot_M))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """The divergence, summed."""
        soft = batch.soft[self.store]
        logits_MV, rows_M = output.heads[self.head], soft.position_M
        if self.kd.where == "segments":
            # The output layer is linear: the mean of the logits is what the head says of the segment's mean.
            rows_M, index_M = torch.unique(soft.position_M, return_inverse=True)
            size_M = torch.zeros(len(rows_M), device=logits_MV.device).index_add_(
                0, index_M, torch.ones_like(index_M, dtype=torch.float32)
            )
            logits_MV = logits_MV.new_zeros(len(rows_M), logits_MV.shape[1]).index_add(0, index_M, logits_MV)
            logits_MV = logits_MV / size_M[:, None].to(logits_MV.dtype)
        return sparse_kl(logits_MV, **_teacher(soft, self.kd, rows_M, self.column)).sum()


@dataclass(frozen=True, kw_only=True)
class CtcKdTerm:
    """An auxiliary head in the student's own subwords whose frames weigh by the CTC occupancy of each position."""

    name: str
    head: str
    store: str
    kd: KdConfig = field(default_factory=KdConfig)
    column: int | None = None

    @property
    def reads(self) -> Mapping[str, int]:
        """The teacher's store, without slots."""
        return {self.store: 0}

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """All: the occupancies are not known before."""
        return {}

    def count(self, batch: Batch) -> float:
        """Positions."""
        return float(len(batch.soft[self.store].ids_NK))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """Σ_t Σ_u γ_t(u) · CE(p_u, q_t), summed."""
        soft, logits_BTV = batch.soft[self.store], output.heads[self.head]
        return _by_occupancy(batch, output, logits_BTV, soft, self.kd, self.column, class_offset=0).sum()


def _by_occupancy(
    batch: Batch,
    output: StudentOutput,
    logits_BTV: Tensor,
    soft: SoftLabels,
    kd: KdConfig,
    column: int | None,
    *,
    class_offset: int,
) -> Tensor:
    """loss_B: the teacher's part of `logits_BTV`, each frame weighted by the main output's CTC occupancy of each position."""
    gamma_BTU = ctc_occupancy(output.logits_BTV, output.length_B, batch.target_L, batch.target_length_B)
    return ctc_interpolation(
        logits_BTV, gamma_BTU, ids_NK=soft.ids_NK, logp_NK=soft.logp_NK, tail_N=soft.tail_N, offset_B1=soft.offset_B1,
        class_offset=class_offset, tail=kd.tail, temperature=kd.temperature,
        lse_N=None if column is None else soft.lse_NJ[:, column],
        tail_T_N=None if column is None else soft.tail_NJ[:, column],
    )  # fmt: skip


def _teacher(soft: SoftLabels, kd: KdConfig, rows_M: Tensor | None = None, column: int | None = None) -> dict[str, Any]:
    """The teacher's side of the sparse losses for these rows (default: those of the slots)."""
    rows_M = soft.position_M if rows_M is None else rows_M
    return {
        "ids_MK": soft.ids_NK[rows_M],
        "logp_MK": soft.logp_NK[rows_M],
        "tail_M": soft.tail_N[rows_M],
        "temperature": kd.temperature,
        "lse_M": None if column is None else soft.lse_NJ[rows_M, column],
        "tail_T_M": None if column is None else soft.tail_NJ[rows_M, column],
        "student_temperature": kd.student_temperature or None,
        "tail": kd.tail,
        "gold_M": soft.gold_N[rows_M],
        "count_MK": None if soft.count_NK is None else soft.count_NK[rows_M],
    }


# Objective → the student's heads and the terms of its loss.


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run takes from the data: label stores, levels of hard heads, and stores that must be in the student's units."""

    stores: tuple[str, ...]
    hard: tuple[str, ...]
    same_units: tuple[str, ...]

    @property
    def alignment(self) -> bool:
        """Whether an alignment is needed."""
        return bool(self.hard) or any(name not in self.same_units for name in self.stores)


def needs_of(config: TrainConfig, stores: Mapping[str, str], *, aligned: bool) -> Needs:
    """stores: name → level, all that are there. Raises UserError where the objective cannot be had from them, or it is not clear which."""
    objective = objective_of(config)
    chosen = objective.choose(config, stores) if objective.choose is not None else ()
    wanted = set(config.condition)
    if with_hard_heads(config):
        taught = set() if objective.teaches_main else {stores[name] for name in chosen}
        wanted |= taught or set(config.levels) or set(LEVELS)
    hard = tuple(level for level in UNIT_LEVELS if level in wanted)
    own_units = tuple(name for name in chosen if objective.teaches_main or _kd(config, name).where == "ctc")
    needs = Needs(stores=chosen, hard=hard, same_units=own_units)
    if (needs.alignment or config.main == SENONE) and not aligned:
        raise UserError(f"objective {objective.name} needs an alignment, but there is none. Run `hkd align` first.")
    return needs


def with_hard_heads(config: TrainConfig) -> bool:
    """Whether there are hard heads: the objective says so, or `hard_heads` where it leaves that open."""
    objective = objective_of(config)
    return objective.hard_heads if objective.choose is None or config.hard_heads is None else config.hard_heads


def _all_stores(config: TrainConfig, stores: Mapping[str, str]) -> tuple[str, ...]:
    for name in config.stores:
        if name not in stores:
            raise UserError(
                f"`stores` must name label stores ({', '.join(stores) or 'there is none'}), but '{name}' is none of them."
            )
    chosen = config.stores or tuple(name for name in stores if not config.levels or stores[name] in config.levels)
    for level in config.levels:
        if level not in {stores[name] for name in chosen}:
            raise UserError(
                f"`levels` must have label stores, but '{level}' has none. Run `hkd teacher-dump --unit {level}` first."
            )
    levels = [stores[name] for name in chosen]
    for level in levels:
        if levels.count(level) > 1 and not config.stores:
            same = ", ".join(name for name in chosen if stores[name] == level)
            raise UserError(
                f"a level must have one label store, but {level} has {same}. Name those to use: --set stores='[...]'."
            )
    rank = {level: number for number, level in enumerate(UNIT_LEVELS)}
    return tuple(sorted(chosen, key=lambda name: (rank.get(stores[name], len(rank)), name)))


def _kd(config: TrainConfig, store: str) -> KdConfig:
    return config.kds.get(store, config.kd)


def slots_of(config: TrainConfig, level: str) -> int:
    """Slots an encoder frame of a level's heads."""
    return config.slots.get(level, default_slots(level))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The student to build, the terms of its loss, and what batches must carry (level or store → slots)."""

    student: StudentConfig
    main: Term
    plain_main: Term  # the main output's against the reference alone
    taught: tuple[Taught, ...]
    hard: dict[str, int]

    @property
    def terms(self) -> tuple[Term, ...]:
        """All, the main one first."""
        return self.main, *(term for _, term in self.taught)

    @property
    def soft(self) -> dict[str, int]:
        """The label stores that the terms read."""
        return {store: slots for term in self.terms for store, slots in term.reads.items()}


def encoder_of(config: TrainConfig) -> EncoderConfig | SpeechEncoderConfig:
    """hkd's own encoder, its upstream opened, or the named one. Raises UserError, HkdError where that cannot be had."""
    encoder = config.encoder
    if encoder.upstream_folder:
        raise UserError(
            "encoder.upstream_folder must be left out: encoder.upstream may be a folder. It says where an export has its own."
        )
    if encoder.upstream and encoder.num_bins != NUM_BINS:
        raise UserError(f"encoder.num_bins must be left out where encoder.upstream is given, but is {encoder.num_bins}.")
    if encoder.upstream:
        return replace(encoder, num_bins=Upstream(name=encoder.upstream).num_values)
    return open_speech_encoder(encoder) if encoder.name else encoder


def plan_student(config: TrainConfig, needs: Needs, join: Join) -> Plan:
    """Heads and terms. Raises UserError where a temperature has not been dumped, or a head's settings do not fit."""
    known = {*UNIT_LEVELS, *(join.alignment.inventories if join.alignment is not None else ())}
    for name in ("taps", "slots", "stride", "alphas"):
        for level in getattr(config, name):
            if level not in known:
                raise UserError(f"`{name}` must name levels ({', '.join(sorted(known))}), but '{level}' is none of them.")
    hybrid = config.main == SENONE
    if hybrid and config.stride.get(SENONE, 1) > 1:
        raise UserError("`stride.senone` must be 1 where `main` is senone: its own loss takes every slot. Take it out.")
    if hybrid and SENONE in needs.hard and slots_of(config, SENONE) != default_slots(SENONE):
        raise UserError(
            f"`slots.senone` must be {default_slots(SENONE)} where `main` is senone, with a hard head at that level. Take it out."
        )
    encoder, objective = encoder_of(config), objective_of(config)
    given = Given(config=config, needs=needs, join=join, num_layers=encoder.num_layers)
    main = objective.main(given)
    hard = {level: slots_of(config, level) for level in needs.hard}
    taught = (*(_hard_head(given, level) for level in hard), *objective.heads(given))
    if hybrid:
        hard[SENONE] = default_slots(SENONE)
    heads = _conditioned(config, tuple(head for head, _ in taught if head is not None))
    num_main = num_units_of(join, SENONE) if hybrid else len(join.subwords.inventory) + 1
    student = StudentConfig(encoder=encoder, num_main_units=num_main, main=config.main, heads=heads)
    return Plan(student=student, main=main, plain_main=plain_main(given), taught=taught, hard=hard)


def _conditioned(config: TrainConfig, heads: tuple[HeadConfig, ...]) -> tuple[HeadConfig, ...]:
    """The heads, those that `condition` names marked. Raises UserError for a name that is none of theirs."""
    chosen = {f"hard-{name}" if name in UNIT_LEVELS else name for name in config.condition}
    for name in chosen - {head.name for head in heads}:
        known = ", ".join((*UNIT_LEVELS, *(head.name for head in heads if head.kind == "aux")))
        raise UserError(f"`condition` must name levels or heads ({known}), but '{name}' is none of them.")
    return tuple(replace(head, condition=head.name in chosen) for head in heads)


def _hard_head(given: "Given", level: str) -> Taught:
    name, config = f"hard-{level}", given.config
    tap = config.taps.get(level, default_tap(level, given.num_layers))
    num_units = num_units_of(given.join, level)
    head = HeadConfig(name=name, level=level, kind="hard", num_units=num_units, tap=tap, slots=slots_of(config, level))
    return head, HardTerm(name=name, head=name, level=level, label_smoothing=config.label_smoothing)


def _auxiliary(given: "Given", store: str) -> Taught:
    config, join, num_layers = given.config, given.join, given.num_layers
    joined, kd = join.stores[store], _kd(config, store)
    slots = slots_of(config, joined.level)
    tap = config.taps.get(joined.level, default_tap(joined.level, num_layers))
    head = HeadConfig(name=f"kd-{store}", level=joined.level, kind="aux", num_units=joined.num_units, tap=tap, slots=slots)
    if kd.where == "ctc":
        if joined.level != SUBWORD:
            raise UserError(
                f"`kd.where` must be frames or segments for label store '{store}' ({joined.level}), but is ctc instead."
            )
        if slots != 1:
            raise UserError(f"`slots.{joined.level}` must be 1 where `kd.where` is ctc, but is {slots} instead.")
        column = _mixed(join, store, kd, "`kd.where` ctc")
        return head, CtcKdTerm(name=head.name, head=head.name, store=store, kd=kd, column=column)
    spec, column = joined.reader.spec, _column(join, store, kd)
    if (kd.tail == "sampled") != (spec.selection == "sample"):
        raise UserError(
            f"`kd.tail` must fit label store '{store}', whose selection is {spec.selection}, but is '{kd.tail}' instead."
        )
    _check_tail(join, store, kd)
    return head, KdTerm(name=head.name, head=head.name, store=store, kd=kd, column=column, num_slots=slots)


def _column(join: Join, store: str, kd: KdConfig) -> int | None:
    """Where a store's rows hold the normaliser of the teacher's temperature; None where none is needed.

    Raises UserError for a temperature that the store does not hold.
    """
    spec = join.stores[store].reader.spec
    if kd.temperature == 1 or spec.width >= len(spec.inventory) or kd.tail == "renormalised":
        return None
    if kd.temperature not in spec.temperatures:
        known = ", ".join(f"{t:g}" for t in (1.0, *spec.temperatures))
        raise UserError(
            f"`kd.temperature` must be one that label store '{store}' holds ({known}), but is {kd.temperature:g} instead. "
            f"Dump again with --temperatures {kd.temperature:g}."
        )
    return spec.temperatures.index(kd.temperature)


def _mixed(join: Join, store: str, kd: KdConfig, what: str) -> int | None:
    """_column, for losses that hold the teacher's distribution against the student's softmax at temperature 1."""
    _no_draws(join, store)
    if kd.tail not in ("ghost", "renormalised"):
        raise UserError(f"`kd.tail` must be ghost or renormalised with {what}, but is {kd.tail} instead.")
    _check_tail(join, store, kd)
    own = kd.student_temperature or kd.temperature
    if own != 1:
        raise UserError(
            f"`kd.student_temperature` must be 1 with {what} (its targets are for the student's one softmax), but is {own:g} for "
            f"label store '{store}' instead. Take --set kd.student_temperature=1."
        )
    return _column(join, store, kd)


def is_projected(reader: LabelReader) -> bool:
    """Whether a store's labels were computed for the student's own pieces from an LM with others (`--project`)."""
    return "project" in reader.spec.teacher.get("options", {})


def _check_tail(join: Join, store: str, kd: KdConfig) -> None:
    """Raises UserError where the tail is to be one outcome, but holds mass that was not placed on any unit."""
    if kd.tail == "ghost" and is_projected(join.stores[store].reader):
        raise UserError(
            f"`kd.tail` must be renormalised for label store '{store}', whose tail holds what its projection could not place and may belong to "
            "the kept units, but is ghost instead. Take --set kd.tail=renormalised."
        )


def _no_draws(join: Join, store: str) -> None:
    """Raises UserError for a store of draws where the teacher's distribution itself is wanted."""
    selection = join.stores[store].reader.spec.selection
    if selection != "topk":
        raise UserError(
            f"interpolation and `kd.where` ctc take a label store of the selection topk, but that of '{store}' is {selection} instead."
        )


def num_units_of(join: Join, level: str) -> int:
    """The size of a level's own inventory."""
    inventory = join.inventory(level)
    if inventory is None:
        raise UserError(f"a hard head at level {level} needs an alignment with that level. Run `hkd align` first.")
    return len(inventory)


def describe_heads(join: Join, student: StudentConfig) -> dict[str, dict[str, object]]:
    """What scoring needs to know of each head: its store, and the store's unit of each head unit but the last, rest one (null: all units, in order)."""
    rows: dict[str, dict[str, object]] = {}
    for head in student.heads:
        store = join.stores.get(head.name.removeprefix("kd-")) if head.kind == "aux" else None
        row: dict[str, object] = {"level": head.level, "kind": head.kind, "slots": head.slots, "store": store and store.name}
        if store is not None:
            whole = np.array_equal(store.head_unit_V, np.arange(len(store.head_unit_V)))
            row["inventory"] = store.reader.spec.inventory.digest
            row["units"] = None if whole else np.flatnonzero(store.head_unit_V < store.num_units - 1).tolist()
        rows[head.name] = row
    return rows


# The registry -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Given:
    """What an objective makes its terms and heads of."""

    config: TrainConfig
    needs: Needs
    join: Join
    num_layers: int  # of the encoder


def plain_main(given: Given) -> Term:
    """The main output against the reference."""
    return HybridTerm() if given.config.main == SENONE else CtcTerm()


def mixed_main(given: Given) -> Term:
    """The main output against the reference mixed with the teacher's labels."""
    config, join = given.config, given.join
    [store] = given.needs.stores
    kd, hybrid = _kd(config, store), config.main == SENONE
    where = ("frames",) if hybrid else ("frames", "ctc")
    if kd.where not in where:
        raise UserError(
            f"`kd.where` must be {' or '.join(where)} with interpolation (every frame of the main output is taught), "
            f"but is {kd.where} instead. Take --set kd.where=frames."
        )
    column = _mixed(join, store, kd, "objective interpolation")
    kind = HybridTerm if hybrid else InterpolationTerm
    return kind(store=store, weight=config.interpolation_weight, kd=kd, column=column)


def auxiliary_heads(given: Given) -> list[Taught]:
    """A head for each label store."""
    return [_auxiliary(given, store) for store in given.needs.stores]


def one_store(config: TrainConfig, stores: Mapping[str, str]) -> tuple[str, ...]:
    """The one label store that the settings leave. Raises UserError for none or several."""
    return _only(config, _all_stores(config, stores))


def main_store(config: TrainConfig, stores: Mapping[str, str]) -> tuple[str, ...]:
    """The one label store over the main output's units. Raises UserError for none or several."""
    level = SENONE if config.main == SENONE else SUBWORD
    if not config.stores and not config.levels:  # how many stores other levels have is no matter here
        stores = {name: own for name, own in stores.items() if own == level}
    return _only(config, tuple(name for name in _all_stores(config, stores) if stores[name] == level))


def _only(config: TrainConfig, chosen: tuple[str, ...]) -> tuple[str, ...]:
    if len(chosen) != 1:
        raise UserError(
            f"objective {config.objective} takes one label store, but {', '.join(chosen) or 'none'} would do. "
            "Name it: --set stores='[\"NAME\"]' or --set levels='[\"LEVEL\"]'."
        )
    return chosen


def many_stores(config: TrainConfig, stores: Mapping[str, str]) -> tuple[str, ...]:
    """All label stores that the settings leave. Raises UserError for none."""
    chosen = _all_stores(config, stores)
    if not chosen:
        raise UserError(f"objective {config.objective} takes label stores, but there is none. Run `hkd teacher-dump` first.")
    return chosen


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An entry of the registry.

    choose: settings and the label stores that are there (name → level) → those that it reads; None: it reads none.
    main, heads: the main output's term, and each further head (None where a term has none) with its term.
    """

    name: str
    help: str  # one line, for people
    choose: Callable[[TrainConfig, Mapping[str, str]], tuple[str, ...]] | None = None
    main: Callable[[Given], Term] = plain_main
    heads: Callable[[Given], list[Taught]] = lambda given: []
    teaches_main: bool = False  # its label store is over the main output's own units
    hard_heads: bool = False  # without `hard_heads`, which an objective without label stores does not read


OBJECTIVES: dict[str, Objective] = {}


def register(objective: Objective) -> Objective:
    """Make an objective known by its name."""
    OBJECTIVES[objective.name] = objective
    return objective


def objective_of(config: TrainConfig) -> Objective:
    """The objective that is named. Raises UserError where there is none of that name."""
    if config.objective not in OBJECTIVES:
        raise UserError(f"`objective` must be one of {', '.join(OBJECTIVES)}, but is '{config.objective}' instead.")
    return OBJECTIVES[config.objective]


register(Objective(name="none", help="the main loss alone, no language model"))
register(Objective(name="hard-heads", help="reference labels on inner layers, no language model", hard_heads=True))
register(
    Objective(
        name="interpolation", help="a language model's distribution mixed into the main output's targets",
        choose=main_store, main=mixed_main, teaches_main=True,
    )
)  # fmt: skip
register(
    Objective(
        name="auxiliary", help="one auxiliary output layer taught by a language model", choose=one_store, heads=auxiliary_heads
    )
)
register(
    Objective(
        name="hierarchical", help="auxiliary output layers at several levels, each taught by a language model over its own units",
        choose=many_stores, heads=auxiliary_heads, hard_heads=True,
    )
)  # fmt: skip
