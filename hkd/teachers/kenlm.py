"""n-grams in KenLM's files, asked by the package kenlm: the same rows as `NGram` gives, query by query.

A binary file cannot say which words it knows, so every unit of the inventory is asked for; slower than `NGram`, whose rows are look-ups of
whole batches. A unit that the file lacks gets half the probability of its rarest one there, too, before back-off.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import HkdError, UserError
from hkd.teachers.ngram_model import Floats, Ints, windows

KENLM_SUFFIXES = (".binary", ".bin", ".klm")


class KenLm:
    """A back-off n-gram of KenLM over units; ids as in `NGram`: V stands for <s>, V + 1 for </s>, V + 2 for "nothing there"."""

    def __init__(self, path: Path, *, symbols: Sequence[str]) -> None:
        """Raises HkdError without the package, UserError for a file that is none or knows no unit."""
        try:
            import kenlm
        except ImportError:
            raise HkdError(
                "KenLM's files need the package kenlm, which is not installed. Run: pip install 'hkd[kenlm]'"
            ) from None
        if not path.is_file():
            raise UserError(f"n-gram {path} must be a file, but is not there.")
        config = kenlm.Config()
        config.show_progress = False
        try:
            self._model = kenlm.Model(str(path), config)
        except OSError as error:
            raise UserError(
                f"{path} must be a file of KenLM, but cannot be read as one ({' '.join(str(error).split())[:200]})."
            ) from None
        self._state: type[Any] = kenlm.State
        self.num_units, self.order = len(symbols), int(self._model.order)
        self.bos, self.eos, self.nothing = self.num_units, self.num_units + 1, self.num_units + 2
        self._words = (*symbols, "<s>", "</s>")
        known_V = np.array([symbol in self._model for symbol in symbols])
        if not known_V.any():
            raise UserError(f"{path} must hold n-grams of the inventory's units, but knows none. Give the file of this level.")
        nowhere, out = self._context([]), self._state()
        single_V = np.array([self._model.BaseScore(nowhere, symbol, out) for symbol in symbols])
        floor = single_V[known_V].min() - math.log10(2)
        self._extra_V = np.where(known_V, 0.0, floor - single_V)  # what lifts <unk> to the floor

    def windows(self, unit_U: NDArray[np.int32]) -> tuple[Ints, Ints]:
        """Of each position of a sentence the (order − 1) ids before it and those after it."""
        return windows(unit_U, order=self.order, num_units=self.num_units)

    def left(self, before_Nr: Ints) -> Floats:
        """log p(v | the ids before) for every v, (N, V)."""
        distinct, row_N = np.unique(before_Nr, axis=0, return_inverse=True)
        out, rows = self._state(), []
        for before in distinct.tolist():
            context = self._context(before)
            rows.append([self._model.BaseScore(context, word, out) for word in self._words[: self.num_units]])
        return ((np.array(rows).reshape(len(distinct), self.num_units) + self._extra_V) * math.log(10))[row_N.reshape(-1)]

    def both(self, before_Nr: Ints, after_Nr: Ints) -> Floats:
        """log of the product of all windows that contain the position, for every v, (N, V); unnormalised."""
        reach = before_Nr.shape[1]
        distinct, row_N = np.unique(np.concatenate([before_Nr, after_Nr], axis=1), axis=0, return_inverse=True)
        rows = []
        for both in distinct.tolist():
            context, after = self._context(both[:reach]), [self._words[u] for u in both[reach:] if u != self.nothing]
            rows.append([self._path(context, [word, *after]) for word in self._words[: self.num_units]])
        return ((np.array(rows).reshape(len(distinct), self.num_units) + self._extra_V) * math.log(10))[row_N.reshape(-1)]

    def _path(self, context: Any, said: Sequence[str]) -> float:
        total, state = 0.0, context
        for word in said:
            out = self._state()
            total += self._model.BaseScore(state, word, out)
            state = out
        return total

    def _context(self, before: Sequence[int]) -> Any:
        """The model's state after some ids."""
        state, out = self._state(), self._state()
        self._model.NullContextWrite(state)
        for unit in before:
            if unit == self.bos:
                self._model.BeginSentenceWrite(state)
            elif unit != self.nothing:
                self._model.BaseScore(state, self._words[unit], out)
                state, out = out, state
        return state
