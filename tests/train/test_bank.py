"""A bank holds what fold students say of speakers that they have not learnt from; stopped, it goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hkd.config import merge
from hkd.errors import Progress, UserError, no_progress
from hkd.features.cache import FeatureSource
from hkd.loop.checkpoint import load_model_tensors
from hkd.manifest import Utterance
from hkd.stream.text import Bank, cut
from hkd.student.model import StudentModel
from hkd.train.bank import BankConfig, BankReport, deal, make_bank
from hkd.train.data import low_part
from kit.runs import config_of, inputs, opened

SETTINGS = {"condition": ["senone", "monophone"], "taps": {"monophone": 1}, "slots": {"senone": 2}}


def made(
    project: Path, folder: Path, settings: dict[str, Any], progress: Progress = no_progress, **bank: Any
) -> BankReport:
    config, options = config_of(settings), BankConfig(**{"folds": 2, **bank})
    return make_bank(config, folder, bank=options, device="cpu", progress=progress, **inputs(project))


@pytest.fixture
def settings(tiny: dict[str, Any]) -> dict[str, Any]:
    return merge(merge(tiny, SETTINGS), {"loop": {"max_steps": 3, "save_every": 1}})


def test_it_holds_what_students_of_other_speakers_hear(
    labelled: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    report = made(labelled, tmp_path, settings, k=5)
    bank = Bank.load(tmp_path)
    data = opened(labelled, {**settings, "objective": "none"})
    low = low_part(data.plan).student
    assert (low.encoder.num_layers, [head.name for head in low.heads]) == (1, ["hard-senone", "hard-monophone"])
    fold_of = deal(data.train, 2)
    start, seen = 0, []
    alignment = data.join.alignment
    assert alignment is not None
    for utterance in sorted(data.train, key=lambda u: u.id):
        student = StudentModel(low)
        load_model_tensors(student, load_file(tmp_path / f"fold-{fold_of[utterance.id]}" / "final.safetensors"))
        x_TF = torch.from_numpy(np.array(FeatureSource()(utterance)))
        with torch.no_grad():
            heads = student.eval()(x_TF[None], torch.tensor([len(x_TF)])).heads
        num = -(-len(x_TF) // 4)
        p_TV = heads["hard-senone"].softmax(-1).view(num, 2, -1).mean(1)
        found_TV = bank.posteriors("hard-senone", np.arange(start, start + num))
        top = p_TV.topk(5)
        np.testing.assert_allclose(np.take_along_axis(found_TV, top.indices.numpy(), 1), top.values, atol=2e-3)
        np.testing.assert_allclose(found_TV.sum(1), 1, atol=1e-5)
        segments = cut(alignment[utterance.id], alignment.silences["monophone"], num)
        seen += (segments.first_S + start).tolist()
        start += num
    assert bank.segments.first_S.tolist() == seen
    assert (report.frames, report.segments) == (start, len(seen))
    assert all(0 <= share <= 1 for share in report.right.values())


def test_stopped_it_goes_on_to_the_same_bytes_and_refuses_other_inputs(
    labelled: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    said: list[float] = []
    made(labelled, tmp_path / "a", settings, progress=lambda done, folds, **_: said.append(done / folds))
    assert said == sorted(said)
    assert len(set(said)) > 3
    assert said[-1] == 1
    shutil.copytree(tmp_path / "a" / "fold-0", tmp_path / "b" / "fold-0")
    (tmp_path / "b" / "fold-0" / "done.json").unlink()  # as where it was killed after a step
    made(labelled, tmp_path / "b", settings)
    assert (tmp_path / "a" / "bank.safetensors").read_bytes() == (tmp_path / "b" / "bank.safetensors").read_bytes()
    made(labelled, tmp_path / "a", {**settings, "objective": "interpolation"})  # the objective has no say
    with pytest.raises(UserError, match=r"its student\.encoder\.dropout is 0\.1 instead of 0\.2"):
        made(labelled, tmp_path / "a", merge(settings, {"encoder": {"dropout": 0.2}}))
    with pytest.raises(UserError, match="`condition` must name a head"):
        made(labelled, tmp_path / "c", {**settings, "condition": []})
    with pytest.raises(UserError, match="at most the number of speakers, 2, but is 3"):
        made(labelled, tmp_path / "c", settings, folds=3)
    assert json.dumps(Bank.load(tmp_path / "a").facts["pauses"])


def test_speakers_are_dealt_whole_and_evenly() -> None:
    utterances = [
        Utterance(id=f"{speaker}{n}", text="", speaker=speaker, duration=seconds)
        for speaker, seconds in (("a", 3.0), ("b", 2.0), ("c", 2.0), ("d", 1.0))
        for n in range(2)
    ]
    fold_of = deal(utterances, 2)
    assert {fold_of[f"{s}0"] for s in "ad"} == {0} != {fold_of[f"{s}0"] for s in "bc"}
    assert all(fold_of[f"{s}0"] == fold_of[f"{s}1"] for s in "abcd")
