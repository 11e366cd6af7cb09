"""A CTC student's main output at the pieces of the transcripts, against sums over all paths written out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hkd.audio import read_audio
from hkd.decode.recogniser import Recogniser
from hkd.evaluate.pieces import piece_figures, piece_inputs, piece_teacher
from hkd.labels.store import LabelReader
from hkd.manifest import Manifest
from hkd.manifest import read as read_manifest
from hkd.units.subword import SubwordModel
from hkd.units.text import words


def occupancies(p_TV: Any, unit_U: Any) -> Any:
    """occupancy_TU by sums over the beginnings and the ends of all paths, state by state, each frame scaled to 1."""
    states = [0] + [s for unit in unit_U for s in (unit + 1, 0)]

    def sums(p_TV: Any, states: list[int]) -> Any:
        a_TS = np.zeros((len(p_TV), len(states)))
        for t, p_V in enumerate(p_TV):
            for s, state in enumerate(states):
                skips = s >= 2 and state != 0 and state != states[s - 2]
                before = float(s < 2) if t == 0 else a_TS[t - 1, max(0, s - 2 if skips else s - 1) : s + 1].sum()
                a_TS[t, s] = before * p_V[state]
            a_TS[t] /= a_TS[t].sum()
        return a_TS

    both_TS = sums(p_TV, states) * sums(p_TV[::-1], states[::-1])[::-1, ::-1] / p_TV[:, states]
    return (both_TS / both_TS.sum(1, keepdims=True))[:, 1::2]


@pytest.fixture(scope="module")
def sharp(project) -> Recogniser:  # type: ignore[no-untyped-def]
    """The hardly trained student, made sure of what it says, so that neighbouring frames differ."""
    recogniser = Recogniser(project.runs[-1] / "model", device="cpu")
    with torch.no_grad():
        recogniser.student.main.out.weight *= 8
    return recogniser


@torch.no_grad()
def test_each_piece_is_asked_about_in_the_frame_that_has_most_of_it(project, sharp: Recogniser) -> None:  # type: ignore[no-untyped-def]
    subwords, store = SubwordModel(project.units / "subword.model"), LabelReader.open(project.labels / "subword")
    part = read_manifest(project.manifest).split("test")
    right, kls, sure, frames = [], [], [], set()
    for utterance in part:
        unit_U = subwords.encode(words(utterance.text))[0].astype(np.int64)
        logits_BTV, length_B, _ = sharp.logits([read_audio(utterance)])
        logp_TV = logits_BTV[0, : int(length_B[0])].double().log_softmax(-1)
        occupancy_TU = occupancies(logp_TV.exp().numpy(), unit_U)
        topk = store.block([utterance.id]).topk
        for n, unit in enumerate(unit_U.tolist()):
            frames.add(at := int(occupancy_TU[:, n].argmax()))
            logq_V = logp_TV[at, 1:].log_softmax(-1)
            logp_K, logq_K, tail = torch.tensor(topk.logp_NK[n]).double(), logq_V[topk.ids_NK[n].tolist()], float(topk.tail_N[n])
            kls.append(float((logp_K.exp() * (logp_K - logq_K)).sum() + np.exp(tail) * (tail - torch.log1p(-logq_K.exp().sum()))))
            right.append(int(logq_V.argmax()) == unit)
            sure.append(float(logq_V.max().exp()))
    assert len(frames) > 10
    assert 0 < sum(right) < len(right)
    found = piece_figures(sharp, part, teacher=store)
    assert found is not None
    assert found["frames"] == len(right)
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert found["confidence"] == pytest.approx(np.mean(sure), abs=1e-5)
    assert found["kl"] == pytest.approx(np.mean(kls), rel=1e-4)
    assert piece_figures(sharp, part) == {**found, "kl": None}


def test_what_has_no_path_or_other_labels_is_left_out(project, sharp: Recogniser) -> None:  # type: ignore[no-untyped-def]
    store = LabelReader.open(project.labels / "subword")
    first, second, third = read_manifest(project.manifest).split("test")[:3]
    alone = piece_figures(sharp, Manifest([third]), teacher=store)
    edited = replace(second, text=second.text + " indeed")  # the store was made for another transcript
    crowded = replace(first, text=" ".join([first.text] * 40))  # more pieces than frames
    mixed = piece_figures(sharp, Manifest([crowded, edited, third]), teacher=store)
    assert alone is not None
    assert mixed is not None
    num_edited = len(SubwordModel(project.units / "subword.model").encode(words(edited.text))[0])
    assert mixed["frames"] == alone["frames"] + num_edited
    assert mixed["kl"] == pytest.approx(alone["kl"], rel=1e-6)
    assert piece_figures(sharp, Manifest([crowded]), teacher=store) is None


def test_the_teacher_is_that_of_interpolation_else_the_store_called_subword(project, hybrid: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = Path(shutil.copytree(project.runs[2], tmp_path / "run"))
    labels = Path(shutil.copytree(project.labels, tmp_path / "shards"))
    shutil.copytree(labels / "subword", labels / "other")
    assert teacher_of(run, labels) == "subword"
    assert teacher_of(project.runs[0], labels) == "subword"
    identity = json.loads((run / "identity.json").read_text())
    identity["data"]["stores"] = {"other": "0" * 64}
    (run / "identity.json").write_text(json.dumps(identity))
    assert teacher_of(run, labels) == "other"
    shutil.rmtree(labels / "other")
    assert teacher_of(run, labels) is None
    assert teacher_of(run, tmp_path / "nothing") is None
    assert piece_teacher(project.runs[0], None) is None
    assert piece_inputs(hybrid, piece_teacher(hybrid, labels)) == {}
    of_none = [piece_inputs(project.runs[0], piece_teacher(project.runs[0], where)) for where in (labels, None)]
    assert of_none[0] != of_none[1]
    path = labels / "subword" / "store.json"
    spec = json.loads(path.read_text())
    spec["teacher"]["options"] = {"project": "0" * 16}  # its tail may hold any piece's mass
    path.write_text(json.dumps(spec))
    assert teacher_of(project.runs[0], labels) is None


def teacher_of(run: Path, labels: Path) -> str | None:
    """The folder of the store."""
    teacher = piece_teacher(run, labels)
    return None if teacher is None else Path(teacher.path).name
