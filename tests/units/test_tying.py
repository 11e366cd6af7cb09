"""State tying. That it equals the decoder's own is shown in tests/align/test_sphinx.py."""

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.tying import StateTying


@pytest.fixture(scope="module")
def tying() -> StateTying:
    return StateTying()


def test_every_senone_has_a_phone_a_state_and_a_readable_symbol(tying: StateTying) -> None:
    inventory = tying.senone_inventory
    assert len(inventory) == 5126
    for number in range(0, 5126, 97):
        phone, state, own = inventory.symbols[number].rsplit("-", 2)
        assert int(own) == number
        assert tying.definition.phones[tying.phone_of_senone_V[number]] == phone
        assert tying.state_of_senone_V[number] == int(state)
    # no senone is shared by two phones or two states in this model
    for context, row in list(tying.definition.triphones.items())[::1000]:
        assert (tying.phone_of_senone_V[tying.definition.senones_PS[row]] == context[0]).all()
        assert tying.state_of_senone_V[tying.definition.senones_PS[row]].tolist() == [0, 1, 2]


def test_silences_are_fillers_with_all_their_states(tying: StateTying) -> None:
    assert [tying.definition.phones[i] for i in tying.silences[MONOPHONE]] == ["+NSN+", "+SPN+", "SIL"]
    assert len(tying.silences[SENONE]) == 9
    assert tying.senone_inventory.silence in tying.silences[SENONE]
    assert tying.monophone_inventory.symbols[tying.monophone_inventory.silence or 0] == "SIL"


def test_senones_fold_to_monophones_and_neighbours_reach_across_words(tying: StateTying) -> None:
    spoken = [("HH", "AH", "L", "OW"), ("AY",), ("S", "AO")]
    senone_U, word_U = tying.senones(spoken)
    phone_U, word_of_phone_U = tying.monophones(spoken)
    assert np.array_equal(tying.phone_of_senone_V[senone_U], np.repeat(phone_U, 3))
    assert np.array_equal(word_U, np.repeat(word_of_phone_U, 3))
    alone = np.concatenate([tying.senones([word])[0] for word in spoken])
    changed = (alone != senone_U).reshape(-1, 3).any(1)
    assert not changed[[0, 1, 2, 6]].any()  # what touches no inner word boundary
    assert changed.any()


def test_no_words_have_no_units(tying: StateTying) -> None:
    assert [len(part) for part in (*tying.senones([]), *tying.monophones([]))] == [0, 0, 0, 0]


@pytest.mark.parametrize("wrong", [[("HH", "XX")], [("AH",), ()]])
def test_unknown_phones_and_empty_words_are_refused(tying: StateTying, wrong: list) -> None:
    for method in (tying.senones, tying.monophones):
        with pytest.raises(UserError):
            method(wrong)
