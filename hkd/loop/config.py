"""What the loop is told (LoopConfig), and what it asks of a task (Task)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hkd.errors import UserError

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, how fast, how often. A step is one update of the weights."""

    max_steps: int = 2000
    learning_rate: float = 1e-3  # at the end of the warm-up
    warmup_steps: int = 200  # linear, from 0
    schedule: str = "cosine"  # cosine | linear (both to 0 at max_steps) | constant
    weight_decay: float = 0.01  # AdamW's; not for vectors (biases, norms)
    beta2: float = 0.98
    clip_norm: float = 1.0  # of the whole gradient, after the backward pass; 0: no clipping
    accumulate: int = 1  # shares that a process works off one by one: less memory, the same global batch
    precision: str = "fp32"  # fp32 | bf16 | fp16
    seed: int = 0
    log_every: int = 10
    save_every: int = 200
    keep_last: int = 2
    eval_every: int = 500  # 0: at the end only
    best_by: str = ""  # a figure of the evaluation, lower is better: the final weights are the best ones
    average: int = 0  # the final weights are the mean of the n best (by best_by) or else of the n last checkpoints
    patience: int = 0  # evaluations without a better `best_by` after which to stop; 0: go on to max_steps
    shares_every: int = 0  # steps between measurements of each loss term's share of the gradient; 0: never

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"`schedule` must be one of {', '.join(SCHEDULES)}, but is '{self.schedule}' instead.")
        if self.precision not in PRECISIONS:
            raise UserError(f"`precision` must be one of {', '.join(PRECISIONS)}, but is '{self.precision}' instead.")
        for name in ("max_steps", "accumulate", "log_every", "save_every", "keep_last"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, but is {getattr(self, name)} instead.")
        for name in ("warmup_steps", "weight_decay", "clip_norm", "eval_every", "shares_every", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"`{name}` must not be negative, but is {getattr(self, name)} instead.")
        if self.average < 0 or self.patience < 0:
            raise UserError("`average` and `patience` must not be negative.")
        if self.patience and not self.best_by:
            raise UserError("`best_by` must name a figure of the evaluation where `patience` is given, but is empty.")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"`learning_rate` must be positive, but is {self.learning_rate} instead.")


def learning_rate(config: LoopConfig, step: int) -> float:
    """The learning rate of the update that follows `step` completed ones: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * (0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done)


class Task(Protocol):
    """What is trained. Batches may carry `.to(device)`, `.ids` (named when the loss is not finite) and `.seconds` (of audio).

    A task may also have `evaluate() -> Mapping[str, float]`, called by the main process every eval_every steps and at the end, with
    the model in evaluation mode and no gradients.
    """

    @property
    def model(self) -> torch.nn.Module:
        """The module whose parameters are updated."""

    def batches(self, start_step: int, rank: int, world_size: int) -> Iterator[Any]:
        """Endless; item n is share `rank` of `world_size` of the global batch of step start_step + n, a pure function of (seed, step).

        An empty share (fewer utterances than shares) is None.
        """

    def counts(self, batch: Any) -> Mapping[str, float]:
        """Per loss term: utterances or labelled frames in this share."""

    def losses(self, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Per loss term: the sum over this share, a scalar."""

    def weights(self, step: int) -> Mapping[str, float]:
        """Per loss term; names all terms, the main one first."""
