"""Projected teachers against all continuations of tiny language models."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from hkd.teachers.base import Sentence
from hkd.teachers.causal import CausalTeacher
from hkd.teachers.options import TeacherOptions
from hkd.teachers.projected import ProjectedTeacher
from hkd.testing.teachers import library
from hkd.units.subword import SubwordModel, train_subwords
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
    tokenizer = library.Tokenizer(library.models.Unigram([(token, -float(len(token) < 3)) for token in TOKENS], unk_id=0))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = library.decoders.Metaspace(prepend_scheme="never")
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="</s>", unk_token="</s>")
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(TOKENS), **shape, bos_token_id=0, eos_token_id=0))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    where = torch.device("cpu")
    return CausalTeacher(model, made, name="tiny", options=TeacherOptions(case="lower"), device=where, dtype=torch.float32)


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
    """Σ p of the continuations that certainly have piece s after the history, of those that certainly lack the history, of the others."""
    placed_S, excluded, unsure = np.zeros(len(subwords.inventory)), 0.0, 0.0
    said = "".join(TOKENS[token] for token in tokens).replace("▁", " ")
    for more, p in continuations(model, [0, *tokens]):
        ended = more[-1] == 0
        text = said + "".join(TOKENS[token] for token in more if token).replace("▁", " ")
        whole = words(text)
        if not ended and text[-1:] not in (" ", ","):
            whole = whole[:-1]  # the last word may go on
        pieces = tuple(subwords.encode(words(known) + whole)[0].tolist())
        if len(pieces) > len(history) and pieces[: len(history)] == history:
            placed_S[pieces[len(history)]] += p
        elif pieces[: len(history)] != history[: len(pieces)]:
            excluded += p
        else:
            unsure += p
    return placed_S, excluded, unsure


@pytest.mark.parametrize("look_ahead", [0, 20])
def test_a_causal_lm_lies_within_the_bounds_of_all_its_continuations(gpt2: CausalTeacher, units: Path, look_ahead: int) -> None:
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
        placed_S, _excluded, unsure = bounds(model, subwords, token_U[:state].tolist(), "", tuple(pieces[:n]))
        low_S = placed_S / (placed_S.sum() + unsure)
        high_S = (placed_S + unsure) / (placed_S.sum() + unsure)
        if unsure > 0.2 * placed_S.sum():
            continue
        assert (p_US[n, :-1] <= high_S + 1e-6).all()
        assert (p_US[n, :-1] + p_US[n, -1] >= placed_S / (placed_S.sum() + unsure) - 1e-6).all()
        assert low_S.max() > 0
        checked += 1
    assert checked >= 4
