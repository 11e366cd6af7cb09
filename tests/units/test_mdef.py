"""The model definition: its layout, its invariants, and files that are none."""

import struct
from pathlib import Path

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.units.lexicon import model_folder
from hkd.units.mdef import WORD_BEGIN, WORD_END, WORD_INTERNAL, WORD_SINGLE, ModelDefinition, read_mdef

PATH = model_folder() / "en-us" / "mdef"


@pytest.fixture(scope="module")
def definition() -> ModelDefinition:
    return read_mdef(PATH)


def test_counts_of_the_english_model(definition: ModelDefinition) -> None:
    assert len(definition.phones) == 42
    assert (definition.num_senones, definition.num_ci_senones) == (5126, 126)
    assert definition.phones[definition.silence] == "SIL"
    assert [p for p, filler in zip(definition.phones, definition.filler, strict=True) if filler] == ["+NSN+", "+SPN+", "SIL"]
    assert definition.senones_PS.shape[1] == 3
    assert np.array_equal(np.unique(definition.senones_PS), np.arange(5126))
    assert np.array_equal(definition.senones_PS[:42], np.arange(126).reshape(42, 3))


def test_fillers_as_neighbours_count_as_silence(definition: ModelDefinition) -> None:
    base, right = definition.phones.index("AA"), definition.phones.index("T")
    noise = definition.phones.index("+NSN+")
    assert definition.exact(base, noise, right, WORD_BEGIN) == definition.exact(base, definition.silence, right, WORD_BEGIN)


def toy() -> ModelDefinition:
    """Four phones (3 is silence), of which phone 0 has a few triphones."""
    triphones = {(0, 1, 2, WORD_INTERNAL): 4, (0, 1, 1, WORD_END): 5, (0, 3, 2, WORD_BEGIN): 6, (0, 1, 3, WORD_END): 7}
    senones = np.arange(8, dtype=np.int32)[:, None]
    return ModelDefinition(
        phones=("A", "B", "C", "SIL"), silence=3, filler=(False, False, False, True), num_senones=8, num_ci_senones=4,
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
