"""From words to a teacher's pieces: case rules, spaces, and the word of each piece."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.sparse import NO_GOLD
from hkd.teachers.base import Sentence
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.teachers.transformer import TransformerTeacher
from hkd.testing.teachers import WORDS, byte_bpe, library, transformers
from hkd.units.text import words

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
@given(spoken=st.lists(WORD, max_size=6))
def test_pieces_of_a_word_spell_it(teacher: TransformerTeacher, spoken: list[str]) -> None:
    unit_U, word_U = teacher.encode(spoken)
    assert unit_U.dtype == word_U.dtype == np.int32
    assert (np.diff(word_U) >= 0).all()
    assert sorted(set(word_U.tolist())) == list(range(len(spoken)))
    for number, word in enumerate(spoken):
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
    spoken = ["and", "i", "say", "i'm", "here"]
    text = "".join(cased.inventory.symbols[unit] for unit in cased.encode(spoken)[0]).replace("Ġ", " ")
    assert text == "And I say I'm here"
    upper = load(teacher_folder("roberta"), case="upper")
    assert (
        "".join(upper.inventory.symbols[unit] for unit in upper.encode(spoken)[0]).replace("Ġ", " ")
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


def folder_of(tokenizer: Any, folder: Path, vocabulary: int, **ids: int) -> Path:
    """A tiny BERT where the tokenizer has a mask token, else a tiny Llama, with the tokenizer beside it."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    masked = tokenizer.mask_token is not None
    config = (transformers.BertConfig if masked else transformers.LlamaConfig)(vocab_size=vocabulary, **size, **ids)
    torch.manual_seed(0)
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_with_ids_beyond_their_number_are_units(tmp_path: Path) -> None:
    said = json.loads(byte_bpe([WORDS], masked=False).backend_tokenizer.to_str())
    vocabulary = said["model"]["vocab"]
    moved = sorted(vocabulary, key=vocabulary.__getitem__)[-40:]
    vocabulary |= {token: vocabulary[token] + 50 for token in moved}
    own = library.Tokenizer.from_str(json.dumps(said))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<|endoftext|>")
    teacher = load(folder_of(tokenizer, tmp_path / "lm", max(vocabulary.values()) + 4, bos_token_id=0), case="lower")
    assert teacher.num_candidates == len(vocabulary) - 1  # the start token
    spoken = WORDS.split()
    unit_U, word_U = teacher.encode(spoken)
    assert set(unit_U.tolist()) & {vocabulary[token] for token in moved}
    assert [teacher.inventory.symbols[unit] for unit in unit_U] == own.encode(WORDS).tokens
    rows = teacher.score([Sentence(id="a", unit_U=unit_U, word_U=word_U)], k=4)[0]
    np.testing.assert_array_equal(rows.gold_N, unit_U)


def test_chinese_and_japanese_are_read_without_spaces_other_scripts_with_them(tmp_path: Path) -> None:
    text = "我喜欢你 iphone 很好 カメラ"
    tokenizer = byte_bpe([text], masked=False, size=340)
    teacher = load(folder_of(tokenizer, tmp_path / "lm", len(tokenizer), bos_token_id=0), case="lower")
    spoken = words(text)
    assert spoken[:3] == ["我", "喜", "欢"]
    unit_U, word_U = teacher.encode(spoken)
    assert tokenizer.decode(unit_U.tolist()) == "我喜欢你 iphone 很好カメラ"
    assert tokenizer.decode(unit_U[word_U == word_U[0]].tolist())[0] == "我"
    assert not teacher.words_unknown()  # though pieces reach over words
    assert tokenizer.decode(teacher.encode(["สวัสดี", "ครับ", "한국", "말"])[0].tolist()) == "สวัสดี ครับ 한국 말"


def test_a_sentence_begins_with_the_title_case_of_its_script(teacher_folder: Folder) -> None:
    written = load(teacher_folder("roberta"), case="sentence")._written
    assert written(["გამარჯობა", "მსოფლიო"]) == ["გამარჯობა", "მსოფლიო"]  # Georgian has no capitals in running text
    assert written(["ǆep"]) == ["ǅep"]
    assert written(["émile", "émile"]) == ["Émile", "émile"]


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_no_space_stands_before_the_final_mark(scheme: str, tmp_path: Path) -> None:
    own = library.Tokenizer(library.models.BPE(unk_token="<unk>"))
    own.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = library.trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    own.train_from_iterator([f"{word}." for word in WORDS.split()], trainer)
    own.post_processor = library.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", **names)
    teacher = load(folder_of(tokenizer, tmp_path / "lm", len(tokenizer)), case="lower", final_mark=".")
    assert teacher._end.tolist() == tokenizer.convert_tokens_to_ids([".", "</s>"])
