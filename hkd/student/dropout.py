"""Dropout whose masks depend on an utterance's own seed alone: neither padding nor the rest of the batch changes them.

Each utterance has a generator of its own. It draws blocks of BLOCK frames, so that an utterance's masks do not depend on how far its batch is
padded. One 64-bit draw decides four elements, so p is exact to 1/65536 and the kept ones are scaled by the exact inverse.

Shape letters: B utterances, T frames, D width, N calls in a forward pass.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 64
_LANES = 1 << 16


class UtteranceDropout:
    """Dropout for one forward pass: call it at most `calls` times, each time with an x_BTD of the given T and D."""

    def __init__(self, p: float, seed_B: Sequence[int], *, calls: int, num_frames: int, width: int, device: torch.device) -> None:
        dropped = round(_LANES * p)
        self._scale = _LANES / (_LANES - dropped)
        keep_NBTD = torch.empty((calls, len(seed_B), num_frames, width), dtype=torch.bool, device=device)
        size = calls * BLOCK * width
        for b, seed in enumerate(seed_B):
            random = torch.Generator(device).manual_seed(seed)
            for start in range(0, num_frames, BLOCK):
                draw = torch.empty(-(-size // 4), dtype=torch.int64, device=device).random_(-(2**63), None, generator=random)
                block_NTD = draw.view(torch.int16)[:size].view(calls, BLOCK, width)[:, : num_frames - start]
                keep_NBTD[:, b, start : start + BLOCK] = block_NTD >= dropped - _LANES // 2
        self._masks: Iterator[Tensor] = iter(keep_NBTD)

    def __call__(self, x_BTD: Tensor) -> Tensor:
        """x with elements set to 0 with probability p, the others scaled so that the mean stays."""
        return x_BTD * (next(self._masks).to(x_BTD.dtype) * self._scale)
