"""Masked language models from transformers: p(u_n | all others), one masked copy a position; `mask_every` trades exactness for speed."""

from collections.abc import Iterator

import numpy as np

from hkd.errors import HkdError
from hkd.teachers.base import Sentence
from hkd.teachers.transformer_common import Row, TransformerTeacher


class MaskedTeacher(TransformerTeacher):
    """BERT and its kin."""

    kind = "masked"
    direction = "both"

    def _rows(self, sentence: Sentence, first: int) -> Iterator[Row]:
        """Exact: a row a position. `mask_every` m: row r masks the places n ≡ r (mod m) of the window and scores those of the sentence."""
        if self._tokenizer.mask_token_id is None:
            raise HkdError(f"teacher {self._info.name} must have a mask token, but its tokenizer has none.")
        prefix = np.array(self._prefix, np.int64)
        suffix = np.array([*self._mark(), *self._suffix], np.int64)
        room = self._room(len(prefix) + len(suffix))
        every = self._options.mask_every
        for token_W, at_S, to_S in self._windows(sentence, room, first):
            token_L = np.concatenate([prefix, token_W, suffix])
            at_S = at_S + len(prefix)
            gold_S = self._gold(token_L[at_S])
            for part in range(every if every else len(at_S)):
                if every:
                    masked = np.arange(part, len(token_W), every) + len(prefix)
                    mine = (at_S - len(prefix)) % every == part
                else:
                    masked, mine = at_S[part : part + 1], np.arange(part, part + 1)
                if len(at_S[mine]):
                    yield Row(token_L, masked, at_S[mine], gold_S[mine], to_S[mine])

    def _mark(self) -> list[int]:
        return self._pieces(self._options.final_mark) if self._options.final_mark else []

    def _room(self, around: int) -> int:
        """Tokens of text that a window takes."""
        length = min(self._max_length, self._options.context + around) if self._options.context else self._max_length
        return max(1, length - around)
