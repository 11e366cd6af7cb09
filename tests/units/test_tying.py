"""State tying. That it equals the decoder's own is shown in tests/align/test_sphinx.py."""

import struct
from pathlib import Path

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.units.inventory import MONOPHONE, SENONE
from hkd.units.lexicon import model_folder
from hkd.units.tying import WORD_BEGIN, WORD_END, WORD_INTERNAL, WORD_SINGLE, ModelDefinition, StateTying, read_mdef


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


PATH = model_folder() / "en-us" / "mdef"


@pytest.fixture(scope="module")
def definition() -> ModelDefinition:
    return read_mdef(PATH)


def test_counts_of_the_english_model(definition: ModelDefinition) -> None:
    assert len(definition.phones) == 42
    assert definition.num_senones == 5126
    assert definition.phones[definition.silence] == "SIL"
    assert [p for p, filler in zip(definition.phones, definition.filler, strict=True) if filler] == [
        "+NSN+",
        "+SPN+",
        "SIL",
    ]
    assert definition.senones_PS.shape[1] == 3
    assert np.array_equal(np.unique(definition.senones_PS), np.arange(5126))
    assert np.array_equal(definition.senones_PS[:42], np.arange(126).reshape(42, 3))


def test_fillers_as_neighbours_count_as_silence(definition: ModelDefinition) -> None:
    base, right = definition.phones.index("AA"), definition.phones.index("T")
    noise = definition.phones.index("+NSN+")
    assert definition.exact(base, noise, right, WORD_BEGIN) == definition.exact(
        base, definition.silence, right, WORD_BEGIN
    )


def toy() -> ModelDefinition:
    """Four phones (3 is silence), of which phone 0 has a few triphones."""
    triphones = {(0, 1, 2, WORD_INTERNAL): 4, (0, 1, 1, WORD_END): 5, (0, 3, 2, WORD_BEGIN): 6, (0, 1, 3, WORD_END): 7}
    senones = np.arange(8, dtype=np.int32)[:, None]
    return ModelDefinition(
        phones=("A", "B", "C", "SIL"), silence=3, filler=(False, False, False, True), num_senones=8,
        senones_PS=senones, triphones=triphones,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("left", "right", "position", "row", "why"),
    [
        (1, 2, WORD_INTERNAL, 4, "exact"),
        (1, 1, WORD_INTERNAL, 5, "another word position"),
        (2, 2, WORD_BEGIN, 6, "silence to the left of a word's first phone"),
        (1, 0, WORD_END, 7, "silence to the right of a word's last phone"),
        (2, 2, WORD_INTERNAL, 0, "inside a word there is no silence: without context"),
        (2, 2, WORD_SINGLE, 0, "silence on both sides is not there either"),
    ],
)
def test_back_off(left: int, right: int, position: int, row: int, why: str) -> None:
    assert toy().nearest(0, left, right, position) == row, why


@pytest.mark.parametrize(
    "data", [b"", b"BMD", b"FDMB" + bytes(60), b"BMDF", b"BMDF" + struct.pack("<ii", 1, 1 << 30), b"x" * 5000]
)
def test_what_is_no_model_definition_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "mdef").write_bytes(data)
    with pytest.raises(UserError, match="mdef"):
        read_mdef(tmp_path / "mdef")


@pytest.mark.parametrize("size", [100, 1200, 3000, 100_000, 2_000_000])
def test_truncated_it_is_refused(tmp_path: Path, size: int) -> None:
    data = PATH.read_bytes()
    assert size < len(data)
    (tmp_path / "mdef").write_bytes(data[:size])
    with pytest.raises(UserError, match="mdef"):
        read_mdef(tmp_path / "mdef")


def test_missing_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_mdef(tmp_path / "mdef")
