"""Causal teachers against the model's own full logits in float64, one prefix at a time."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from hkd.teachers.base import Sentence
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.teachers.transformer import CausalTeacher
from hkd.testing.teachers import CAUSAL

Folder = Callable[[str], Path]
TEXTS = ("the cat sat on an old mat", "i'm reading", "a", "")


def load(folder: Path, **options: object) -> CausalTeacher:
    teacher = load_teacher(str(folder), unit="subword", device="cpu", options=TeacherOptions(**options))  # type: ignore[arg-type]
    assert isinstance(teacher, CausalTeacher)
    return teacher


def sentence(teacher: CausalTeacher, text: str) -> Sentence:
    unit_U, word_U = teacher.encode(text.split())
    return Sentence(id=text, unit_U=unit_U, word_U=word_U)


@cache
def reference_model(folder: Path) -> tuple[torch.nn.Module, int, int]:
    """The model in float64, the start token, and the tokenizer's size."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return model, start, len(tokenizer)


def reference(folder: Path, before: list[int]) -> NDArray[np.float64]:
    """log p(v | start, before)."""
    model, start, _ = reference_model(folder)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[start, *before]])).logits
    return torch.log_softmax(logits[0, -1].double(), -1).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", CAUSAL)
def test_equals_one_prefix_at_a_time_in_float64(teacher_folder: Folder, kind: str) -> None:
    folder = teacher_folder(kind)
    teacher = load(folder, token_budget=32)
    asked = [sentence(teacher, text) for text in TEXTS]
    for s, rows in zip(asked, teacher.score(asked, k=6), strict=True):
        assert len(rows) == len(s.unit_U)
        for n, unit in enumerate(s.unit_U.tolist()):
            logp_V = reference(folder, s.unit_U[:n].tolist())
            np.testing.assert_allclose(rows.logp_NK[n], logp_V[rows.ids_NK[n]], atol=1e-4)
            np.testing.assert_allclose(rows.gold_logp_N[n], logp_V[unit], atol=1e-4)
            np.testing.assert_allclose(np.exp(rows.logp_NK[n]).sum() + np.exp(rows.tail_N[n]), 1.0, atol=1e-5)
            best = np.sort(
                np.delete(logp_V, [0, *range(len(transformers.AutoTokenizer.from_pretrained(folder)), len(logp_V))])
            )[::-1]
            np.testing.assert_allclose(rows.logp_NK[n][:5], best[:5], atol=1e-4)
            assert 0 not in rows.ids_NK[n]  # <|endoftext|>


def test_what_follows_is_never_read(teacher_folder: Folder) -> None:
    teacher = load(teacher_folder("llama"), context=48)
    s = sentence(teacher, TEXTS[0])
    other = tuple(sentence(teacher, TEXTS[1]).unit_U.tolist())
    alone, before, after = teacher.score(
        [
            s,
            Sentence(id="b", unit_U=s.unit_U, word_U=s.word_U, before=other),
            Sentence(id="a", unit_U=s.unit_U, word_U=s.word_U, after=other),
        ],
        k=4,
    )
    np.testing.assert_allclose(alone.logp_NK, after.logp_NK, atol=1e-5)
    assert not np.allclose(alone.gold_logp_N, before.gold_logp_N, atol=1e-2)
    expected = reference(teacher_folder("llama"), [*other, *s.unit_U[:3].tolist()])
    np.testing.assert_allclose(before.gold_logp_N[3], expected[s.unit_U[3]], atol=1e-4)


def test_long_texts_keep_at_least_half_a_window_of_left_context(teacher_folder: Folder) -> None:
    folder = teacher_folder("gpt2")
    teacher = load(folder)
    s = sentence(teacher, " ".join(["the old cat and a bird sang"] * 24))
    room = teacher.room
    assert len(s.unit_U) > 2 * room
    rows = teacher.score([s], k=4)[0]
    starts = sorted({*range(0, len(s.unit_U) - room, room // 2), len(s.unit_U) - room})
    for n in range(0, len(s.unit_U), 11):
        start = min(starts, key=lambda a: abs(n - a - (room - 1) * 0.75))
        assert n < room // 2 or n - start >= room // 2 - 1
        logp_V = reference(folder, s.unit_U[start:n].tolist())
        np.testing.assert_allclose(rows.logp_NK[n], logp_V[rows.ids_NK[n]], atol=1e-4)


def test_info_says_left(teacher_folder: Folder) -> None:
    info = load(teacher_folder("gpt2")).info
    assert (info.kind, info.direction, info.given) == ("causal", "left", "left")
