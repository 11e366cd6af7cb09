"""Causal language models from transformers: p(u_n | all before), one pass an utterance."""

from collections.abc import Iterator

import numpy as np

from hkd.errors import HkdError
from hkd.teachers.forward import Row, Tokens
from hkd.teachers.transformer_common import TransformerTeacher


class CausalTeacher(TransformerTeacher):
    """GPT-2, Llama, Qwen, Gemma, Mistral and their kin. What comes after is never read, as context neither."""

    kind = "causal"
    direction = "left"

    def _find_special_tokens(self) -> Tokens:
        ordinary = super()._find_special_tokens()
        self._start()
        return ordinary

    def _rows(self, token_W: Tokens, at_S: Tokens, to_S: Tokens) -> Iterator[Row]:
        """A row a window; position n is scored by the output one place to its left, the first one by that of the start token."""
        start, none = self._start(), np.zeros(0, np.int64)
        read_W = token_W[: int(at_S.max()) + 1]  # what follows the last scored position is not needed
        for window_W, at_M, to_M in self._windows(read_W, at_S, to_S, self.room, aim=0.75):
            token_L = np.concatenate([start, window_W])
            at_M = at_M + len(start)
            yield Row(token_L[: int(at_M.max())], none, at_M - 1, self._gold(token_L[at_M]), to_M)

    @property
    def room(self) -> int:
        """Tokens of text in a window, the start token left out."""
        length = min(self._max_length, self._options.context) if self._options.context else self._max_length
        return max(1, length - len(self._start()))

    def _start(self) -> Tokens:
        """The tokens before the text: the tokenizer's own prefix, else the start token, else the end token (as GPT-2 separates texts)."""
        if self._prefix:
            return np.array(self._prefix, np.int64)
        for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return np.array([token], np.int64)
        raise HkdError(
            f"LM {self._name} must have a start or an end token, but its tokenizer has neither. Give it one: set bos_token in its "
            "tokenizer_config.json."
        )
