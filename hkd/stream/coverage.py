"""How much of the training utterances has labels, level by level: said before step one, and refused where it is too little."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hkd.errors import UserError
from hkd.manifest import Utterance
from hkd.stream.join import Join
from hkd.stream.place import place
from hkd.timebase import num_encoder_frames

SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelCoverage:
    """What one head's labels cover. `unplaced`: positions between slot middles, which no slot carries (at speed 1)."""

    head: str
    level: str
    utterances: int
    covered: int
    missing: tuple[str, ...]  # some ids
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
        """Plain values."""
        return asdict(self)

    def text(self) -> str:
        """A line a head."""
        lines = [f"{self.utterances} utterances, {self.frames / 6000:.1f} minutes"]
        for head in self.heads:
            lines.append(
                f"  {head.head:<20} {head.share:7.1%} of utterances, {head.positions} positions"
                + (
                    f", {head.unplaced} of them without a slot ({head.unplaced / max(1, head.positions):.1%}), "
                    f"{head.labelled / head.slots:.1%} of slots labelled"
                    if head.slots
                    else ""
                )
            )
        if self.too_short:
            lines.append(
                f"  too short for their transcript, no CTC gradient: {len(self.too_short)} ({', '.join(self.too_short[:SHOWN])})"
            )
        return "\n".join(lines)


def measure(
    join: Join, utterances: Sequence[Utterance], *, frames: Mapping[str, int], hard: Mapping[str, int], soft: Mapping[str, int]
) -> Coverage:
    """frames: utterance → 10 ms frames; hard: level → slots; soft: store → slots."""
    heads = [_one(join, utterances, frames, f"hard {level}", level, None, slots) for level, slots in hard.items()]
    heads += [
        _one(join, utterances, frames, f"labels {name}", join.stores[name].level, name, slots) for name, slots in soft.items()
    ]
    too_short = []
    for utterance in utterances:
        target_U = join.target(utterance)
        needed = len(target_U) + int((target_U[1:] == target_U[:-1]).sum())
        if num_encoder_frames(frames[utterance.id]) < needed:
            too_short.append(utterance.id)
    return Coverage(
        heads=tuple(heads), utterances=len(utterances), frames=sum(frames[u.id] for u in utterances), too_short=tuple(too_short)
    )


def _one(
    join: Join, utterances: Sequence[Utterance], frames: Mapping[str, int], head: str, level: str, store: str | None, slots: int
) -> LevelCoverage:
    missing: list[str] = []
    num_positions = unplaced = labelled = num_slots = 0
    for utterance in utterances:
        name = utterance.id
        num_slots += num_encoder_frames(frames[name]) * slots
        if (slots and not join.aligned(name)) or (store is not None and not join.stores[store].labels(name)):
            missing.append(name)
            continue
        if not slots:
            num_positions += len(join.target(utterance))
            continue
        found = join.segments(name, level) if store is None else join.positions(name, store)
        slot_M, position_M = place(found, num_frames=frames[name], slots=slots)
        num_positions += len(found.start_U)
        unplaced += len(found.start_U) - len(set(position_M.tolist()))
        labelled += len(slot_M)
    return LevelCoverage(
        head=head, level=level, utterances=len(utterances), covered=len(utterances) - len(missing), missing=tuple(missing[:SHOWN]),
        positions=num_positions, unplaced=unplaced, slots=num_slots, labelled=labelled,
    )  # fmt: skip


def require(coverage: Coverage, min_coverage: float) -> None:
    """Raises UserError naming the first head whose labels cover less than `min_coverage` of the utterances, and some that lack them."""
    for head in coverage.heads:
        if head.share < min_coverage:
            raise UserError(
                f"`min_coverage` must be reached by every head, but '{head.head}' has labels for {head.covered} of {head.utterances} "
                f"utterances, {head.share:.4f} < {min_coverage:g} (missing: {', '.join(head.missing)}). "
                f"Align and label them, or give --min-coverage {int(head.share * 10000) / 10000:g}."
            )
