"""A project's units: words → unit sequences, training, idempotence."""

from pathlib import Path

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.testing.teachers import tiny_sentences
from hkd.units.inventory import CHARACTER, MONOPHONE, SENONE, SUBWORD, UNIT_LEVELS, UnitInventory
from hkd.units.sequences import Units, UnitsConfig, train_units

TEXTS = tiny_sentences(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("units")
    train_units(TEXTS, folder, vocab_size=70)
    return folder


@pytest.mark.parametrize("level", UNIT_LEVELS)
def test_units_of_every_level_belong_to_words(folder: Path, level: str) -> None:
    units = Units(folder)
    spoken = ["the", "green", "door", "again"]
    unit_U, word_U = units.encode(spoken, level)
    assert unit_U.max() < len(units.inventory(level))
    assert sorted(set(word_U.tolist())) == [0, 1, 2, 3]
    assert (np.diff(word_U) >= 0).all()
    assert len(units.encode([], level)[0]) == 0


def test_senones_are_three_to_a_phone(folder: Path) -> None:
    units = Units(folder)
    assert len(units.encode(["a", "letter"], SENONE)[0]) == 3 * len(units.encode(["a", "letter"], MONOPHONE)[0])


def test_words_without_pronunciation_are_refused_at_phone_levels_alone(folder: Path) -> None:
    units = Units(folder)
    for level in (SENONE, MONOPHONE):
        with pytest.raises(UserError, match="mp3"):
            units.encode(["an", "mp3"], level)
    assert len(units.encode(["an", "mp3"], SUBWORD)[0]) > 0
    with pytest.raises(UserError, match="level must be"):
        units.encode(["a"], "syllable")


def test_training_again_changes_nothing_and_other_settings_are_refused(tmp_path: Path) -> None:
    first = train_units(TEXTS, tmp_path, vocab_size=70)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {level: v.digest for level, v in train_units(TEXTS, tmp_path, vocab_size=70).items()} == {
        level: v.digest for level, v in first.items()
    }
    assert stamps == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="its vocab_size is 70 instead of 45"):
        train_units(TEXTS, tmp_path, vocab_size=45)
    with pytest.raises(UserError, match="texts"):
        train_units(TEXTS[1:], tmp_path, vocab_size=70)
    assert train_units(TEXTS, tmp_path, vocab_size=45, overwrite=True)[SUBWORD].digest != first[SUBWORD].digest


def test_units_of_another_acoustic_model_are_refused(tmp_path: Path, folder: Path) -> None:
    UnitInventory(level=MONOPHONE, symbols=("A", "B")).save(tmp_path / "monophone.json")
    with pytest.raises(UserError, match="acoustic model"):
        Units(tmp_path).encode(["a"], MONOPHONE)


def test_config_is_checked() -> None:
    with pytest.raises(UserError, match="vocab_size"):
        UnitsConfig(vocab_size=1)


def test_a_folder_from_before_characters_gets_them(tmp_path: Path) -> None:
    first = train_units(TEXTS, tmp_path, vocab_size=70)
    for path in tmp_path.glob("character.*"):
        path.unlink()
    assert CHARACTER not in Units(tmp_path).levels
    assert {level: i.digest for level, i in train_units(TEXTS, tmp_path, vocab_size=70).items()} == {
        level: i.digest for level, i in first.items()
    }
    assert CHARACTER in Units(tmp_path).levels


def test_letters_of_other_splits_are_units_too_and_other_rules_of_words_are_refused(tmp_path: Path) -> None:
    made = train_units(["नमस्ते दुनिया", "मेरा घर"], tmp_path, vocab_size=60, other_splits=["आप कैसे हैं", "plain"])
    for level in (CHARACTER, SUBWORD):
        assert {"ै", "ं", "आ", "स"} <= set(made[level].symbols)
    assert "p" not in made[CHARACTER].symbols
    unknown = Units(tmp_path).spelling(SUBWORD).unknown
    assert all(unknown not in Units(tmp_path).encode(["आप", "हैं"], level)[0] for level in (CHARACTER, SUBWORD))
    with pytest.raises(UserError, match="its letters is "):
        train_units(["नमस्ते दुनिया", "मेरा घर"], tmp_path, vocab_size=60)
    marker = tmp_path / "made-from.json"
    marker.write_text(marker.read_text(encoding="utf-8").replace("hkd-words-4", "hkd-words-1"), encoding="utf-8")
    with pytest.raises(UserError, match=r"its normalisation is hkd-words-1 instead of hkd-words-4\. Use --overwrite"):
        train_units(["नमस्ते दुनिया", "मेरा घर"], tmp_path, vocab_size=60, other_splits=["आप कैसे हैं", "plain"])
