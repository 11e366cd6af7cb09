"""From words to a teacher's pieces: case rules, spaces, and the word of each piece."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.sparse import NO_GOLD
from hkd.teachers.base import Sentence
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.teachers.transformer import TransformerTeacher

Folder = Callable[[str], Path]
WORD = st.text(alphabet="abcdeghijorstuz'", min_size=1, max_size=6).map(lambda w: w.strip("'")).filter(bool)


def load(folder: Path, **options: object) -> TransformerTeacher:
    teacher = load_teacher(str(folder), unit="subword", device="cpu", options=TeacherOptions(**options))  # type: ignore[arg-type]
    assert isinstance(teacher, TransformerTeacher)
    return teacher


@pytest.fixture(scope="module", params=["bert", "roberta", "gpt2"])
def teacher(request: pytest.FixtureRequest, teacher_folder: Folder) -> TransformerTeacher:
    return load(teacher_folder(request.param), case="lower")


@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORD, max_size=6))
def test_pieces_of_a_word_spell_it(teacher: TransformerTeacher, words: list[str]) -> None:
    unit_U, word_U = teacher.encode(words)
    assert unit_U.dtype == word_U.dtype == np.int32
    assert (np.diff(word_U) >= 0).all()
    assert sorted(set(word_U.tolist())) == list(range(len(words)))
    for number, word in enumerate(words):
        pieces = [teacher.inventory.symbols[unit] for unit in unit_U[word_U == number]]
        spelled = "".join(piece.removeprefix("##").replace("Ġ", "") for piece in pieces)
        assert spelled in (word, "[UNK]") or "[UNK]" in spelled


def test_a_space_stands_before_the_first_word_only_where_others_may_stand_there(teacher_folder: Folder) -> None:
    for kind in ("bert", "roberta", "gpt2"):
        alone, wide = load(teacher_folder(kind), case="lower"), load(teacher_folder(kind), case="lower", context=48)
        first, later = (wide.encode(["cat", "sat", "cat"])[0][place] for place in (0, -1))
        assert first == later
        assert alone.encode(["cat"])[0].tolist() == alone._tokenizer("cat", add_special_tokens=False)["input_ids"]
        assert wide.info.options["leading_space"] == (kind != "bert")


def test_case_rules(teacher_folder: Folder) -> None:
    assert load(teacher_folder("bert")).info.options["case"] == "lower"
    cased = load(teacher_folder("roberta"))
    assert cased.info.options["case"] == "sentence"
    words = ["and", "i", "say", "i'm", "here"]
    text = "".join(cased.inventory.symbols[unit] for unit in cased.encode(words)[0]).replace("Ġ", " ")
    assert text == "And I say I'm here"
    upper = load(teacher_folder("roberta"), case="upper")
    assert (
        "".join(upper.inventory.symbols[unit] for unit in upper.encode(words)[0]).replace("Ġ", " ")
        == "AND I SAY I'M HERE"
    )
    assert upper.info.digest != cased.info.digest


def test_the_inventory_has_the_size_of_the_models_output(teacher: TransformerTeacher) -> None:
    assert len(teacher.inventory) == teacher.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    assert teacher.inventory.symbols[-1].startswith("<unused")


def test_empty_transcripts(teacher: TransformerTeacher) -> None:
    unit_U, word_U = teacher.encode([])
    assert unit_U.shape == word_U.shape == (0,)


def test_pieces_that_are_parts_of_a_character_belong_to_its_word(teacher_folder: Folder) -> None:
    for kind in ("roberta", "gpt2"):
        teacher = load(teacher_folder(kind), case="lower")
        said = ["the", "naïve", "日本", "cat"]
        unit_U, word_U = teacher.encode(said)
        assert (np.diff(word_U) >= 0).all()
        assert [int((word_U == n).sum()) for n in (1, 2)] == [len(" naïve".encode()), len(" 日本".encode())]
        assert teacher._tokenizer.decode(unit_U[word_U == 2].tolist()).strip() == "日本"


def test_a_word_that_the_tokenizer_does_not_know_is_one_position_without_gold(teacher_folder: Folder) -> None:
    teacher = load(teacher_folder("bert"))
    unit_U, word_U = teacher.encode(["the", "日本", "cat"])
    rows = teacher.score([Sentence(id="a", unit_U=unit_U, word_U=word_U)], k=4)[0]
    assert word_U.tolist().count(1) == len(rows) - 2
    assert (rows.gold_N[word_U == 1] == NO_GOLD).all()
    assert (rows.gold_N[word_U != 1] >= 0).all()


def test_special_tokens_are_never_kept(teacher: TransformerTeacher) -> None:
    unit_U, word_U = teacher.encode(["the", "cat"])
    rows = teacher.score([Sentence(id="a", unit_U=unit_U, word_U=word_U)], k=10_000)[0]
    assert rows.ids_NK.shape[1] == teacher.num_candidates == len(teacher.inventory) - len(teacher._special) - 3
    assert not set(teacher._tokenizer.all_special_ids) & set(rows.ids_NK.reshape(-1).tolist())
