"""What needs a GPU: there it gives what the CPU gives. Run them with `pytest -m cuda`; without one they are skipped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hkd.config import merge
from hkd.losses import sparse_kl
from hkd.teachers.base import Sentence
from hkd.teachers.load import load_teacher
from hkd.teachers.transformer import CausalTeacher, MaskedTeacher
from hkd.testing.teachers import make_teacher_folder
from hkd.topk import select_topk
from kit.runs import trained

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
DEVICES = ("cpu", "cuda")


def test_the_likeliest_units_and_the_loss_are_those_of_the_cpu() -> None:
    random = torch.Generator().manual_seed(0)
    teacher_NV, student_NV = 3 * torch.randn(64, 5000, generator=random), torch.randn(64, 5000, generator=random)
    gold_N = torch.randint(5000, (64,), generator=random)
    rows = [select_topk(teacher_NV.to(device), gold_N.to(device), k=16) for device in DEVICES]
    np.testing.assert_array_equal(rows[1].ids_NK, rows[0].ids_NK)
    np.testing.assert_allclose(rows[1].logp_NK, rows[0].logp_NK, atol=1e-4)
    np.testing.assert_allclose(rows[1].tail_N, rows[0].tail_N, atol=1e-4)
    loss_N, gradient_NV = [], []
    for device in DEVICES:
        logits_NV = student_NV.to(device, copy=True).requires_grad_()
        labels = {
            "ids_MK": torch.from_numpy(rows[0].ids_NK).long(), "logp_MK": torch.from_numpy(rows[0].logp_NK),
            "tail_M": torch.from_numpy(rows[0].tail_N),
        }  # fmt: skip
        loss = sparse_kl(logits_NV, **{name: value.to(device) for name, value in labels.items()})
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert logits_NV.grad is not None
        loss_N.append(loss.detach().cpu())
        gradient_NV.append(logits_NV.grad.cpu())
    torch.testing.assert_close(loss_N[1], loss_N[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(gradient_NV[1], gradient_NV[0], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize(("precision", "nats"), [("fp32", 1e-3), ("bf16", 0.1)])
def test_a_teacher_says_what_it_says_on_the_cpu(tmp_path: Path, kind: str, precision: str, nats: float) -> None:
    folder = make_teacher_folder(tmp_path / kind, kind)
    said = []
    for device, here in zip(DEVICES, ("fp32", precision), strict=True):
        teacher = load_teacher(str(folder), unit="subword", device=device, precision=here)
        assert isinstance(teacher, MaskedTeacher | CausalTeacher)
        units = [teacher.encode(text.split()) for text in ("a cold day", "the old house by the sea")]
        asked = [Sentence(id=f"u{n}", unit_U=unit_U, word_U=word_U) for n, (unit_U, word_U) in enumerate(units)]
        said.append(teacher.score(asked, k=8))
    for cpu, gpu in zip(*said, strict=True):
        np.testing.assert_allclose(gpu.gold_logp_N, cpu.gold_logp_N, atol=nats)


@pytest.mark.parametrize("objective", ["none", "hierarchical"])
def test_a_student_trains_as_on_the_cpu(labelled: Path, tmp_path: Path, tiny: dict[str, Any], objective: str) -> None:
    settings = merge(tiny, {"objective": objective, "encoder": {"dropout": 0.0}})
    final = {}
    for device in DEVICES:
        final[device] = trained(labelled, tmp_path / device, settings, device=device).metrics
    assert final["cuda"].keys() == final["cpu"].keys()
    for name, value in final["cpu"].items():
        assert final["cuda"][name] == pytest.approx(value, rel=0.05, abs=0.05), name


def test_a_student_trains_on_text(texted: Path, tmp_path: Path, text_settings: dict[str, Any]) -> None:
    settings = merge(text_settings, {"objective": "none", "text": {"labels": ""}})
    assert trained(texted, tmp_path / "run", settings, device="cuda").steps == 12
