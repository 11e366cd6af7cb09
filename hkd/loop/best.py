"""The best weights so far by a figure of the evaluation, and when to stop waiting for better ones."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hkd.errors import UserError
from hkd.loop.checkpoint import Checkpoint, newest_checkpoint, remove_checkpoints, write_checkpoint


@dataclass
class Best:
    """The `keep` best evaluations, as (figure, step), best first; lower is better, the earlier of equals."""

    folder: Path
    by: str
    keep: int
    rows: list[tuple[float, int]] = field(default_factory=list)
    waited: int = 0  # evaluations since the best one

    def note(self, figures: Mapping[str, float], step: int) -> bool:
        """Take an evaluation in; whether its weights are among the best. Raises UserError where the figure is not there."""
        if self.by not in figures:
            raise UserError(f"`best_by` must be a figure of the evaluation ({', '.join(figures)}), but is '{self.by}' instead.")
        value = figures[self.by]
        value = math.inf if math.isnan(value) else value
        rows = sorted([*self.rows, (value, step)])
        self.waited = 0 if rows[0][1] == step else self.waited + 1
        self.rows = rows[: self.keep]
        return any(row[1] == step for row in self.rows)

    def save(self, step: int, model: Mapping[str, Tensor]) -> None:
        """Keep these weights, drop those that are no longer among the best."""
        write_checkpoint(self.folder, step, {"model": model}, {})
        kept = {f"step-{row[1]:06d}" for row in self.rows}
        for path in self.folder.glob("step-*"):
            if path.name not in kept:
                remove_checkpoints(self.folder, only=path)

    def state(self) -> dict[str, Any]:
        """For state.json."""
        return {"rows": [list(row) for row in self.rows], "waited": self.waited}

    def restore(self, state: Mapping[str, Any] | None, step: int) -> None:
        """Back to a checkpoint's state; weights of later steps go."""
        if state is not None:
            self.rows, self.waited = [(float(value), int(at)) for value, at in state["rows"]], int(state["waited"])
        remove_checkpoints(self.folder, after=step)

    def checkpoints(self) -> list[Checkpoint]:
        """The best weights, best first."""
        found = [newest_checkpoint(self.folder, accept=lambda state, at=at: state["step"] == at) for _, at in self.rows]  # type: ignore[misc]
        return [checkpoint for checkpoint in found if checkpoint is not None]


def average(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several weights, summed in float64 in the given order; whole numbers are taken from the first."""
    tensors: Sequence[Mapping[str, Tensor]] = list(parts)
    first = tensors[0]
    return {
        name: torch.stack([part[name].double() for part in tensors]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }
