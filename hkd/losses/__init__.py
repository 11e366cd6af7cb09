"""What a student is taught by: pure functions on tensors, one loss a row or an utterance; the caller weighs and divides."""

from hkd.losses.ctc import class_targets, ctc_feasible, ctc_interpolation, ctc_loss, ctc_occupancy
from hkd.losses.sparse import TAILS, hard_cross_entropy, sparse_cross_entropy, sparse_kl

__all__ = [
    "TAILS",
    "class_targets",
    "ctc_feasible",
    "ctc_interpolation",
    "ctc_loss",
    "ctc_occupancy",
    "hard_cross_entropy",
    "sparse_cross_entropy",
    "sparse_kl",
]
