"""What a student is taught by: the registry of objectives, and the terms of their losses.

    L = L_main + Σ [ α · L_hard ] + Σ [ λ · L_kd ]

An objective says which label stores it reads, what its main output's term is, and what heads it adds. A new one is an
`Objective` handed to `register`; nothing else in hkd names it. Terms called hard-LEVEL are weighted by α, those called
kd-STORE by λ, all others by 1. L_main is divided by the target units of the global batch, the others by its labelled
slots, so that α and λ weigh like against like.

Shape letters: B utterances, T encoder frames, S slots, M labelled slots, N positions, K kept ids, V units.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hkd.errors import UserError, check_choice, check_setting
from hkd.features.fbank import NUM_BINS
from hkd.features.pretrained import ROWS, Upstream
from hkd.labels.store import LabelReader
from hkd.losses import ctc_interpolation, ctc_loss, ctc_occupancy, hard_cross_entropy, sparse_cross_entropy, sparse_kl
from hkd.stream.join import Join
from hkd.stream.loader import Batch, SoftLabels
from hkd.student.config import EncoderConfig, HeadConfig, SpeechEncoderConfig, StudentConfig, default_slots, default_tap
from hkd.student.encoder import open_speech_encoder
from hkd.student.model import StudentOutput
from hkd.train.config import KdConfig, TrainConfig, check_names
from hkd.units.inventory import LEVELS, SENONE, SUBWORD, UNIT_LEVELS


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the loss. It reads the logits of `head` (None: the main output's) and the labels of `store`."""

    name: str  # as metrics call it
    head: str | None = None
    store: str | None = None
    num_slots: int = 0  # an encoder frame, that the store's labels are placed on; 0: they need none
    kd: KdConfig = field(default_factory=lambda: KdConfig(tail="ghost"))
    column: int | None = None  # of lse_NJ, for the teacher's temperature

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        """Head → its slots (flat indices) that are read; a head that is not named is read whole."""
        return {}

    def count(self, batch: Batch) -> float:
        """What its sum is divided by: here target units, so that CTC is of the size of a frame's cross-entropy."""
        return float(len(batch.target_L))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        """The sum over the batch, a scalar."""
        raise NotImplementedError

    def teacher(self, soft: SoftLabels, row_M: Tensor) -> dict[str, Any]:
        """The teacher's side of the sparse losses for these rows."""
        return {
            "ids_MK": soft.ids_NK[row_M],
            "logp_MK": soft.logp_NK[row_M],
            "tail_M": soft.tail_N[row_M],
            "temperature": self.kd.temperature,
            "lse_M": None if self.column is None else soft.lse_NJ[row_M, self.column],
            "tail_T_M": None if self.column is None else soft.tail_NJ[row_M, self.column],
            "student_temperature": self.kd.student_temperature or None,
            "tail": self.kd.tail,
            "gold_M": soft.gold_N[row_M],
            "count_MK": None if soft.count_NK is None else soft.count_NK[row_M],
        }

    def by_occupancy(self, batch: Batch, output: StudentOutput, logits_BTV: Tensor, *, class_offset: int) -> Tensor:
        """loss_B = Σ_t Σ_u γ_t(u) · CE(p_u, q_t): the teacher's part, γ the main output's CTC occupancies, detached."""
        assert self.store is not None
        soft, column = batch.soft[self.store], self.column
        gamma_BTU = ctc_occupancy(output.logits_BTV, output.length_B, batch.target_L, batch.target_length_B)
        return ctc_interpolation(
            logits_BTV, gamma_BTU, ids_NK=soft.ids_NK, logp_NK=soft.logp_NK, tail_N=soft.tail_N,
            offset_B1=soft.offset_B1,
            class_offset=class_offset, tail=self.kd.tail, temperature=self.kd.temperature,
            lse_N=None if column is None else soft.lse_NJ[:, column],
            tail_T_N=None if column is None else soft.tail_NJ[:, column],
        )  # fmt: skip


Taught = tuple[HeadConfig | None, Term]


@dataclass(frozen=True, kw_only=True)
class CtcTerm(Term):
    """The main output's CTC loss; with `store`, (1 − w) · CTC + w · the teacher's part by occupancy
    (docs/mathematics.md), but the whole CTC loss for an utterance without labels."""

    name: str = "ctc"
    weight: float = 0.0

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        loss_B = ctc_loss(output.logits_BTV, output.length_B, batch.target_L, batch.target_length_B)
        if self.store is None:
            return loss_B.sum()
        offset_B1 = batch.soft[self.store].offset_B1
        teacher_B = self.by_occupancy(batch, output, output.logits_BTV, class_offset=1)
        labelled_B = offset_B1[1:] > offset_B1[:-1]
        return (torch.where(labelled_B, 1 - self.weight, 1.0) * loss_B + self.weight * teacher_B).sum()


@dataclass(frozen=True, kw_only=True)
class HybridTerm(Term):
    """The main output's frame cross-entropy over senones; with `store`, against w · teacher + (1 − w) · reference, but
    the whole reference loss for a slot without a teacher's label (silence, an utterance that the store lacks)."""

    name: str = "senone"
    num_slots: int = default_slots(SENONE)
    weight: float = 0.0

    def count(self, batch: Batch) -> float:
        return float(len(batch.hard[SENONE].slot_M))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        logits_NV = output.logits_BTV.flatten(0, 1)
        hard = batch.hard[SENONE]
        loss_M = hard_cross_entropy(logits_NV.index_select(0, hard.slot_M), hard.unit_M)
        if self.store is None:
            return loss_M.sum()
        soft = batch.soft[self.store]
        weight_S = torch.ones(len(logits_NV), device=logits_NV.device)
        weight_S[soft.slot_M] = 1 - self.weight
        teacher = self.teacher(soft, soft.position_M)
        soft_M = sparse_cross_entropy(logits_NV.index_select(0, soft.slot_M), **teacher)
        return (loss_M * weight_S[hard.slot_M]).sum() + self.weight * soft_M.sum()


@dataclass(frozen=True, kw_only=True)
class HardTerm(Term):
    """A hard head: cross-entropy against the reference at each labelled slot."""

    head: str
    level: str
    label_smoothing: float = 0.0

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        return {self.head: batch.hard[self.level].slot_M}

    def count(self, batch: Batch) -> float:
        return float(len(batch.hard[self.level].slot_M))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        unit_M = batch.hard[self.level].unit_M
        return hard_cross_entropy(output.heads[self.head], unit_M, label_smoothing=self.label_smoothing).sum()


@dataclass(frozen=True, kw_only=True)
class KdTerm(Term):
    """An auxiliary head: divergence from the teacher's top-k at each labelled slot; with `segments`, each position."""

    head: str
    store: str
    num_slots: int = 1

    def slots(self, batch: Batch) -> Mapping[str, Tensor]:
        return {self.head: batch.soft[self.store].slot_M}

    def count(self, batch: Batch) -> float:
        soft = batch.soft[self.store]
        return float(len(torch.unique(soft.position_M)) if self.kd.where == "segments" else len(soft.slot_M))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        soft = batch.soft[self.store]
        logits_MV, row_M = output.heads[self.head], soft.position_M
        if self.kd.where == "segments":  # the output layer is linear: it says of a segment's mean the mean of logits
            row_M, index_M = torch.unique(soft.position_M, return_inverse=True)
            one_M = torch.ones_like(index_M, dtype=torch.float32)
            size_M = torch.zeros(len(row_M), device=logits_MV.device).index_add_(0, index_M, one_M)
            logits_MV = logits_MV.new_zeros(len(row_M), logits_MV.shape[1]).index_add(0, index_M, logits_MV)
            logits_MV = logits_MV / size_M[:, None].to(logits_MV.dtype)
        return sparse_kl(logits_MV, **self.teacher(soft, row_M)).sum()


@dataclass(frozen=True, kw_only=True)
class CtcKdTerm(Term):
    """An auxiliary head in the student's own subwords whose frames weigh by the CTC occupancies; so it has no slots."""

    head: str
    store: str

    def count(self, batch: Batch) -> float:
        return float(len(batch.soft[self.store].ids_NK))

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        return self.by_occupancy(batch, output, output.heads[self.head], class_offset=0).sum()


@dataclass(frozen=True, kw_only=True)
class DataNeeds:
    """What a run takes from the data: label stores, levels of hard heads, stores in the student's own units."""

    stores: tuple[str, ...]
    hard: tuple[str, ...]
    same_units: tuple[str, ...]

    @property
    def alignment(self) -> bool:
        return bool(self.hard) or any(name not in self.same_units for name in self.stores)


def needs_of(config: TrainConfig, stores: Mapping[str, str], *, aligned: bool) -> DataNeeds:
    """stores: name → level, all that are there. Raises UserError where they do not tell what the objective reads."""
    objective = objective_of(config)
    chosen = _stores_of(config, stores) if objective.stores != "none" else ()
    wanted, hard_heads = set(config.condition), config.hard_heads
    if hard_heads is None or objective.stores == "none":
        hard_heads = objective.hard_heads
    if hard_heads:
        taught = set() if objective.teaches_main else {stores[name] for name in chosen}
        for level in () if taught else config.levels:
            check_choice("`levels`", level, UNIT_LEVELS)
        wanted |= taught or set(config.levels) or set(LEVELS)
    hard = tuple(level for level in UNIT_LEVELS if level in wanted)
    own = tuple(name for name in chosen if objective.teaches_main or config.kds.get(name, config.kd).where == "ctc")
    needs = DataNeeds(stores=chosen, hard=hard, same_units=own)
    if (needs.alignment or config.main == SENONE) and not aligned:
        raise UserError(f"objective {objective.name} needs an alignment, but there is none. Run `hkd align` first.")
    return needs


def _stores_of(config: TrainConfig, stores: Mapping[str, str]) -> tuple[str, ...]:
    """The label stores that the objective reads of those that are there (name → level), fine levels first. Raises
    UserError where a named one is missing, a level has two, or there are none, or several for an objective of one."""
    objective, main_level = objective_of(config), SENONE if config.main == SENONE else SUBWORD
    # how many stores other levels have is no matter here
    if objective.teaches_main and not config.stores and not config.levels:
        stores = {name: level for name, level in stores.items() if level == main_level}
    check_names("stores", config.stores, stores, f"label stores ({', '.join(stores) or 'there is none'})")
    chosen = config.stores or tuple(name for name in stores if not config.levels or stores[name] in config.levels)
    of_level: dict[str, list[str]] = {}
    for name in chosen:
        of_level.setdefault(stores[name], []).append(name)
    for level in config.levels:
        if level not in of_level:
            run = f"hkd teacher-dump --unit {level}"
            raise UserError(f"`levels` must have label stores, but '{level}' has none. Run `{run}` first.")
    for level, names in of_level.items():
        if len(names) > 1 and not config.stores:
            same, remedy = ", ".join(names), "Name those to use: --set stores='[...]'."
            raise UserError(f"a level must have one label store, but {level} has {same}. {remedy}")
    if objective.teaches_main:
        chosen = tuple(name for name in chosen if stores[name] == main_level)
    rank = {level: number for number, level in enumerate(UNIT_LEVELS)}
    chosen = tuple(sorted(chosen, key=lambda name: (rank.get(stores[name], len(rank)), name)))
    if objective.stores == "one" and len(chosen) != 1:
        fault = f"objective {config.objective} takes one label store, but {', '.join(chosen) or 'none'} would do"
        raise UserError(f"{fault}. Name it: --set stores='[\"NAME\"]' or --set levels='[\"LEVEL\"]'.")
    if not chosen:
        fault = f"objective {config.objective} takes label stores, but there is none"
        raise UserError(f"{fault}. Run `hkd teacher-dump` first.")
    return chosen


def slots_of(config: TrainConfig, level: str) -> int:
    return config.slots.get(level, default_slots(level))


@dataclass(frozen=True, kw_only=True)
class StudentPlan:
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

    def legend(self, weights: Mapping[str, float]) -> list[str]:
        """A line a term: its weight and name, the output that it teaches, and by what."""
        lines, depth = ["the loss is the sum of"], self.student.encoder.num_layers
        for head, term in ((None, self.main), *self.taught):
            if head is None:
                reference = "the aligned senones" if self.student.main == SENONE else "the transcript"
            else:
                reference = f"the aligned {head.level}s" if head.kind == "hard" else ""
            output = "the main output" if head is None else f"a head at layer {head.tap} of {depth}"
            taught_by = " and ".join(filter(None, (reference, f"the labels of {term.store}" if term.store else "")))
            lines.append(f"  {weights[term.name]:g} × {term.name}: {output}, taught by {taught_by}")
        return lines

    @property
    def soft(self) -> dict[str, int]:
        """The label stores that the terms read."""
        return {term.store: term.num_slots for term in self.terms if term.store is not None}


def encoder_of(config: TrainConfig) -> EncoderConfig | SpeechEncoderConfig:
    """hkd's own encoder, its upstream opened, or the named one. Raises UserError, HkdError where that cannot be had."""
    encoder = config.encoder
    if encoder.upstream_folder:
        where = "encoder.upstream may be a folder. It says where an export has its own."
        raise UserError(f"encoder.upstream_folder must be left out: {where}")
    if encoder.upstream:
        rule = "be left out where encoder.upstream is given"
        check_setting("encoder.num_bins", encoder.num_bins, rule, encoder.num_bins == NUM_BINS)
        return replace(encoder, num_bins=Upstream(name=encoder.upstream).width // ROWS)
    return open_speech_encoder(encoder) if encoder.name else encoder


def plan_student(config: TrainConfig, needs: DataNeeds, join: Join) -> StudentPlan:
    """Heads and terms. Raises UserError where a temperature has not been dumped, or a head's settings do not fit."""
    known = {*UNIT_LEVELS, *(join.alignment.inventories if join.alignment is not None else ())}
    levels = f"levels ({', '.join(sorted(known))})"
    or_stores = f" or label stores ({', '.join(needs.stores)})" if needs.stores else ""
    check_names("taps", config.taps, {*known, *needs.stores}, f"{levels}{or_stores}")
    for name in ("slots", "stride", "alphas"):
        check_names(name, getattr(config, name), known, levels)
    hybrid, usual = config.main == SENONE, default_slots(SENONE)
    if hybrid and config.stride.get(SENONE, 1) > 1:
        raise UserError("`stride.senone` must be 1 where `main` is senone: its own loss takes every slot. Take it out.")
    if hybrid and SENONE in needs.hard and slots_of(config, SENONE) != usual:
        where = "where `main` is senone, with a hard head at that level"
        raise UserError(f"`slots.senone` must be {usual} {where}. Take it out.")
    encoder, objective = encoder_of(config), objective_of(config)
    given = ObjectiveInputs(config=config, stores=needs.stores, join=join, num_layers=encoder.num_layers)
    hard = {level: slots_of(config, level) for level in needs.hard}
    taught = (*(_hard_head(given, level) for level in hard), *objective.heads(given))
    if hybrid:
        hard[SENONE] = usual
    heads = _conditioned(config, tuple(head for head, _ in taught if head is not None))
    num_main = num_units_of(join, SENONE) if hybrid else len(join.subwords.inventory) + 1
    student = StudentConfig(encoder=encoder, num_main_units=num_main, main=config.main, heads=heads)
    return StudentPlan(
        student=student, main=objective.main(given), plain_main=plain_main(given), taught=taught, hard=hard
    )


def _conditioned(config: TrainConfig, heads: tuple[HeadConfig, ...]) -> tuple[HeadConfig, ...]:
    """The heads, those that `condition` names marked. Raises UserError for a name that is none of theirs."""
    chosen = {f"hard-{name}" if name in UNIT_LEVELS else name for name in config.condition}
    known = (*UNIT_LEVELS, *(head.name for head in heads if head.kind == "aux"))
    check_names("condition", chosen, {head.name for head in heads}, f"levels or heads ({', '.join(known)})")
    return tuple(replace(head, condition=head.name in chosen) for head in heads)


def _hard_head(given: "ObjectiveInputs", level: str) -> Taught:
    head = given.head(f"hard-{level}", level, "hard", num_units_of(given.join, level))
    return head, HardTerm(name=head.name, head=head.name, level=level, label_smoothing=given.config.label_smoothing)


def _auxiliary(given: "ObjectiveInputs", store: str) -> Taught:
    kd, joined = given.kd(store), given.join.stores[store]
    head = given.head(f"kd-{store}", joined.level, "aux", joined.num_units)
    if kd.where == "ctc":
        rule = f"be frames or segments for label store '{store}' ({joined.level})"
        check_setting("`kd.where`", "ctc", rule, joined.level == SUBWORD)
        check_setting(f"`slots.{joined.level}`", head.slots, "be 1 where `kd.where` is ctc", head.slots == 1)
        column = _mixed(given, store, "`kd.where` ctc")
        return head, CtcKdTerm(name=head.name, head=head.name, store=store, kd=kd, column=column)
    column, selection = _column(given, store), joined.reader.spec.selection
    fits = (kd.tail == "sampled") == (selection == "sample")
    check_setting("`kd.tail`", f"'{kd.tail}'", f"fit label store '{store}', whose selection is {selection},", fits)
    _check_tail(given, store)
    return head, KdTerm(name=head.name, head=head.name, store=store, kd=kd, column=column, num_slots=head.slots)


def _column(given: "ObjectiveInputs", store: str) -> int | None:
    """Where a store's rows hold the normaliser of the teacher's temperature, if needed. Raises UserError if nowhere."""
    kd, spec = given.kd(store), given.join.stores[store].reader.spec
    if kd.temperature == 1 or spec.width >= len(spec.inventory) or kd.tail == "renormalised":
        return None
    if kd.temperature not in spec.temperatures:
        known = ", ".join(f"{t:g}" for t in (1.0, *spec.temperatures))
        raise UserError(
            f"`kd.temperature` must be one that label store '{store}' holds ({known}), but is {kd.temperature:g} "
            f"instead. Dump again with --set temperatures=[{kd.temperature:g}]."
        )
    return spec.temperatures.index(kd.temperature)


def _mixed(given: "ObjectiveInputs", store: str, what: str) -> int | None:
    """_column, for losses that hold the teacher's distribution against the student's softmax at temperature 1."""
    kd, selection = given.kd(store), given.join.stores[store].reader.spec.selection
    if selection != "topk":
        rule = "take a label store of the selection topk"
        raise UserError(f"interpolation and `kd.where` ctc {rule}, but that of '{store}' is {selection} instead.")
    check_setting("`kd.tail`", kd.tail, f"be ghost or renormalised with {what}", kd.tail in ("ghost", "renormalised"))
    _check_tail(given, store)
    own = kd.student_temperature or kd.temperature
    if own != 1:
        raise UserError(
            f"`kd.student_temperature` must be 1 with {what} (its targets are for the student's one softmax), but is "
            f"{own:g} for label store '{store}' instead. Take --set kd.student_temperature=1."
        )
    return _column(given, store)


def _check_tail(given: "ObjectiveInputs", store: str) -> None:
    """Raises UserError where the tail is to be one outcome, but holds mass that was not placed on any unit."""
    if given.kd(store).tail == "ghost" and is_projected(given.join.stores[store].reader):
        raise UserError(
            f"`kd.tail` must be renormalised for label store '{store}', whose tail holds what its projection could not "
            "place and may belong to the kept units, but is ghost instead. Take --set kd.tail=renormalised."
        )


def is_projected(reader: LabelReader) -> bool:
    """Whether a store's labels were computed for the student's pieces from an LM with others (`teacher.project`)."""
    return "project" in reader.spec.teacher.get("options", {})


def num_units_of(join: Join, level: str) -> int:
    """The size of a level's own inventory."""
    inventory = join.inventory(level)
    if inventory is None:
        raise UserError(f"a hard head at level {level} needs an alignment with that level. Run `hkd align` first.")
    return len(inventory)


def describe_heads(join: Join, student: StudentConfig) -> dict[str, dict[str, object]]:
    """What scoring needs of each head: its store, and the store's unit of each head unit but the rest (null: all)."""
    rows: dict[str, dict[str, object]] = {}
    for head in student.heads:
        store = join.stores.get(head.name.removeprefix("kd-")) if head.kind == "aux" else None
        row: dict[str, object] = {"level": head.level, "kind": head.kind, "slots": head.slots}
        row["store"] = store and store.name
        if store is not None:
            whole = np.array_equal(store.head_unit_V, np.arange(len(store.head_unit_V)))
            row["inventory"] = store.reader.spec.inventory.digest
            row["units"] = None if whole else np.flatnonzero(store.head_unit_V < store.num_units - 1).tolist()
        rows[head.name] = row
    return rows


@dataclass(frozen=True, kw_only=True)
class ObjectiveInputs:
    """What an objective makes its terms and heads of."""

    config: TrainConfig
    stores: tuple[str, ...]  # that it reads
    join: Join
    num_layers: int  # of the encoder

    def kd(self, store: str) -> KdConfig:
        """How a head learns from a store: its settings, with what the store asks for where `tail` is auto."""
        kd, reader = self.config.kds.get(store, self.config.kd), self.join.stores[store].reader
        usual = "renormalised" if is_projected(reader) else "sampled" if reader.spec.selection == "sample" else "ghost"
        return replace(kd, tail=usual) if kd.tail == "auto" else kd

    def head(self, name: str, level: str, kind: str, num_units: int) -> HeadConfig:
        """A head at the layer that the settings give its label store, else its level; with the slots of its level."""
        taps, own = self.config.taps, name.removeprefix("kd-") if kind == "aux" else level
        tap = taps.get(own, taps.get(level, default_tap(level, self.num_layers)))
        slots = slots_of(self.config, level)
        return HeadConfig(name=name, level=level, kind=kind, num_units=num_units, tap=tap, slots=slots)


def plain_main(given: ObjectiveInputs) -> Term:
    """The main output against the reference."""
    return HybridTerm() if given.config.main == SENONE else CtcTerm()


def mixed_main(given: ObjectiveInputs) -> Term:
    """The main output against the reference mixed with the teacher's labels."""
    [store], hybrid = given.stores, given.config.main == SENONE
    kd, where = given.kd(store), ("frames",) if hybrid else ("frames", "ctc")
    rule = f"be {' or '.join(where)} with interpolation (every frame of the main output is taught)"
    check_setting("`kd.where`", kd.where, rule, kd.where in where, "Take --set kd.where=frames.")
    column = _mixed(given, store, "objective interpolation")
    kind = HybridTerm if hybrid else CtcTerm
    return kind(store=store, weight=given.config.interpolation_weight, kd=kd, column=column)


def auxiliary_heads(given: ObjectiveInputs) -> list[Taught]:
    return [_auxiliary(given, store) for store in given.stores]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An entry of the registry. main, heads: the main output's term; each further head, if any, with its term."""

    name: str
    help: str  # one line, for people
    stores: str = "none"  # none | one | many: label stores that it reads
    main: Callable[[ObjectiveInputs], Term] = plain_main
    heads: Callable[[ObjectiveInputs], list[Taught]] = lambda given: []
    teaches_main: bool = False  # its label store is over the main output's own units
    hard_heads: bool = False  # without `hard_heads`, which an objective without label stores does not read


OBJECTIVES: dict[str, Objective] = {}


def register(objective: Objective) -> Objective:
    """Make an objective known by its name."""
    OBJECTIVES[objective.name] = objective
    return objective


def objective_of(config: TrainConfig) -> Objective:
    """The objective that is named. Raises UserError where there is none of that name."""
    check_choice("`objective`", config.objective, OBJECTIVES)
    return OBJECTIVES[config.objective]


for objective in (
    Objective(name="none", help="the main loss alone, no language model"),
    Objective(name="hard-heads", help="reference labels on inner layers, no language model", hard_heads=True),
    Objective(
        name="interpolation", help="a language model's distribution mixed into the main output's targets",
        stores="one", main=mixed_main, teaches_main=True,
    ),
    Objective(
        name="auxiliary", help="one auxiliary output layer taught by a language model", stores="one",
        heads=auxiliary_heads,
    ),
    Objective(
        name="hierarchical",
        help="auxiliary output layers at several levels, each taught by a language model over its own units",
        stores="many", heads=auxiliary_heads, hard_heads=True,
    ),
):  # fmt: skip
    register(objective)
