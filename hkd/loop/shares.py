"""How much each term of the loss moves the weights: its share of the gradient's norm.

Measured over the parameters that the first (main) term reaches: a head's own weights would flatter its term.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradient_norms(loss_of: Callable[[str], Tensor], terms: Sequence[str], parameters: Sequence[Tensor]) -> dict[str, float]:
    """Term → norm of its weighted gradient; `loss_of` gives a term's weighted loss (a scalar), anew at every call."""
    norms: dict[str, float] = {}
    reached: list[bool] | None = None
    for term in terms:
        total = loss_of(term)
        if not total.requires_grad:
            norms[term] = 0.0
            continue
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        reached = reached or [gradient is not None for gradient in gradients]
        kept = [g.float().norm() for g, ok in zip(gradients, reached, strict=True) if ok and g is not None]
        norms[term] = float(torch.stack(kept).norm()) if kept else 0.0
    return norms


def shares_of(norms: dict[str, float]) -> dict[str, float]:
    """Norms divided by their sum."""
    whole = sum(norms.values()) or 1.0
    return {term: norm / whole for term, norm in norms.items()}
