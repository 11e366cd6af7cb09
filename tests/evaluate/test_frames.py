"""The heads' figures against the plain computation, utterance by utterance."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from hkd.align.alignment import Alignment
from hkd.audio import read_audio
from hkd.errors import UserError
from hkd.evaluate.frames import frame_figures, frame_inputs
from hkd.features.fbank import log_mel
from hkd.labels.store import LabelReader
from hkd.loop.checkpoint import load_model_tensors
from hkd.manifest import Manifest
from hkd.manifest import read as read_manifest
from hkd.student.config import config_from_json
from hkd.student.model import Student


@pytest.fixture(scope="module")
def figures(project):  # type: ignore[no-untyped-def]
    part = read_manifest(project.manifest).split("test")
    model = project.units / "subword.model"
    return frame_figures(project.runs[-1], part, alignment=project.alignment, labels=project.labels, subword_model=model)


def test_every_head_has_its_figures(project, figures) -> None:  # type: ignore[no-untyped-def]
    heads = json.loads((project.runs[-1] / "student.json").read_text())["heads"]
    assert list(figures) == list(heads)
    for name, value in figures.items():
        assert 0 <= value["accuracy"] <= 1
        assert 0 <= value["calibration_error"] <= 1
        assert (value["kl"] is not None) == name.startswith("kd-")


@torch.no_grad()
def test_monophone_heads_equal_the_plain_computation(project, figures) -> None:  # type: ignore[no-untyped-def]
    run = project.runs[-1]
    card = json.loads((run / "student.json").read_text())
    student = Student(config_from_json(card["config"])).eval()
    load_model_tensors(student, load((run / "final.safetensors").read_bytes()))
    alignment, store = Alignment(project.alignment), LabelReader.open(project.labels / "monophone")
    kept = card["heads"]["kd-monophone"]["units"]
    silences = set(alignment.silences["monophone"])
    right, hard_count, kls = 0, 0, []
    for utterance in read_manifest(project.manifest).split("test"):
        x_TF = log_mel(read_audio(utterance))
        output = student(x_TF[None], torch.tensor([len(x_TF)]))
        tier = alignment[utterance.id].tiers["monophone"]
        topk = store.block([utterance.id]).topk
        spoken = [i for i, unit in enumerate(tier.unit_U.tolist()) if unit not in silences]
        for slot in range(-(-len(x_TF) // 4)):
            frame = min(4 * slot + 2, len(x_TF) - 1)
            if frame >= tier.num_frames:
                continue
            segment = int(np.searchsorted(tier.start_U1, frame, side="right")) - 1
            hard_count += 1
            right += int(output.heads["hard-monophone"][0, slot].argmax()) == int(tier.unit_U[segment])
            if segment in spoken:
                n = spoken.index(segment)
                logq_H = torch.log_softmax(output.heads["kd-monophone"][0, slot].double(), -1)
                place = {unit: h for h, unit in enumerate(kept)} if kept is not None else {u: u for u in range(len(logq_H))}
                ids = [place[int(u)] for u in topk.ids_NK[n]]
                logp_K, tail = torch.tensor(topk.logp_NK[n]).double(), float(topk.tail_N[n])
                rest = torch.log1p(-logq_H[ids].exp().sum())
                kls.append(float((logp_K.exp() * (logp_K - logq_H[ids])).sum() + np.exp(tail) * (tail - rest)))
    assert figures["hard-monophone"]["frames"] == hard_count
    assert figures["hard-monophone"]["accuracy"] == pytest.approx(right / hard_count)
    assert figures["kd-monophone"]["frames"] == len(kls)
    assert figures["kd-monophone"]["kl"] == pytest.approx(np.mean(kls), abs=2e-3)


def test_without_stores_the_kl_goes_and_the_accuracy_stays(project, figures) -> None:  # type: ignore[no-untyped-def]
    part = read_manifest(project.manifest).split("test")
    model = project.units / "subword.model"
    bare = frame_figures(project.runs[-1], part, alignment=project.alignment, labels=None, subword_model=model)
    for name, value in bare.items():
        assert value["kl"] is None
        assert value["accuracy"] == figures[name]["accuracy"]


def test_an_edited_transcript_is_refused(project) -> None:  # type: ignore[no-untyped-def]
    part = read_manifest(project.manifest).split("test")
    edited = Manifest([replace(part[0], text=part[0].text + " indeed"), *part[1:]])
    model = project.units / "subword.model"
    with pytest.raises(UserError, match=f"'{part[0].id}': the transcript must be the one that was aligned"):
        frame_figures(project.runs[-1], edited, alignment=project.alignment, labels=project.labels, subword_model=model)


def test_without_weights_or_alignment_there_is_nothing(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    part = read_manifest(project.manifest).split("test")
    model = project.units / "subword.model"
    assert frame_figures(project.runs[-1], part, alignment=None, labels=None, subword_model=model) == {}
    shutil.copytree(project.runs[-1] / "model", tmp_path / "model")
    assert frame_figures(tmp_path, part, alignment=project.alignment, labels=None, subword_model=model) == {}
    assert frame_inputs(tmp_path, alignment=project.alignment, labels=project.labels) == {}
    assert set(frame_inputs(project.runs[-1], alignment=project.alignment, labels=project.labels)["stores"]) == {
        "senone",
        "monophone",
        "subword",
    }
