"""Senones for an alignment of phones: the tiers fit, and text gives what was aligned."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hkd import manifest
from hkd.align.alignment import Alignment, aligned_to_units, write_alignment
from hkd.errors import UserError
from hkd.labelling.tie import TieConfig, tie
from hkd.train.config import TrainConfig
from hkd.train.data import open_data
from hkd.units.inventory import CHARACTER, MONOPHONE, SENONE, SUBWORD
from hkd.units.sequences import Units
from hkd.units.tying import PhoneTying, adopt


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A project whose alignment has phones alone, as MFA's."""
    shutil.copytree(prepared, tmp_path / "p")
    there = Alignment(prepared / "alignment.arrow")
    rows = [replace(there[name], tiers={MONOPHONE: there[name].tiers[MONOPHONE]}) for name in there]
    write_alignment(
        tmp_path / "p" / "alignment.arrow", rows, manifest_digest=there.manifest_digest, failed={},
        aligner={"name": "mfa"},
        inventories={MONOPHONE: there.inventories[MONOPHONE]}, silences={MONOPHONE: there.silences[MONOPHONE]},
    )  # fmt: skip
    phones = there.inventories[MONOPHONE].symbols
    adopt(tmp_path / "p" / "units", PhoneTying(phones), {"hello": [("HH", "AH", "L", "OW")]}, overwrite=True)
    return tmp_path / "p"


def test_an_alignment_without_senones_says_so(folder: Path) -> None:
    units = Units(folder / "units")
    assert units.levels == (MONOPHONE, CHARACTER, SUBWORD)
    assert len(units.encode(["hello"], MONOPHONE)[0]) == 4
    with pytest.raises(UserError, match="hkd units tie"):
        units.encode(["hello"], SENONE)
    given = {
        "manifest": folder / "manifest.jsonl",
        "alignment": folder / "alignment.arrow",
        "units": folder / "units",
        "labels": None,
    }
    with pytest.raises(UserError, match="level senone must be aligned"):
        open_data(TrainConfig(objective="hard-heads", levels=(SENONE,)), **given)


def test_tied_senones_fit_the_phones_and_text_gives_them(folder: Path, tmp_path: Path) -> None:
    whole = manifest.read(folder / "manifest.jsonl")
    shutil.copytree(folder, tmp_path / "again")
    before = Alignment(folder / "alignment.arrow")
    config = TieConfig(num_senones=190, min_frames=4)
    report = tie(whole, folder / "alignment.arrow", folder / "units", config=config, overwrite=True)
    assert (report.utterances, report.failed) == (12, {})
    assert 126 < report.senones <= 190
    found, units = Alignment(folder / "alignment.arrow"), Units(folder / "units")
    assert found.inventories == units.tying.inventories
    assert found.inventories[MONOPHONE] == before.inventories[MONOPHONE]
    compared = 0
    for name in found:
        row = found[name]
        assert np.array_equal(row.tiers[SENONE].start_U1[::3], row.tiers[MONOPHONE].start_U1)
        assert np.array_equal(
            units.tying.phone_of_senone_V[row.tiers[SENONE].unit_U], np.repeat(row.tiers[MONOPHONE].unit_U, 3)
        )
        assert np.abs(row.word_tier.start_U1 - before[name].word_tier.start_U1).max() <= 3
        phones = [units.lexicon.pronounce(word) for word in row.words]
        aligned = aligned_to_units(row, MONOPHONE, found.silences[MONOPHONE])
        if -1 in row.word_tier.unit_U[1:-1] or not np.array_equal(aligned[0], units.tying.monophones(phones)[0]):
            continue
        compared += 1
        for mine, theirs in zip(
            units.encode(row.words, SENONE), aligned_to_units(row, SENONE, found.silences[SENONE]), strict=True
        ):
            assert np.array_equal(mine, theirs)
    assert compared >= 3
    tie(whole, tmp_path / "again" / "alignment.arrow", tmp_path / "again" / "units", config=config, overwrite=True)
    assert (tmp_path / "again" / "alignment.arrow").read_bytes() == (folder / "alignment.arrow").read_bytes()


def test_what_cannot_be_tied_is_refused(folder: Path, prepared: Path) -> None:
    whole = manifest.read(folder / "manifest.jsonl")
    with pytest.raises(UserError, match="126 or more"):
        tie(whole, folder / "alignment.arrow", folder / "units", config=TieConfig(num_senones=50))
    with pytest.raises(UserError, match="no senones yet"):
        tie(whole, prepared / "alignment.arrow", folder / "units", config=TieConfig())
    with pytest.raises(UserError, match="positive"):
        TieConfig(num_senones=0)
