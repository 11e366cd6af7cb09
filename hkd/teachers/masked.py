"""Masked language models from transformers: p(u_n | all others), one masked copy a position; `mask_every` trades exactness for speed."""

from collections.abc import Iterator

import numpy as np

from hkd.errors import HkdError
from hkd.teachers.transformer_common import Row, Tokens, TransformerTeacher


class MaskedTeacher(TransformerTeacher):
    """BERT and its kin."""

    kind = "masked"
    direction = "both"

    def _rows(self, token_W: Tokens, at_S: Tokens, to_S: Tokens) -> Iterator[Row]:
        """Exact: a row a position. `mask_every` m: row r masks the places n ≡ r (mod m) of the window and scores those that are asked for."""
        if self._tokenizer.mask_token_id is None:
            raise HkdError(f"teacher {self._info.name} must have a mask token, but its tokenizer has none.")
        prefix, suffix = self._around()
        every = self._options.mask_every
        for window_W, at_M, to_M in self._windows(token_W, at_S, to_S, self.room):
            token_L = np.concatenate([prefix, window_W, suffix])
            at_M = at_M + len(prefix)
            gold_M = self._gold(token_L[at_M])
            if not every:
                for n in range(len(at_M)):
                    one = slice(n, n + 1)
                    yield Row(token_L, at_M[one], at_M[one], gold_M[one], to_M[one])
                continue
            for part in range(every):
                mine = (at_M - len(prefix)) % every == part
                if mine.any():
                    yield Row(token_L, np.arange(part, len(window_W), every) + len(prefix), at_M[mine], gold_M[mine], to_M[mine])

    def _around(self) -> tuple[Tokens, Tokens]:
        """The tokens before and after every window."""
        mark = self._pieces(self._options.final_mark) if self._options.final_mark else []
        return np.array(self._prefix, np.int64), np.array([*mark, *self._suffix], np.int64)

    @property
    def room(self) -> int:
        """Tokens of text in a window, special ones left out."""
        length = min(self._max_length, self._options.context) if self._options.context else self._max_length
        return max(1, length - sum(map(len, self._around())))
