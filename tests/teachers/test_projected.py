"""Projected teachers against all continuations of tiny language models."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.sparse import NO_GOLD
from hkd.teachers.base import Sentence
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.teachers.projected import ProjectedTeacher
from hkd.teachers.transformer import CausalTeacher
from hkd.testing.teachers import WORDS, library
from hkd.units.inventory import UnitInventory
from hkd.units.sequences import SubwordModel, train_subwords
from hkd.units.text import words

TEXTS = ["ab abba baab aab bab abab b a aa babba", "abba ab'a bab b ba aba", "aab bb bba a'b a'ba"]
TOKENS = ("</s>", "▁a", "▁b", "▁ab", "▁ba", "a", "b", "ab", "'", ",")
DEPTH = 5


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units of a student that knows a, b and the apostrophe."""
    folder = tmp_path_factory.mktemp("units")
    train_subwords([" ".join(text.split()[n::3]) for text in TEXTS for n in range(3)] * 3, vocab_size=40, folder=folder)
    return folder


@pytest.fixture(scope="module")
def gpt2() -> CausalTeacher:
    """A causal LM of ten tokens."""
    tokenizer = library.Tokenizer(
        library.models.Unigram([(token, -float(len(token) < 3)) for token in TOKENS], unk_id=0)
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = library.decoders.Metaspace(prepend_scheme="never")
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="</s>", unk_token="</s>"
    )
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=len(TOKENS), **shape, bos_token_id=0, eos_token_id=0)
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    where = torch.device("cpu")
    return CausalTeacher(
        model, made, name="tiny", options=TeacherOptions(case="lower"), device=where, dtype=torch.float32
    )


def load(folder: Path, units: Path, **options: object) -> ProjectedTeacher:
    given = TeacherOptions(project=str(units / "subword.json"), **options)  # type: ignore[arg-type]
    teacher = load_teacher(str(folder), unit="subword", device="cpu", options=given)
    assert isinstance(teacher, ProjectedTeacher)
    return teacher


def sentence(teacher: ProjectedTeacher, text: str) -> Sentence:
    unit_U, word_U = teacher.encode(text.split())
    return Sentence(id=text, unit_U=unit_U, word_U=word_U)


def continuations(model: torch.nn.Module, prefix: list[int]) -> Iterator[tuple[tuple[int, ...], float]]:
    """All token sequences of DEPTH after a prefix (shorter ones end with </s>), with their probabilities."""
    open_ones: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for _ in range(DEPTH):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prefix, *more] for more, _ in open_ones])).logits[:, -1]
        p_NV = torch.softmax(logits.double(), -1).numpy()
        grown = [((*more, v), p * p_NV[n, v]) for n, (more, p) in enumerate(open_ones) for v in range(len(TOKENS))]
        yield from (one for one in grown if one[0][-1] == 0)
        open_ones = [one for one in grown if one[0][-1] != 0]
    yield from open_ones


def bounds(
    model: torch.nn.Module, subwords: SubwordModel, tokens: Sequence[int], known: str, history: tuple[int, ...]
) -> tuple[NDArray[np.float64], float, float]:
    """Σ p of the continuations that certainly have piece s after the history, of those that certainly lack the history,
    of the others."""
    placed_S, excluded, unsure = np.zeros(len(subwords.inventory)), 0.0, 0.0
    said = "".join(TOKENS[token] for token in tokens).replace("▁", " ")
    rest = known[len(said.strip()) :]
    for more, p in continuations(model, [0, *tokens]):
        if not TOKENS[more[0]].replace("▁", " " if said else "").startswith(rest):
            continue  # the condition: one token spells the rest
        ended = more[-1] == 0
        text = said + "".join(TOKENS[token] for token in more if token).replace("▁", " ")
        whole = words(text)
        if not ended and text[-1:] not in (" ", ","):
            whole = whole[:-1]  # the last word may go on
        pieces = tuple(subwords.encode(whole)[0].tolist())
        if len(pieces) > len(history) and pieces[: len(history)] == history:
            placed_S[pieces[len(history)]] += p
        elif pieces[: len(history)] != history[: len(pieces)]:
            excluded += p
        else:
            unsure += p
    return placed_S, excluded, unsure


@pytest.mark.parametrize("look_ahead", [0, 20])
def test_a_causal_lm_lies_within_the_bounds_of_all_its_continuations(
    gpt2: CausalTeacher, units: Path, look_ahead: int
) -> None:
    subwords = SubwordModel(units / "subword.model")
    teacher, model = ProjectedTeacher(gpt2, subwords, look_ahead=look_ahead), gpt2.model
    asked = sentence(teacher, "abba ab'a b")
    token_U, _ = gpt2.encode(asked.id.split())
    [p_US] = teacher.distributions([asked])
    np.testing.assert_allclose(p_US.sum(1), 1.0, atol=1e-9)
    pieces = asked.unit_U.tolist()
    read = [0]
    while len(read) <= len(token_U):
        text = "".join(TOKENS[token] for token in token_U[: len(read)]).replace("▁", " ").strip()
        read.append(len(text))
    checked = 0
    for n in range(len(pieces)):
        known = subwords.decode(pieces[:n])
        state = max(k for k in range(len(token_U) + 1) if read[k] <= len(known))
        placed_S, _excluded, unsure = bounds(model, subwords, token_U[:state].tolist(), known, tuple(pieces[:n]))
        low_S = placed_S / (placed_S.sum() + unsure)
        high_S = (placed_S + unsure) / (placed_S.sum() + unsure)
        if unsure > 0.2 * placed_S.sum():
            continue
        assert (p_US[n, :-1] <= high_S + 1e-6).all()
        assert (p_US[n, :-1] + p_US[n, -1] >= placed_S / (placed_S.sum() + unsure) - 1e-6).all()
        assert low_S.max() > 0
        checked += 1
    assert checked >= 4


def test_a_masked_lm_gives_what_its_one_token_words_give(teacher_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Words of one token: the sum over all tokens, each read back as text with the word before it, in float64."""
    folder = teacher_folder("bert")
    train_subwords([WORDS] * 3, vocab_size=60, folder=tmp_path)
    teacher = load(folder, tmp_path, look_ahead=0)
    subwords = SubwordModel(tmp_path / "subword.model")
    model, tokenizer = (
        transformers.AutoModelForMaskedLM.from_pretrained(folder).double().eval(),
        teacher._inner._tokenizer,
    )
    said = ["the", "cat", "sat", "and"]
    read = tokenizer(" ".join(said))["input_ids"]
    assert len(read) == 6
    asked = sentence(teacher, " ".join(said))
    [p_US] = teacher.distributions([asked])
    pieces = [tuple(subwords.encode([word])[0].tolist()) for word in said]
    plain = tokenizer.backend_tokenizer
    checked = 0
    for w in range(4):
        at = w + 1
        masked = torch.tensor([[*read[:at], tokenizer.mask_token_id, *read[at + 1 :]]])
        with torch.no_grad():
            p_V = torch.softmax(model(input_ids=masked).logits[0, at], -1).numpy()
        before = said[w - 1] if w else ""
        for place in range(len(pieces[w])):
            history = (*(pieces[w - 1] if w else ()), *pieces[w][:place])
            rest = (
                "".join(subwords.inventory.symbols[piece] for piece in history)
                .replace("▁", " ")
                .lstrip()[len(before) :]
            )
            p_S, left_open = np.zeros(len(subwords.inventory)), 0.0
            for v in range(len(p_V)):
                symbol = plain.id_to_token(v)
                if symbol is None or symbol in tokenizer.all_special_tokens or symbol in ("'", "##'"):
                    left_open += p_V[v] if not rest else 0.0
                    continue
                joined = symbol[2:] if symbol.startswith("##") else f" {symbol}" if before else symbol
                if not joined.startswith(rest):
                    continue
                got = tuple(subwords.encode(words(before + joined))[0].tolist())
                if len(got) > len(history) and got[: len(history)] == history:
                    p_S[got[len(history)]] += p_V[v]
                elif got == history and w + 1 < len(said):
                    p_S[pieces[w + 1][0]] += p_V[v]
                elif got == history:
                    left_open += p_V[v]
            n = sum(map(len, pieces[:w])) + place
            np.testing.assert_allclose(p_US[n, :-1], p_S / (p_S.sum() + left_open), atol=1e-5)
            checked += 1
    assert checked >= 4


def test_rows_are_sums_to_one_and_their_tail_holds_what_is_unplaced(
    teacher_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    train_subwords([WORDS] * 3, vocab_size=60, folder=tmp_path)
    for kind in ("gpt2", "roberta"):
        teacher = load(teacher_folder(kind), tmp_path)
        asked = [sentence(teacher, text) for text in ("the cat sat", "", "it's raining again")]
        for s, rows, p_US in zip(asked, teacher.score(asked, k=4), teacher.distributions(asked), strict=True):
            assert len(rows) == len(s.unit_U)
            np.testing.assert_allclose(np.exp(rows.logp_NK).sum(1) + np.exp(rows.tail_N), 1.0, atol=1e-5)
            kept = np.take_along_axis(p_US[:, :-1], rows.ids_NK.astype(np.int64), 1)
            np.testing.assert_allclose(np.exp(rows.logp_NK), kept, atol=1e-6)
            assert (np.exp(rows.tail_N) >= p_US[:, -1] - 1e-6).all()
            np.testing.assert_array_equal(rows.gold_N, s.unit_U)  # the reference path always places something on it
        alone = teacher.score(asked[:1], k=4)[0]
        np.testing.assert_allclose(alone.logp_NK, teacher.score(asked, k=4)[0].logp_NK, atol=1e-4)


def test_words_that_cannot_be_read_back_are_unplaced(teacher_folder: Callable[[str], Path], tmp_path: Path) -> None:
    train_subwords([WORDS] * 3, vocab_size=60, folder=tmp_path)
    teacher = load(teacher_folder("gpt2"), tmp_path)
    asked = sentence(teacher, "the café sat again")
    [p_US] = teacher.distributions([asked])
    rows = teacher.score([asked], k=4)[0]
    inside = asked.word_U == 1
    after = int(np.flatnonzero(asked.word_U == 2)[0])
    assert (p_US[inside, -1] == 1.0).all()
    assert p_US[after, -1] == 1.0
    assert (rows.gold_N[inside] == NO_GOLD).all()
    assert (p_US[[0, -1], -1] < 1.0).all()


def test_who_it_is_and_what_is_refused(teacher_folder: Callable[[str], Path], units: Path, tmp_path: Path) -> None:
    folder = teacher_folder("bert")
    teacher, other = load(folder, units), load(folder, units, look_ahead=1)
    assert teacher.inventory.digest == UnitInventory.load(units / "subword.json").digest
    assert teacher.info.options["project"] == teacher.inventory.digest
    assert len({teacher.info.digest, other.info.digest, teacher._inner.info.digest}) == 3
    assert (teacher.info.given, load(teacher_folder("gpt2"), units).info.given) == ("left-in-word", "left")
    with pytest.raises(UserError, match="mask_every must be 0"):
        load(folder, units, mask_every=7)
    with pytest.raises(UserError, match="selection must be topk"):
        teacher.score([], k=2, selection="sample")
    train_subwords(["other words"], vocab_size=40, folder=tmp_path)
    shutil.copy(units / "subword.json", tmp_path / "subword.json")
    with pytest.raises(UserError, match="must have the pieces"):
        load(folder, tmp_path)
    with pytest.raises(UserError, match="project must be left out for phone-trigram"):
        load_teacher("phone-trigram", unit="monophone", options=TeacherOptions(project=str(units)))


def test_a_masked_lm_does_not_see_the_rest_of_a_word(teacher_folder: Callable[[str], Path], tmp_path: Path) -> None:
    train_subwords([WORDS] * 3, vocab_size=60, folder=tmp_path)
    teacher = load(teacher_folder("bert"), tmp_path)
    asked = sentence(teacher, "the bandit sat")
    read = teacher._read(asked)
    size = read.begin[2] - read.begin[1]
    assert size > 2
    rows = list(teacher._rows(read, 0, len(read.word_T)))
    masked = {int(row.to[0]): (row.masked - row.at[0]).tolist() for row in rows}
    assert masked == {0: [0], **{1 + n: list(range(size - n)) for n in range(size)}, 1 + size: [0]}
    first, last = (int(np.flatnonzero(asked.word_U == 1)[n]) for n in (0, -1))
    [p_US] = teacher.distributions([asked])
    assert p_US[first, asked.unit_U[first]] > 0
    assert p_US[last, asked.unit_U[last]] > 0
