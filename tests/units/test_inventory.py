"""Unit inventories: digest, round trip, broken files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.errors import UserError
from hkd.units.inventory import UnitInventory

symbols = st.lists(st.text(min_size=1), min_size=1, max_size=8, unique=True).map(tuple)


@given(symbols, symbols)
def test_the_digest_tells_inventories_apart(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    digests = [UnitInventory(level="x", symbols=s).digest for s in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


def test_round_trip_and_tampering(tmp_path: Path) -> None:
    inventory = UnitInventory(level="monophone", symbols=("SIL", "AA", "é", " "), silence=0)
    path = tmp_path / "m.json"
    inventory.save(path)
    assert UnitInventory.load(path) == inventory
    assert inventory.id_of["é"] == 2
    value = json.loads(path.read_text())
    value["symbols"][1] = "AE"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="digest"):
        UnitInventory.load(path)


@pytest.mark.parametrize("text", ["", "[]", '{"level": "x"}', '{"level": "x", "symbols": 5}', "{"])
def test_broken_files_are_sentences(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match=r"m\.json"):
        UnitInventory.load(tmp_path / "m.json")


def test_missing_empty_and_double(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hkd units train"):
        UnitInventory.load(tmp_path / "none.json")
    for wrong in ((), ("a", "a")):
        with pytest.raises(UserError):
            UnitInventory(level="x", symbols=wrong)
