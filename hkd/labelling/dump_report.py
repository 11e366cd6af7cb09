"""What a dump came to: the work of one or several processes, and the report."""

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


def no_seconds() -> dict[str, float]:
    """No time by phase."""
    return dict.fromkeys(("read", "score", "wait", "write", "total"), 0.0)


@dataclass(kw_only=True, slots=True)
class Work:
    """What labelling some shards came to; the parts of several workers add up."""

    shards: int = 0
    positions: int = 0
    scored_positions: int = 0  # fewer, where transcripts repeat
    seconds: dict[str, float] = field(default_factory=no_seconds)
    left_out: dict[str, str] = field(default_factory=dict)  # id → why
    flops: float = 0.0  # floating-point operations of the model; 0: not counted

    def __add__(self, other: "Work") -> "Work":
        return Work(
            shards=self.shards + other.shards,
            positions=self.positions + other.positions,
            scored_positions=self.scored_positions + other.scored_positions,
            seconds={phase: value + other.seconds[phase] for phase, value in self.seconds.items()},
            left_out={**self.left_out, **other.left_out},
            flops=self.flops + other.flops,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpReport:
    """What a dump did. Times are of this run; the quality is that of the whole store, None while shards are missing."""

    store: Path | str
    teacher: str
    level: str
    utterances: int
    without_units: int  # utterances of the manifest that the alignment lacks
    shards: int
    shards_done: int  # by this run
    shards_missing: int  # of other ranks
    positions: int  # by this run
    scored_positions: int  # fewer, where transcripts repeat
    seconds: dict[str, float]  # by phase, summed over the workers: read, score, wait, write; and total, by the clock
    quality: dict[str, Any] | None
    left_out: dict[str, str] = field(default_factory=dict)  # id → why
    workers: int = 1
    workers_lost: int = 0  # each with the shard that it was at, which another worker then did
    flops: float = 0.0  # floating-point operations of the model by this run; 0: not counted
    peak_flops_per_s: float = 0.0  # of one worker's device
    peak_known_from: str = ""

    @property
    def positions_per_s(self) -> float:
        """Positions a second of this run, all phases included."""
        return self.positions / self.seconds["total"] if self.seconds["total"] else 0.0

    @property
    def utilisation(self) -> float | None:
        """Share of the devices' peak that the model used, all phases included; None where it is not known."""
        peak = self.peak_flops_per_s * self.workers * self.seconds["total"]
        return self.flops / peak if peak and self.flops else None

    @property
    def go_on(self) -> str:
        """The command that comes next; empty while shards are missing."""
        return "" if self.shards_missing else f"hkd train --labels {shlex.quote(str(self.store).rpartition('/')[0] + '/')}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        figures = {"positions_per_s": self.positions_per_s, "utilisation": self.utilisation, "go_on": self.go_on}
        return {**asdict(self), "store": str(self.store), **figures}
