"""Manifest, alignment and label stores together: what each utterance has, and whether the parts fit.

- Refused, in one line with both digests: a transcript that was edited after alignment or labelling, an inventory that
  does not fit, an alignment that gives another unit sequence than the labels were made for. Moved audio, other splits
  and re-timing are accepted.
- An auxiliary head has its store's own units that any row keeps; all others are one rest unit, part of the tail.

Shape letters: U positions of an utterance, V units.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, Positions, UtteranceAlignment, positions, sequence_digest, word_positions
from hkd.errors import UserError, some
from hkd.labels.format import LEFT_OUT
from hkd.labels.store import LabelReader
from hkd.manifest import Manifest, Utterance
from hkd.timebase import SUBSAMPLING, num_encoder_frames, retime, slot_middles
from hkd.units.inventory import SPELLED, SUBWORD, UnitInventory
from hkd.units.sequences import SubwordModel, letters_per_unit, model_file
from hkd.units.text import text_digest, words

KEPT_UTTERANCES = 100_000


@dataclass(frozen=True, kw_only=True)
class JoinedStore:
    """A label store as a head sees it. `head_unit_V`: store id → head unit, the last one for ids that no row keeps."""

    name: str
    level: str
    reader: LabelReader
    own_units: bool  # the positions are those of the alignment's or the student's own units, not of foreign pieces
    head_unit_V: NDArray[np.int64]
    num_units: int

    def labels(self, utterance_id: str) -> bool:
        """Whether the store labels an utterance: it is there, and was not left out of the dump."""
        return utterance_id in self.reader and self.reader.unit_digest(utterance_id) != LEFT_OUT


class Join:
    """Each utterance's units and when they were spoken. Raises UserError where the parts do not fit together."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        subwords: SubwordModel | None,
        alignment: Alignment | None = None,
        stores: Mapping[str, LabelReader] | None = None,
        same_units: Iterable[str] = (),
        trim: bool = True,
        units: Path | None = None,
        beside: Mapping[str, LabelReader] | None = None,
    ) -> None:
        """subwords: the student's own; None where it has none: stores of subwords are foreign pieces then. same_units:
        stores whose inventory must equal the student's subwords (interpolation, ctc). trim: drop ids that no row keeps,
        here or in the stores of that name in `beside`. units: the folder with the models of other spelled levels; by
        default that of the subwords' model."""
        self.manifest, self.alignment = manifest, alignment
        self._units = units if units is not None or subwords is None else subwords.path.parent
        self._spellings = {} if subwords is None else {SUBWORD: subwords}
        self.stores = {
            name: self._joined(name, reader, name in set(same_units), trim, (beside or {}).get(name))
            for name, reader in (stores or {}).items()
        }
        self.words = lru_cache(KEPT_UTTERANCES)(self._words)
        self.segments = lru_cache(KEPT_UTTERANCES)(self._segments)
        self.positions = lru_cache(KEPT_UTTERANCES)(self._positions)
        self._letters_V = lru_cache(None)(self._letters)

    def __reduce__(self) -> tuple[Callable[..., "Join"], tuple[object, ...]]:
        paths = [part and part.path for part in (self._spellings.get(SUBWORD), self.alignment)]
        return _rejoin, (self.manifest, *paths, self.stores, self._units)

    @property
    def subwords(self) -> SubwordModel:
        """The student's own subwords. Raises UserError where there are none."""
        return self.spelling(SUBWORD)

    def spelling(self, level: str) -> SubwordModel:
        """The model of a spelled level: the student's subwords, or what lies in the units' folder."""
        if level not in self._spellings:
            if self._units is None:
                remedy = "Give the file subword.model of your pieces."
                raise UserError(f"units of the level {level} need their model. {remedy}")
            self._spellings[level] = SubwordModel(self._units / model_file(level), level=level)
        return self._spellings[level]

    def inventory(self, level: str) -> UnitInventory | None:
        """The student's own units of a level; None where the alignment lacks it."""
        if level in SPELLED:
            return None if self._units is None else self.spelling(level).inventory
        return self.alignment.inventories.get(level) if self.alignment is not None else None

    def _joined(
        self, name: str, reader: LabelReader, same_units: bool, trim: bool, beside: LabelReader | None
    ) -> JoinedStore:
        spec, inventory = reader.spec, self.inventory(reader.spec.level)
        must_be_own = same_units or spec.level != SUBWORD
        if inventory is None and must_be_own:
            raise UserError(f"label store '{name}' needs an alignment with level {spec.level}. Run `hkd align` first.")
        own = inventory is not None and inventory.digest == spec.inventory.digest
        if inventory is not None and must_be_own and not own:
            whose = f"the {'student' if spec.level in SPELLED else 'alignment'}'s {spec.level} inventory"
            remedy = "Dump"
            if spec.level == SUBWORD:
                dump = "hkd teacher-dump --lm LM --unit subword --name projected"
                dump += " --set teacher.project=units/subword.json"
                remedy = f"Take the objective auxiliary, or run `{dump}`: it dumps"
            raise UserError(
                f"label store '{name}' must have {whose}, digest {inventory.digest}, but has {spec.inventory.digest} "
                f"instead. {remedy} labels in these units."
            )
        num_all = len(spec.inventory)
        kept = reader.kept_ids() if trim and not same_units else np.arange(num_all)
        kept = kept if beside is None else np.union1d(kept, beside.kept_ids())
        head_unit_V = np.full(num_all, min(len(kept), num_all - 1), np.int64)
        head_unit_V[kept] = np.arange(len(kept))
        return JoinedStore(
            name=name, level=spec.level, reader=reader, own_units=own, head_unit_V=head_unit_V,
            num_units=len(kept) + (len(kept) < num_all),
        )  # fmt: skip

    def aligned(self, utterance_id: str) -> bool:
        return self.alignment is not None and utterance_id in self.alignment

    def target(self, utterance: Utterance) -> NDArray[np.int32]:
        """Its subwords, unit_U."""
        return self.subwords.encode(self.words(utterance.id))[0]

    def _words(self, utterance_id: str) -> tuple[str, ...]:
        return tuple(words(self.manifest.by_id(utterance_id).text))

    def _segments(self, utterance_id: str, level: str) -> Positions:
        """What is said when, at a level, for hard heads: aligned levels with silence, subwords without."""
        assert self.alignment is not None
        row = self.alignment[utterance_id]
        return self.spelled(row, level) if level in SPELLED else positions(row.tiers[level], ())

    def _positions(self, utterance_id: str, name: str) -> Positions:
        """The frames of the positions that a store labels."""
        assert self.alignment is not None
        store = self.stores[name]
        if store.level not in SPELLED:
            return self.alignment.positions(utterance_id, store.level)
        if store.own_units:
            return self.segments(utterance_id, store.level)
        return self.spelled(self.alignment[utterance_id], store.level, name)

    def spelled(self, row: UtteranceAlignment, level: str, store: str | None = None) -> Positions:
        """The frames of an utterance's own pieces, along its words; with `store`, of the pieces that it labels."""
        if store is None or self.stores[store].own_units:
            unit_U, word_U = self.spelling(level).encode(self.words(row.id))
            return word_positions(row, word_U, unit_U, letters_V=self._letters_V(None, level))
        block = self.stores[store].reader.block([row.id])
        return word_positions(row, block.word_N, block.topk.gold_N, letters_V=self._letters_V(store, level))

    def _letters(self, store: str | None, level: str) -> NDArray[np.int64]:
        """Letters of each piece of a store's inventory; of the student's own of the level for None."""
        inventory = self.spelling(level).inventory if store is None else self.stores[store].reader.spec.inventory
        return letters_per_unit(inventory.symbols)

    def check(
        self,
        utterances: Iterable[Utterance],
        *,
        num_frames: Mapping[str, int] | None = None,
        sequences: Mapping[str, Sequence[NDArray[np.int32]]] | None = None,
    ) -> dict[str, int]:
        """Compare every utterance's transcript and unit sequences with alignment and stores: UserError at a misfit.
        Returns id → encoder frames that CTC needs for its subwords (none where the student has none). num_frames: id →
        10 ms frames. sequences: aligned level → units of the utterances, in order, where they are not aligned."""
        aligned, needed = self.alignment, dict[str, int]()
        levels = {store.level for store in self.stores.values() if store.own_units}.difference(SPELLED)
        known = {level: aligned.sequence_digests(level) for level in levels} if aligned is not None else {}
        for number, utterance in enumerate(utterances):
            name, said = utterance.id, words(utterance.text)
            text, row = text_digest(said), None if aligned is None else aligned.row(name)
            digests = {level: sequence_digest(units[number]) for level, units in (sequences or {}).items()}
            if aligned is not None and row is not None:
                digests |= {level: found[row] for level, found in known.items()}
                if aligned.text_digests[row] != text:
                    _refuse_text(name, "aligned", aligned.text_digests[row], text, "Run `hkd align` again.")
                if num_frames is not None and abs(int(aligned.frames_N[row]) - num_frames[name]) > 5:
                    raise UserError(
                        f"utterance '{name}': the alignment must cover its {num_frames[name]} frames, but covers "
                        f"{aligned.frames_N[row]}. Run `hkd align` again."
                    )
            if SUBWORD in self._spellings:
                target_U = self.subwords.encode(said)[0]
                needed[name] = len(target_U) + int((target_U[1:] == target_U[:-1]).sum())
                digests[SUBWORD] = sequence_digest(target_U)
            for store in self.stores.values():
                if store.labels(name):
                    self._check_store(name, store, said, text, digests)
        return needed

    def _check_store(
        self, name: str, store: JoinedStore, said: Sequence[str], text: bytes, digests: dict[str, bytes]
    ) -> None:
        """digests: level → digest of the utterance's units, of those levels that it has."""
        again = f"Run `hkd teacher-dump` for '{store.name}' again."
        if (there := store.reader.text_digest(name)) != text:
            _refuse_text(name, f"labelled in store '{store.name}'", there, text, again)
        if not store.own_units or (store.level not in SPELLED and store.level not in digests):
            return
        if store.level not in digests:
            digests[store.level] = sequence_digest(self.spelling(store.level).encode(said)[0])
        if (there := store.reader.unit_digest(name)) != (here := digests[store.level]):
            source = f"{store.level} model" if store.level in SPELLED else "alignment"
            raise UserError(
                f"utterance '{name}': the {source} must give the {store.level} sequence that label store "
                f"'{store.name}' was made for, digest {there.hex()}, but gives {here.hex()} instead. {again}"
            )


def _refuse_text(utterance_id: str, what: str, there: bytes, here: bytes, remedy: str) -> None:
    raise UserError(
        f"utterance '{utterance_id}': the transcript must be the one that was {what}, digest {there.hex()}, but is "
        f"another, digest {here.hex()}. {remedy}"
    )


def _rejoin(
    manifest: Manifest, subwords: Path | None, alignment: Path | None, stores: Mapping[str, JoinedStore], units: Path
) -> Join:
    aligned = Alignment(alignment) if alignment is not None else None
    join = Join(manifest, subwords=None if subwords is None else SubwordModel(subwords), alignment=aligned, units=units)
    join.stores = dict(stores)
    return join


# Labels of positions → labels of slots, placed at load, so that speed perturbation re-times them. A slot takes that of
# the position that covers its middle frame, or else the last one. U positions, S slots, M labelled slots.


def place(
    positions: Positions, *, num_frames: int, slots: int, speed: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(slot_M, position_M): the slots of an utterance of `num_frames` frames (at that speed) that a position covers,
    and which. Positions are in order and do not overlap; empty ones and those between slot middles cover none."""
    width = SUBSAMPLING // slots
    middle_S = np.minimum(slot_middles(num_frames, slots), num_frames - 1)[: -(-num_frames // width)]
    return covering(positions, middle_S, speed=speed)


def covering(
    positions: Positions, middle_S: NDArray[np.int64], *, speed: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(slot_M, position_M): the slots, by their middle frames (at that speed), that a position covers, and which."""
    start_U, stop_U = positions.start_U.astype(np.int64), positions.stop_U.astype(np.int64)
    if speed != 1:
        start_U, stop_U = retime(start_U, speed), retime(stop_U, speed)
    filled = np.flatnonzero(stop_U > start_U)
    if not len(filled):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    nearest_S = np.searchsorted(start_U[filled], middle_S, side="right") - 1
    position_S = filled[np.maximum(nearest_S, 0)]
    covered_S = (nearest_S >= 0) & (middle_S < stop_U[position_S])
    return np.flatnonzero(covered_S), position_S[covered_S]


# How much of the training utterances has labels, level by level: said before step one, refused where it is too little.


SHOWN = 5
SAMPLED = 2000  # utterances whose slots are counted


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelCoverage:
    """What one head's labels cover. Positions and slots are counted of `sampled` utterances, the same for all heads.
    `unplaced`: positions between slot middles, which no slot carries (at speed 1)."""

    head: str
    level: str
    utterances: int
    covered: int
    missing: tuple[str, ...]  # some ids
    sampled: int
    positions: int
    unplaced: int
    slots: int
    labelled: int  # slots

    @property
    def share(self) -> float:
        """Of the utterances."""
        return self.covered / max(1, self.utterances)


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The heads' coverage, and the utterances that are too short for their transcript (CTC gives them no gradient)."""

    heads: tuple[LevelCoverage, ...]
    utterances: int
    frames: int
    too_short: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        lines = [f"{self.utterances} utterances, {self.frames / 6000:.1f} minutes"]
        for head in self.heads:
            of = f" of {head.sampled} utterances" if head.sampled < head.utterances else ""
            line = f"  {head.head:<20} {head.share:7.1%} of utterances, {head.positions:,} positions{of}"
            if head.slots:
                line += f", on {head.labelled / head.slots:.1%} of the time slots"
            if head.unplaced:
                unplaced = f"{head.unplaced:,} ({head.unplaced / head.positions:.1%})"
                line += f"; {unplaced} are too short for a slot and left out"
            lines.append(line)
        if any(head.slots for head in self.heads):
            slot = "A time slot is where a head gives one answer"
            lines.append(f"  {slot}; those without a label teach nothing (most are silence).")
        if self.too_short:
            said = "too short for their transcript, no CTC gradient"
            lines.append(f"  {said}: {len(self.too_short)} ({some(self.too_short)})")
        return "\n".join(lines)


def measure(
    join: Join,
    utterances: Sequence[Utterance],
    *,
    frames: Mapping[str, int],
    needed: Mapping[str, int],
    hard: Mapping[str, int],
    soft: Mapping[str, int],
) -> Coverage:
    """frames: id → 10 ms frames; needed: of `Join.check`; hard: level → slots; soft: store → slots."""
    heads = [_covered(join, utterances, frames, f"hard {level}", level, None, slots) for level, slots in hard.items()]
    for name, slots in soft.items():
        heads.append(_covered(join, utterances, frames, f"labels {name}", join.stores[name].level, name, slots))
    too_short = tuple(u.id for u in utterances if num_encoder_frames(frames[u.id]) < needed.get(u.id, 0))
    num_frames = sum(frames[u.id] for u in utterances)
    return Coverage(heads=tuple(heads), utterances=len(utterances), frames=num_frames, too_short=too_short)


def _covered(
    join: Join,
    utterances: Sequence[Utterance],
    frames: Mapping[str, int],
    head: str,
    level: str,
    store: str | None,
    slots: int,
) -> LevelCoverage:
    def has_labels(name: str) -> bool:
        return (not slots or join.aligned(name)) and (store is None or join.stores[store].labels(name))

    missing = [utterance.id for utterance in utterances if not has_labels(utterance.id)]
    without, sample = set(missing), utterances[:: -(-len(utterances) // SAMPLED) or 1]
    num_positions = unplaced = labelled = 0
    for utterance in (u for u in sample if u.id not in without):
        name = utterance.id
        if not slots:
            num_positions += len(join.target(utterance))
            continue
        found = join.segments(name, level) if store is None else join.positions(name, store)
        slot_M, position_M = place(found, num_frames=frames[name], slots=slots)
        num_positions += len(found.start_U)
        unplaced += len(found.start_U) - len(np.unique(position_M))
        labelled += len(slot_M)
    return LevelCoverage(
        head=head, level=level, utterances=len(utterances), covered=len(utterances) - len(missing),
        missing=tuple(missing[:SHOWN]), sampled=len(sample), positions=num_positions, unplaced=unplaced,
        slots=sum(num_encoder_frames(frames[u.id]) * slots for u in sample), labelled=labelled,
    )  # fmt: skip


def require(coverage: Coverage, min_coverage: float) -> None:
    """Raises UserError naming the first head with labels for less than `min_coverage`, and some that lack them."""
    for head in coverage.heads:
        if head.share < min_coverage:
            named, reached = ", ".join(head.missing), f"{int(head.share * 10000) / 10000:g}"
            raise UserError(
                f"`min_coverage` must be reached by every head, but '{head.head}' has labels for {head.covered} of "
                f"{head.utterances} utterances, {head.share:.4f} < {min_coverage:g} (missing: {named}). Align and "
                f"label them, or give --min-coverage {reached}."
            )
