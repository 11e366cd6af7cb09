"""Masked teachers against a straight reference: one masked position at a time, full softmax, float64."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from hkd.errors import HkdError
from hkd.teachers.base import Sentence
from hkd.teachers.forward import TokenRow
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.teachers.transformer import MaskedTeacher
from hkd.testing.teachers import MASKED

Folder = Callable[[str], Path]
SPECIAL = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>"}
TEXTS = ("the cat sat on an old mat", "i'm reading a long letter", "zebra quaffs", "a", "", "the cat sat on an old mat")


def load(folder: Path, **options: object) -> MaskedTeacher:
    teacher = load_teacher(str(folder), unit="subword", device="cpu", options=TeacherOptions(**options))  # type: ignore[arg-type]
    assert isinstance(teacher, MaskedTeacher)
    return teacher


def sentences(teacher: MaskedTeacher, texts: tuple[str, ...] = TEXTS) -> list[Sentence]:
    units = [teacher.encode(text.split()) for text in texts]
    return [Sentence(id=f"u{n}", unit_U=unit_U, word_U=word_U) for n, (unit_U, word_U) in enumerate(units)]


@cache
def reference_model(folder: Path) -> tuple[torch.nn.Module, list[int], list[int], int]:
    """The model in float64, the special tokens around a text, and the mask's id."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    around = tokenizer("")["input_ids"]
    return model, around[:1], around[1:], tokenizer.mask_token_id


def reference(folder: Path, token_W: list[int], masked: list[int], at: int) -> NDArray[np.float64]:
    """log p(v) at place `at` of a text whose places `masked` are masked."""
    model, prefix, suffix, mask = reference_model(folder)
    tokens = [mask if place in masked else token for place, token in enumerate(token_W)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prefix, *tokens, *suffix]])).logits
    return torch.log_softmax(logits[0, len(prefix) + at].double(), -1).numpy()  # type: ignore[no-any-return]


def check_row(rows: object, n: int, logp_V: NDArray[np.float64], teacher: MaskedTeacher, k: int) -> None:
    """Row n holds the k likeliest units that are not special (or the gold one), true log-probabilities, and the rest as
    tail."""
    ids, logp, tail, gold = rows.ids_NK[n], rows.logp_NK[n], rows.tail_N[n], rows.gold_N[n]  # type: ignore[attr-defined]
    np.testing.assert_allclose(logp, logp_V[ids], atol=1e-4)
    special = {
        v for v, symbol in enumerate(teacher.inventory.symbols) if symbol in SPECIAL or symbol.startswith("<unused")
    }
    assert not special & set(ids.tolist())
    candidates = [v for v in np.argsort(-logp_V, kind="stable").tolist() if v not in special]
    best = logp_V[candidates[:k]]
    kept = np.sort(logp_V[ids])[::-1]
    if gold >= 0 and gold not in candidates[:k]:
        assert gold == ids[-1] or gold in ids
        best, kept = best[:-1], np.sort(logp_V[[v for v in ids if v != gold]])[::-1]
    np.testing.assert_allclose(kept, best, atol=1e-4)
    rest = np.delete(logp_V, ids)
    np.testing.assert_allclose(tail, np.log(np.exp(rest).sum()), atol=1e-4)


@pytest.mark.parametrize("kind", MASKED)
def test_equals_one_position_at_a_time_in_float64(teacher_folder: Folder, kind: str) -> None:
    folder = teacher_folder(kind)
    teacher = load(folder, token_budget=64)
    asked = sentences(teacher)
    scored = teacher.score(asked, k=6, temperatures=(2.0,))
    assert [len(rows) for rows in scored] == [len(s.unit_U) for s in asked]
    assert [len(rows) for rows in scored][4] == 0
    for sentence, rows in list(zip(asked, scored, strict=True))[:4]:
        for n in range(len(sentence.unit_U)):
            logp_V = reference(folder, sentence.unit_U.tolist(), [n], n)
            check_row(rows, n, logp_V, teacher, 6)
            np.testing.assert_allclose(rows.lse_NJ[n, 0], np.log(np.exp(logp_V / 2).sum()), atol=1e-4)
            if rows.gold_N[n] >= 0:
                np.testing.assert_allclose(rows.gold_logp_N[n], logp_V[sentence.unit_U[n]], atol=1e-4)


def test_batches_and_neighbours_change_nothing(teacher_folder: Folder) -> None:
    folder = teacher_folder("bert")
    small, large = load(folder, token_budget=1), load(folder, token_budget=10_000)
    asked = sentences(small)
    alone = [small.score([s], k=5)[0] for s in asked]
    for a, b in zip(alone, large.score(asked, k=5), strict=True):
        np.testing.assert_array_equal(a.ids_NK, b.ids_NK)
        np.testing.assert_allclose(a.logp_NK, b.logp_NK, atol=2e-5)
    again = large.score(asked, k=5)
    for a, b in zip(again, large.score(asked, k=5), strict=True):
        assert a.logp_NK.tobytes() == b.logp_NK.tobytes()
        assert a.tail_N.tobytes() == b.tail_N.tobytes()


@pytest.mark.parametrize("every", [1, 3])
def test_mask_every_equals_its_hand_made_masks(teacher_folder: Folder, every: int) -> None:
    folder = teacher_folder("roberta")
    teacher = load(folder, mask_every=every)
    sentence = sentences(teacher)[0]
    rows = teacher.score([sentence], k=4)[0]
    for n in range(len(sentence.unit_U)):
        together = [place for place in range(len(sentence.unit_U)) if place % every == n % every]
        check_row(rows, n, reference(folder, sentence.unit_U.tolist(), together, n), teacher, 4)
    if every == 3:
        exact = load(folder).score([sentence], k=4)[0]
        assert not np.allclose(exact.gold_logp_N, rows.gold_logp_N, atol=1e-3)
    assert teacher.info.digest != load(folder).info.digest


def test_context_is_read_and_not_scored(teacher_folder: Folder) -> None:
    folder = teacher_folder("bert")
    teacher = load(folder, context=40)
    one, two = sentences(teacher)[:2]
    left = Sentence(id="l", unit_U=one.unit_U, word_U=one.word_U, after=tuple(two.unit_U.tolist()))
    right = Sentence(id="r", unit_U=two.unit_U, word_U=two.word_U, before=tuple(one.unit_U.tolist()))
    whole = [*one.unit_U.tolist(), *two.unit_U.tolist()]
    for sentence, rows, first in zip(
        (left, right), teacher.score([left, right], k=5), (0, len(one.unit_U)), strict=True
    ):
        assert len(rows) == len(sentence.unit_U)
        for n in range(len(rows)):
            check_row(rows, n, reference(folder, whole, [first + n], first + n), teacher, 5)


def test_texts_beyond_the_model_are_scored_in_windows(teacher_folder: Folder) -> None:
    folder = teacher_folder("bert")
    teacher = load(folder)
    text = " ".join(("the old cat and a bird sang " * 20).split())
    sentence = sentences(teacher, (text,))[0]
    size, room = len(sentence.unit_U), teacher.room
    assert size > 2 * room
    assert room == 62
    rows = teacher.score([sentence], k=5)[0]
    starts = sorted({*range(0, size - room, room // 2), size - room})
    for n in range(0, size, 7):
        start = min(starts, key=lambda s: abs(n - s - (room - 1) / 2))
        assert n < room // 2 or n >= size - room // 2 or room // 4 <= n - start < room - room // 4
        check_row(
            rows,
            n,
            reference(folder, sentence.unit_U[start : start + room].tolist(), [n - start], n - start),
            teacher,
            5,
        )


def test_the_teacher_is_frozen(teacher_folder: Folder) -> None:
    teacher = load(teacher_folder("electra"))
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    with torch.enable_grad():
        teacher.score(sentences(teacher), k=3)
    assert not teacher.model.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())


def test_a_final_mark_is_context_and_no_position(teacher_folder: Folder) -> None:
    folder = teacher_folder("roberta")
    teacher = load(folder, final_mark=".")
    sentence = sentences(teacher)[0]
    rows = teacher.score([sentence], k=4)[0]
    assert len(rows) == len(sentence.unit_U)
    mark = transformers.AutoTokenizer.from_pretrained(folder)(".", add_special_tokens=False)["input_ids"]
    for n in range(len(rows)):
        check_row(rows, n, reference(folder, [*sentence.unit_U.tolist(), *mark], [n], n), teacher, 4)


def test_bf16_is_close(teacher_folder: Folder) -> None:
    folder = teacher_folder("bert")
    half = load_teacher(str(folder), unit="subword", device="cpu", precision="bf16")
    full = load(folder)
    assert half.info.digest != full.info.digest
    asked = sentences(full)[:1]
    np.testing.assert_allclose(half.score(asked, k=3)[0].gold_logp_N, full.score(asked, k=3)[0].gold_logp_N, atol=0.3)


def test_out_of_memory_halves_the_budget_and_goes_on(
    teacher_folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = load(teacher_folder("bert"), token_budget=400)
    asked = sentences(teacher)
    expected = teacher.score(asked, k=3)
    whole = teacher._scorer._hidden

    def small(batch: Sequence[TokenRow]) -> torch.Tensor:
        if len(batch) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return whole(batch)

    monkeypatch.setattr(teacher._scorer, "_hidden", small)
    for a, b in zip(teacher.score(asked, k=3), expected, strict=True):
        np.testing.assert_allclose(a.logp_NK, b.logp_NK, atol=2e-5)
    assert "token budget is now" in caplog.text

    def none(batch: Sequence[TokenRow]) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(teacher._scorer, "_hidden", none)
    with pytest.raises(HkdError, match="must fit into the memory"):
        teacher.score(asked, k=3)


def test_the_cost_of_masking_together_is_the_dense_kl(teacher_folder: Folder) -> None:
    folder = teacher_folder("bert")
    teacher = load(folder, mask_every=2)
    asked = sentences(teacher)[:2]
    kept = [
        v
        for v, symbol in enumerate(teacher.inventory.symbols)
        if symbol not in SPECIAL and not symbol.startswith("<unused")
    ]
    total, count = 0.0, 0
    for s in asked:
        for n in range(len(s.unit_U)):
            p = reference(folder, s.unit_U.tolist(), [n], n)
            q = reference(folder, s.unit_U.tolist(), list(range(n % 2, len(s.unit_U), 2)), n)
            p, q = (np.append(x[kept], np.log(np.exp(np.delete(x, kept)).sum())) for x in (p, q))
            total, count = total + float((np.exp(p) * (p - q)).sum()), count + 1
    assert total / count > 0.01
    np.testing.assert_allclose(teacher.measured(asked)["mask_every_kl_nats"], total / count, rtol=1e-3)
    assert load(folder).measured(asked) == {}
