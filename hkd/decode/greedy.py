"""Greedy CTC decoding: the likeliest class of every frame, repetitions joined, blanks left out (Graves et al. 2006, section 3.2.1).

Shape letters: B utterances, T encoder frames, V classes (the blank and the units).
"""

import torch


@torch.no_grad()
def greedy_ctc(logits_BTV: torch.Tensor, length_B: torch.Tensor, *, blank: int = 0) -> list[list[int]]:
    """Best path of every utterance as unit ids; with blank 0 the unit id is the class − 1.

    logits_BTV: scores in any monotone scale; length_B: valid frames, the rest is not looked at. Ties go to the lower class.
    Raises ValueError where the lengths do not fit the logits or `blank` is no class.
    """
    num_frames, num_classes = logits_BTV.shape[1], logits_BTV.shape[2]
    if not 0 <= blank < num_classes:
        raise ValueError(f"blank must be one of {num_classes} classes, but is {blank} instead")
    if length_B.numel() and (int(length_B.max()) > num_frames or int(length_B.min()) < 0):
        raise ValueError(f"length_B must lie within 0 and {num_frames}, but is {length_B.tolist()} instead")
    class_BT = logits_BTV.argmax(-1).cpu()
    return [collapse(row_T[:length].tolist(), blank=blank) for row_T, length in zip(class_BT, length_B.tolist(), strict=True)]


def collapse(path: list[int], *, blank: int = 0) -> list[int]:
    """A CTC path → its unit ids: repetitions joined, blanks left out, classes above the blank moved down by one."""
    return [c - (c > blank) for i, c in enumerate(path) if c != blank and (i == 0 or path[i - 1] != c)]
