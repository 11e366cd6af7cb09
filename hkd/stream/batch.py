"""What a training step gets: features, CTC targets, and for each head which slots carry which labels.

Shape letters: B utterances, T frames of 10 ms (padded), F feature bins, L all targets of the batch, M labelled slots, N positions, K kept
ids, J extra temperatures, S slots of an utterance (padded).
"""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class _Moves:
    """A dataclass of tensors (and dataclasses, and dictionaries of them) that goes to a device."""

    __slots__ = ()

    def to(self: T, device: torch.device | str) -> T:
        """The same on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor | _Moves):
                return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
            return {key: move(part) for key, part in value.items()} if isinstance(value, dict) else value

        return type(self)(**{f.name: move(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    def pin_memory(self: T) -> T:
        """The same in page-locked memory."""

        def pin(value: Any) -> Any:
            if isinstance(value, Tensor | _Moves):
                return value.pin_memory()
            return {key: pin(part) for key, part in value.items()} if isinstance(value, dict) else value

        return type(self)(**{f.name: pin(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class HardLabels(_Moves):
    """Reference labels. slot_M: flat index b · S + s into a head's (B, S) slots; unit_M: unit ids."""

    slot_M: Tensor
    unit_M: Tensor


@dataclass(frozen=True, kw_only=True)
class SoftLabels(_Moves):
    """A teacher's labels of the batch's positions, and which slot carries which. Ids are those of the head (trimmed)."""

    ids_NK: Tensor  # int64
    logp_NK: Tensor
    tail_N: Tensor
    gold_N: Tensor  # int64, −1 for none
    gold_logp_N: Tensor
    lse_NJ: Tensor
    tail_NJ: Tensor
    count_NK: Tensor | None
    offset_B1: Tensor  # positions of utterance b: offset_B1[b] to offset_B1[b + 1]
    slot_M: Tensor  # flat index b · S + s
    position_M: Tensor  # row of the N positions that slot_M carries


@dataclass(frozen=True, kw_only=True)
class Batch(_Moves):
    """One share of a step's global batch."""

    ids: tuple[str, ...]
    x_BTF: Tensor  # float32, zeros after the end
    length_B: Tensor  # 10 ms frames
    target_L: Tensor  # the utterances' CTC targets one after the other: unit id + 1, 0 is the blank
    target_length_B: Tensor
    hard: dict[str, HardLabels] = field(default_factory=dict)  # by level
    soft: dict[str, SoftLabels] = field(default_factory=dict)  # by label store
    seconds: float = 0.0  # of audio, without padding
