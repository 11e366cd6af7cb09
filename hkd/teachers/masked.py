"""Masked language models from transformers: p(u_n | all others), one masked copy a position; `mask_every` trades exactness for speed."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hkd.errors import HkdError
from hkd.sparse import TopK
from hkd.teachers.base import Sentence
from hkd.teachers.forward import Row, Tokens
from hkd.teachers.transformer_common import TransformerTeacher


def _dense(rows: TopK, size: int) -> NDArray[np.float64]:
    """Rows of all candidates as log-probabilities (N, V + 1), the rest last; what is impossible stands at e^-80."""
    out_NV = np.full((len(rows), size + 1), -80.0)
    np.put_along_axis(out_NV, rows.ids_NK.astype(np.int64), np.maximum(rows.logp_NK, -80.0), 1)
    out_NV[:, -1] = np.maximum(rows.tail_N, -80.0)
    return out_NV


class MaskedTeacher(TransformerTeacher):
    """BERT and its kin."""

    kind = "masked"
    direction = "both"

    def _find_special_tokens(self) -> Tokens:
        ordinary = super()._find_special_tokens()
        mask = self._tokenizer.mask_token_id
        if mask is None or mask >= self._num_embeddings:
            has = "none" if mask is None else f"one without an embedding (id {mask})"
            raise HkdError(
                f"LM {self._name} must have a mask token, but its tokenizer has {has}. Fetch the tokenizer that it was trained with."
            )
        return ordinary

    def _rows(self, token_W: Tokens, at_S: Tokens, to_S: Tokens) -> Iterator[Row]:
        """Exact: a row a position. `mask_every` m: row r masks the places n ≡ r (mod m) of the window and scores those that are asked for."""
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

    def kl_to_exact(self, sentences: Sequence[Sentence]) -> float:
        """Mean KL(exact rule ‖ `mask_every`) a position, nats, over all candidates and one rest; what masking together costs."""
        exact = copy.copy(self)
        exact._options = replace(self._options, mask_every=0)
        total, count = 0.0, 0
        for sentence in sentences:
            p_NV, q_NV = (
                _dense(teacher.score([sentence], k=self.num_candidates)[0], self._vocabulary) for teacher in (exact, self)
            )
            total += float((np.exp(p_NV) * (p_NV - q_NV)).sum())
            count += len(p_NV)
        return total / max(1, count)

    @property
    def room(self) -> int:
        """Tokens of text in a window, special ones left out."""
        length = min(self._max_length, self._options.context) if self._options.context else self._max_length
        return max(1, length - sum(map(len, self._around())))
