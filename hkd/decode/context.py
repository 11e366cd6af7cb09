"""Phones in context for a search graph: which labels a pronunciation has, and which senones a label has between its neighbours.

Two tyings are known: pocketsphinx's (`StateTying`: phone and place in the word) and trees (`TreeTying`: Kaldi's, `hkd units tie`).
Labels count from 1; 0 stands beyond the utterance's ends.
"""

from collections.abc import Sequence
from typing import Protocol

from hkd.errors import UserError
from hkd.units.acoustic import Tying
from hkd.units.level import MONOPHONE
from hkd.units.mdef import NUM_WORD_POSITIONS, WORD_BEGIN, WORD_END, WORD_INTERNAL, WORD_SINGLE
from hkd.units.tree_tying import TreeTying
from hkd.units.tying import StateTying


class ContextPhones(Protocol):
    """The phones of a search graph. `num_labels` is the highest label, `silence` the label of silence."""

    num_labels: int
    silence: int

    def labels(self, pronunciation: Sequence[str]) -> list[int]:
        """A word's phones."""

    def states(self, left: int, label: int, right: int) -> tuple[int, ...]:
        """The senones of a phone between its neighbours."""


class SphinxPhones:
    """Labels are phone and place in the word as one number; beyond the ends lies silence."""

    def __init__(self, tying: StateTying) -> None:
        self._id_of, self._definition = tying.phone_id, tying.definition
        self.silence = self._label(tying.definition.silence, WORD_SINGLE)
        self.num_labels = NUM_WORD_POSITIONS * len(tying.definition.phones)

    @staticmethod
    def _label(phone: int, position: int) -> int:
        return 1 + phone * NUM_WORD_POSITIONS + position

    def labels(self, pronunciation: Sequence[str]) -> list[int]:
        """A word's phones with their places in it."""
        ids = [self._id_of[phone] for phone in pronunciation]
        if len(ids) == 1:
            return [self._label(ids[0], WORD_SINGLE)]
        inner = [self._label(phone, WORD_INTERNAL) for phone in ids[1:-1]]
        return [self._label(ids[0], WORD_BEGIN), *inner, self._label(ids[-1], WORD_END)]

    def states(self, left: int, label: int, right: int) -> tuple[int, ...]:
        """The senones of a phone between its neighbours; silence has its own whatever is beside it."""
        definition = self._definition
        base, position = divmod(label - 1, NUM_WORD_POSITIONS)
        before, after = ((beside - 1) // NUM_WORD_POSITIONS if beside else definition.silence for beside in (left, right))
        row = base if base == definition.silence else definition.nearest(base, before, after, position)
        return tuple(definition.senones_PS[row].tolist())


class TreePhones:
    """Labels are the acoustic model's own phones, which may carry their place in the word. Raises UserError for trees over wider contexts."""

    def __init__(self, tying: TreeTying) -> None:
        if (tying.tree.width, tying.tree.central) not in ((1, 0), (3, 1)):
            raise UserError(
                f"the senones' tree must see one phone or three to be searched here, but sees {tying.tree.width}. "
                "Write the student's likelihoods for Kaldi: `hkd likelihoods`."
            )
        quiet = tying.monophone_inventory.silence
        if quiet is None:
            raise UserError("the acoustic model must have a phone of silence to be searched, but has none.")
        self._tying = tying
        self.silence = tying.model_phones([[tying.monophone_inventory.symbols[quiet]]])[0][0]
        self.num_labels = max(tying.phones.values())

    def labels(self, pronunciation: Sequence[str]) -> list[int]:
        """A word's phones with their places in it, where the model has such."""
        return self._tying.model_phones([pronunciation])[0]

    def states(self, left: int, label: int, right: int) -> tuple[int, ...]:
        """The senones of a phone between its neighbours."""
        return self._tying.window_senones((left, label, right) if self._tying.tree.width == 3 else (label,))


def context_phones(tying: Tying) -> ContextPhones:
    """The phones of a tying, for a search graph. Raises UserError where it has no senones."""
    if isinstance(tying, StateTying):
        return SphinxPhones(tying)
    if isinstance(tying, TreeTying):
        return TreePhones(tying)
    raise UserError(f"senones are needed for a search, but there are {MONOPHONE}s alone. Tie states first: `hkd units tie`.")
