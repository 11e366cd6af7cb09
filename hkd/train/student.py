"""Objective → the student's heads and the terms of its loss."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hkd.errors import UserError
from hkd.features.upstream import Upstream
from hkd.stream.join import Join
from hkd.student.config import NUM_BINS, EncoderConfig, HeadConfig, SpeechEncoderConfig, StudentConfig, default_slots, default_tap
from hkd.student.speech_encoder import open_speech_encoder
from hkd.train.config import KdConfig, TrainConfig
from hkd.train.terms import CtcKdTerm, CtcTerm, HardTerm, HybridTerm, InterpolationTerm, KdTerm, Term
from hkd.units.level import LEVELS, SENONE, SUBWORD, UNIT_LEVELS


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an objective takes from the data: label stores, levels of hard heads, and stores that must be in the student's units."""

    stores: tuple[str, ...]
    hard: tuple[str, ...]
    same_units: tuple[str, ...]

    @property
    def alignment(self) -> bool:
        """Whether an alignment is needed."""
        return bool(self.hard) or any(name not in self.same_units for name in self.stores)


def needs_of(config: TrainConfig, stores: Mapping[str, str], *, aligned: bool) -> Needs:
    """stores: name → level, all that are there. Raises UserError where the objective cannot be had from them, or it is not clear which."""
    objective, hybrid = config.objective, config.main == "senone"
    chosen = _stores(config, stores) if objective in ("interpolation", "auxiliary", "hierarchical") else ()
    if objective == "interpolation":
        level = SENONE if hybrid else SUBWORD
        chosen = tuple(name for name in chosen if stores[name] == level)
    if objective in ("interpolation", "auxiliary") and len(chosen) != 1:
        raise UserError(
            f"objective {objective} takes one label store, but {', '.join(chosen) or 'none'} would do. "
            "Name it: --set stores='[\"NAME\"]' or --set levels='[\"LEVEL\"]'."
        )
    if objective == "hierarchical" and not chosen:
        raise UserError("objective hierarchical takes label stores, but there is none. Run `hkd teacher-dump` first.")
    hard: tuple[str, ...] = ()
    if config.with_hard_heads:
        taught = {stores[name] for name in chosen} if objective != "interpolation" else set()
        wanted = taught or set(config.levels) or set(LEVELS)
        hard = tuple(level for level in UNIT_LEVELS if level in wanted)
    ctc = tuple(name for name in chosen if _kd(config, name).where == "ctc" or objective == "interpolation")
    needs = Needs(stores=chosen, hard=hard, same_units=ctc)
    if (needs.alignment or hybrid) and not aligned:
        raise UserError(f"objective {objective} needs an alignment, but there is none. Run `hkd align` first.")
    return needs


def _stores(config: TrainConfig, stores: Mapping[str, str]) -> tuple[str, ...]:
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
    terms: tuple[Term, ...]  # the main one first
    hard: dict[str, int]
    soft: dict[str, int]


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
    hybrid = config.main == "senone"
    if hybrid and config.stride.get(SENONE, 1) > 1:
        raise UserError("`stride.senone` must be 1 where `main` is senone: its own loss takes every slot. Take it out.")
    encoder = encoder_of(config)
    heads: list[HeadConfig] = []
    terms: list[Term] = []
    hard = {level: slots_of(config, level) for level in needs.hard}
    soft: dict[str, int] = {}
    if config.objective == "interpolation":
        [store] = needs.stores
        kd = _kd(config, store)
        where = ("frames",) if hybrid else ("frames", "ctc")
        if kd.where not in where:
            raise UserError(
                f"`kd.where` must be {' or '.join(where)} with interpolation (every frame of the main output is taught), "
                f"but is {kd.where} instead. Take --set kd.where=frames."
            )
        column = _mixed(join, store, kd, "objective interpolation")
        kind = HybridTerm if hybrid else InterpolationTerm
        terms.append(kind(store=store, weight=config.interpolation_weight, kd=kd, column=column))
        soft[store] = default_slots(SENONE) if hybrid else 0
    else:
        terms.append(HybridTerm() if hybrid else CtcTerm())
    if hybrid:
        hard[SENONE] = default_slots(SENONE)
    for level in needs.hard if config.with_hard_heads else ():
        name = f"hard-{level}"
        tap = config.taps.get(level, default_tap(level, encoder.num_layers))
        num_units = num_units_of(join, level)
        heads.append(HeadConfig(name=name, level=level, kind="hard", num_units=num_units, tap=tap, slots=hard[level]))
        terms.append(HardTerm(name=name, head=name, level=level, label_smoothing=config.label_smoothing))
    for store in needs.stores if config.objective in ("auxiliary", "hierarchical") else ():
        head, term = _auxiliary(config, join, store, encoder.num_layers)
        soft[store] = 0 if isinstance(term, CtcKdTerm) else head.slots
        heads.append(head)
        terms.append(term)
    num_main = num_units_of(join, SENONE) if hybrid else len(join.subwords.inventory) + 1
    student = StudentConfig(encoder=encoder, num_main_units=num_main, main=config.main, heads=tuple(heads))
    return Plan(student=student, terms=tuple(terms), hard=hard, soft=soft)


def _auxiliary(config: TrainConfig, join: Join, store: str, num_layers: int) -> tuple[HeadConfig, Term]:
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
    return head, KdTerm(name=head.name, head=head.name, store=store, kd=kd, column=column)


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


def _check_tail(join: Join, store: str, kd: KdConfig) -> None:
    """Raises UserError where the tail is to be one outcome, but holds mass that was not placed on any unit."""
    if kd.tail == "ghost" and "project" in join.stores[store].reader.spec.teacher.get("options", {}):
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
