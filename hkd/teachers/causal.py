"""Causal language models from transformers: p(u_n | all before), one pass an utterance."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from hkd.errors import HkdError
from hkd.teachers.base import Sentence
from hkd.teachers.transformer_common import Row, TransformerTeacher


class CausalTeacher(TransformerTeacher):
    """GPT-2, Llama, Qwen, Gemma, Mistral and their kin. What comes after is never read, as context neither."""

    kind = "causal"
    direction = "left"

    def _rows(self, sentence: Sentence, first: int) -> Iterator[Row]:
        """A row a window; position n is scored by the output one place to its left, the first one by that of the start token."""
        start = self._start()
        left_only = Sentence(id=sentence.id, unit_U=sentence.unit_U, word_U=sentence.word_U, before=sentence.before)
        for token_W, at_S, to_S in self._windows(left_only, self._max_length - len(start), first, at=0.75):
            token_L = np.concatenate([start, token_W])
            at_S = at_S + len(start)
            last = int(at_S.max(initial=0))  # what follows the last scored position is not needed
            if len(at_S):
                none = np.zeros(0, np.int64)
                yield Row(token_L[:last], none, at_S - 1, self._gold(token_L[at_S]), to_S)

    def _start(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The tokens before the text: the tokenizer's own prefix, else the start token, else the end token (as GPT-2 separates texts)."""
        if self._prefix:
            return np.array(self._prefix, np.int64)
        for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return np.array([token], np.int64)
        raise HkdError(f"teacher {self._info.name} must have a start or an end token, but its tokenizer has neither.")

    def _body_options(self) -> dict[str, Any]:
        return {"use_cache": False}
