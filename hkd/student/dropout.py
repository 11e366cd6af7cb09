"""Dropout that does not wait for the random generator on CPU, where `F.dropout` spends an eighth of a training step.

One 64-bit draw decides eight elements: an element is dropped where its byte lies below round(256 p), and what is kept is scaled by the
exact inverse of that probability. On other devices this is torch's own dropout. The stream is torch's default generator either way.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, p: float, *, training: bool) -> Tensor:
    """x with elements set to 0 with probability p (on CPU to the nearest 1/256), the others scaled so that the mean stays."""
    if not training or p == 0.0:
        return x
    threshold = round(256 * p)
    if x.device.type != "cpu" or not 0 < threshold < 256:
        return F.dropout(x, p, True)
    draw = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    keep = draw.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
    return x * (keep.to(x.dtype) * (256 / (256 - threshold)))
