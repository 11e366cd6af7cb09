"""The sparse distribution that a teacher gives a position: its K likeliest units, and what lies outside them.

- `logp` are *true* log-probabilities under the full softmax at temperature 1; they are never renormalised.
- The tail is stored, not computed as 1 − Σ: rounding would lose it where the first unit is nearly certain.
- The gold (reference) unit is always among the kept ids (it replaces the last one where it would not be), unless the
  inventory has no such unit (gold −1).
- For each extra temperature T: `lse_T` = log Σ_v exp(logp_v / T) over the whole vocabulary, so that
  p_T(v) = exp(logp_v / T − lse_T) is exact for every kept id, and `tail_T`, the log mass outside the K at T.

Shape letters: N positions, K kept ids, V size of the inventory, J extra temperatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_GOLD = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK:
    """Top-k distributions of N positions (arrays are not copied; see the module for what each number means)."""

    ids_NK: NDArray[np.int32]  # by falling probability, distinct in a row
    logp_NK: NDArray[np.float32]
    tail_N: NDArray[np.float32]  # log of the mass outside the K; -inf where there is none
    gold_N: NDArray[np.int32]
    gold_logp_N: NDArray[np.float32]
    lse_NJ: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    tail_NJ: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    count_NK: NDArray[np.uint16] | None = None  # selection "sample": how often each id was drawn; 0 pads a row

    def __post_init__(self) -> None:
        n, k = self.ids_NK.shape
        if self.lse_NJ.size == 0 and self.lse_NJ.shape[0] != n:
            object.__setattr__(self, "lse_NJ", np.zeros((n, 0), np.float32))
            object.__setattr__(self, "tail_NJ", np.zeros((n, 0), np.float32))
        shapes = {"logp_NK": (n, k), "tail_N": (n,), "gold_N": (n,), "gold_logp_N": (n,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, but has {getattr(self, name).shape} instead")

    def __len__(self) -> int:
        return int(self.ids_NK.shape[0])

    @property
    def k(self) -> int:
        """Kept ids a position."""
        return int(self.ids_NK.shape[1])

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "TopK":
        """The rows of a slice or an index array, as views where NumPy gives views."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        columns = {name: None if column is None else column[rows] for name, column in columns.items()}
        return TopK(**columns)

    def to_torch(self, device: Any = "cpu", *, column: int | None = None) -> dict[str, Any]:
        """The keyword arguments that `hkd.losses.sparse_kl` takes beside the logits. column: the extra temperature
        whose `lse_M` and `tail_T_M` are wanted, by its index. Only draws have `count_MK`."""
        import torch

        def tensor(values: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        ids_MK = tensor(self.ids_NK.astype(np.int64))
        found = {"ids_MK": ids_MK, "logp_MK": tensor(self.logp_NK), "tail_M": tensor(self.tail_N)}
        if column is not None:
            found |= {"lse_M": tensor(self.lse_NJ[:, column]), "tail_T_M": tensor(self.tail_NJ[:, column])}
        if self.count_NK is not None:
            found["count_MK"] = tensor(self.count_NK.astype(np.int64))
        return found

    @classmethod
    def concatenate(cls, parts: Sequence["TopK"]) -> "TopK":
        """All rows in order, of parts that agree on K and on the temperatures. Raises ValueError when empty."""
        if not parts:
            raise ValueError("parts must not be empty")
        columns: dict[str, Any] = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        columns = {name: None if column[0] is None else np.concatenate(column) for name, column in columns.items()}
        return cls(**columns)

    @classmethod
    def empty(cls, k: int, num_temperatures: int = 0) -> "TopK":
        flat, wide = np.zeros(0, np.float32), np.zeros((0, k), np.float32)
        extra = np.zeros((0, num_temperatures), np.float32)
        return cls(
            ids_NK=wide.astype(np.int32), logp_NK=wide, tail_N=flat, gold_N=flat.astype(np.int32), gold_logp_N=flat,
            lse_NJ=extra, tail_NJ=extra,
        )  # fmt: skip
