"""What goes into a label store and what comes out: one utterance's labels, and a batch's as one block.

Shape letters: B utterances, U positions of an utterance, N positions over all utterances, K kept ids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkd.sparse import TopK

NO_WORD = -1
DIGEST_BYTES = 8
LEFT_OUT = bytes(DIGEST_BYTES)  # unit digest of an utterance that could not be labelled (--keep-going); it has no positions


@dataclass(frozen=True, kw_only=True, slots=True)
class UtteranceLabels:
    """The labels of one utterance. `word_U`: the word of each position, −1 for none. Digests: 8 bytes of SHA-256 each."""

    id: str
    topk: TopK
    word_U: NDArray[np.int32]
    unit_digest: bytes  # of the unit sequence: hkd.align.alignment.sequence_digest
    text_digest: bytes  # of the normalised transcript

    def __post_init__(self) -> None:
        if self.word_U.shape != (len(self.topk),):
            raise ValueError(f"word_U must have the shape ({len(self.topk)},), but has {self.word_U.shape} instead")
        for name in ("unit_digest", "text_digest"):
            if len(getattr(self, name)) != DIGEST_BYTES:
                raise ValueError(f"{name} must have {DIGEST_BYTES} bytes, but has {len(getattr(self, name))} instead")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelBlock:
    """The labels of B utterances, concatenated: utterance b has the positions offset_B1[b] to offset_B1[b + 1]."""

    topk: TopK
    offset_B1: NDArray[np.int64]
    word_N: NDArray[np.int32]
    unit_digest_B: tuple[bytes, ...]
    text_digest_B: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.offset_B1) - 1

    def utterance(self, b: int) -> TopK:
        """The rows of utterance number b."""
        return self.topk[int(self.offset_B1[b]) : int(self.offset_B1[b + 1])]
