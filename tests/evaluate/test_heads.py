"""Figures of heads and of the main output, and the guess without context, held against the plain computation."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from hkd.align.alignment import Alignment
from hkd.audio import read_audio
from hkd.decode.recogniser import Recogniser
from hkd.errors import UserError
from hkd.evaluate.heads import (
    MAIN,
    Sums,
    average_teacher,
    frame_figures,
    frame_inputs,
    guess,
    piece_figures,
    piece_inputs,
    piece_teacher,
)
from hkd.features.fbank import log_mel
from hkd.labels.card import calibration_bins, calibration_error, quality_sums
from hkd.labels.store import LabelReader
from hkd.loop.checkpoint import load_model_tensors
from hkd.losses import sparse_kl
from hkd.manifest import Manifest
from hkd.manifest import read as read_manifest
from hkd.stream.join import Join, JoinedStore
from hkd.student.config import config_from_json
from hkd.student.model import StudentModel
from hkd.topk import select_topk
from hkd.units.sequences import SubwordModel
from hkd.units.text import words


def figures_of(project, run: Path, part: Manifest | None = None, **others: Any) -> dict[str, dict[str, Any]]:  # type: ignore[no-untyped-def]
    parts = {"alignment": project.alignment, "labels": project.labels, "units": project.units, **others}
    part = part or read_manifest(project.manifest).split("test")
    return frame_figures(run, part, subword_model=project.units / "subword.model", **parts)


@pytest.fixture(scope="module")
def figures(project) -> dict[str, dict[str, Any]]:  # type: ignore[no-untyped-def]
    return figures_of(project, project.runs[-1])


def test_every_head_has_its_figures(project, figures) -> None:  # type: ignore[no-untyped-def]
    heads = json.loads((project.runs[-1] / "student.json").read_text())["heads"]
    assert list(figures) == list(heads)
    for name, value in figures.items():
        assert 0 <= value["accuracy"] <= 1
        assert 0 <= value["calibration_error"] <= 1
        assert (value["kl"] is not None) == name.startswith("kd-")
        assert (value["kl_without_context"] is not None) == name.startswith("kd-")


@torch.no_grad()
def test_monophone_heads_equal_the_plain_computation(project, figures) -> None:  # type: ignore[no-untyped-def]
    run = project.runs[-1]
    card = json.loads((run / "student.json").read_text())
    student = StudentModel(config_from_json(card["config"])).eval()
    load_model_tensors(student, load((run / "final.safetensors").read_bytes()))
    alignment, store = Alignment(project.alignment), LabelReader.open(project.labels / "monophone")
    kept = card["heads"]["kd-monophone"]["units"]
    silences = set(alignment.silences["monophone"])
    right, hard_count, kls, guessed = 0, 0, [], []
    part = read_manifest(project.manifest)
    whole = Join(
        part, subwords=SubwordModel(project.units / "subword.model"), alignment=alignment, stores={"monophone": store}
    )
    table_VH = average_teacher(whole.stores["monophone"], without={u.id for u in part.split("test")})
    assert table_VH is not None
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
                place = (
                    {unit: h for h, unit in enumerate(kept)} if kept is not None else {u: u for u in range(len(logq_H))}
                )
                ids = [place[int(u)] for u in topk.ids_NK[n]]
                logp_K, tail = torch.tensor(topk.logp_NK[n]).double(), float(topk.tail_N[n])
                rest = torch.log1p(-logq_H[ids].exp().sum())
                hard_V = torch.softmax(output.heads["hard-monophone"][0, slot], -1)
                guess_K = (hard_V @ table_VH)[ids].double()
                beyond = torch.log1p(-guess_K.sum())
                guessed.append(float((logp_K.exp() * (logp_K - guess_K.log())).sum() + np.exp(tail) * (tail - beyond)))
                kls.append(float((logp_K.exp() * (logp_K - logq_H[ids])).sum() + np.exp(tail) * (tail - rest)))
    assert figures["hard-monophone"]["frames"] == hard_count
    assert figures["hard-monophone"]["accuracy"] == pytest.approx(right / hard_count)
    assert figures["kd-monophone"]["frames"] == len(kls)
    assert figures["kd-monophone"]["kl"] == pytest.approx(np.mean(kls), abs=2e-3)
    assert figures["kd-monophone"]["kl_without_context"] == pytest.approx(np.mean(guessed), abs=2e-3)


def test_without_stores_the_kl_goes_and_the_accuracy_stays(project, figures) -> None:  # type: ignore[no-untyped-def]
    for name, value in figures_of(project, project.runs[-1], labels=None).items():
        assert value["kl"] is None
        assert value["accuracy"] == figures[name]["accuracy"]


def test_an_edited_transcript_is_refused(project) -> None:  # type: ignore[no-untyped-def]
    part = read_manifest(project.manifest).split("test")
    edited = Manifest([replace(part[0], text=part[0].text + " indeed"), *part[1:]])
    with pytest.raises(UserError, match=f"'{part[0].id}': the transcript must be the one that was aligned"):
        figures_of(project, project.runs[-1], edited)


def test_without_weights_or_alignment_there_is_nothing(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert figures_of(project, project.runs[-1], alignment=None, labels=None) == {}
    shutil.copytree(project.runs[-1] / "model", tmp_path / "model")
    assert figures_of(project, tmp_path, labels=None) == {}
    assert frame_inputs(tmp_path, alignment=project.alignment, labels=project.labels) == {}
    assert set(frame_inputs(project.runs[-1], alignment=project.alignment, labels=project.labels)["stores"]) == {
        "senone",
        "monophone",
        "subword",
    }


@torch.no_grad()
def test_a_senone_main_output_is_a_head_with_its_kl_to_the_store_of_interpolation(
    project, train_hybrid, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    run = train_hybrid(tmp_path / "run", objective="interpolation")
    figures = figures_of(project, run)
    assert list(figures) == [MAIN]
    alignment, store = Alignment(project.alignment), LabelReader.open(project.labels / "senone")
    recogniser, silences = Recogniser(run / "model", device="cpu"), set(alignment.silences["senone"])
    right, kls = [], []
    for utterance in read_manifest(project.manifest).split("test"):
        logits_BTV, length_B, _ = recogniser.logits([read_audio(utterance)])
        tier, topk = alignment[utterance.id].tiers["senone"], store.block([utterance.id]).topk
        spoken = [i for i, unit in enumerate(tier.unit_U.tolist()) if unit not in silences]
        for slot in range(min(int(length_B[0]), tier.num_frames)):
            segment = int(np.searchsorted(tier.start_U1, slot, side="right")) - 1
            right.append(int(logits_BTV[0, slot].argmax()) == int(tier.unit_U[segment]))
            if segment in spoken:
                n = spoken.index(segment)
                logq_V = torch.log_softmax(logits_BTV[0, slot].double(), -1)
                logq_K, logp_K = logq_V[topk.ids_NK[n].astype(np.int64)], torch.tensor(topk.logp_NK[n]).double()
                tail, rest = float(topk.tail_N[n]), float(torch.log1p(-logq_K.exp().sum()))
                kls.append(float((logp_K.exp() * (logp_K - logq_K)).sum()) + np.exp(tail) * (tail - rest))
    assert figures[MAIN]["frames"] == len(right)
    assert figures[MAIN]["accuracy"] == pytest.approx(np.mean(right))
    assert figures[MAIN]["kl"] == pytest.approx(np.mean(kls), abs=2e-3)
    assert figures_of(project, run, labels=None)[MAIN] == {**figures[MAIN], "kl": None}


def test_that_of_none_is_judged_on_the_same_frames(project, train_hybrid, hybrid: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = train_hybrid(tmp_path / "run", objective="none")
    figures = figures_of(project, run)
    assert list(figures) == [MAIN]
    assert figures[MAIN]["kl"] is None
    assert figures[MAIN]["frames"] == figures_of(project, hybrid)[MAIN]["frames"]
    inputs = frame_inputs(run, alignment=project.alignment, labels=project.labels)
    assert inputs[MAIN] == Alignment(project.alignment).inventories["senone"].digest
    assert frame_inputs(project.runs[0], alignment=project.alignment, labels=project.labels) == {}  # CTC


def test_a_senone_head_of_fewer_slots_than_the_main_output_keeps_its_figures(
    project, train_hybrid, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    run = train_hybrid(tmp_path / "run", objective="auxiliary", stores=("senone",), slots={"senone": 2})
    figures = figures_of(project, run)
    assert list(figures) == [MAIN, "kd-senone"]
    assert 0 < figures["kd-senone"]["frames"] < figures[MAIN]["frames"]
    assert list(figures_of(project, run, labels=None)) == [MAIN]


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
            logp_K, logq_K, tail = (
                torch.tensor(topk.logp_NK[n]).double(),
                logq_V[topk.ids_NK[n].tolist()],
                float(topk.tail_N[n]),
            )
            kls.append(
                float(
                    (logp_K.exp() * (logp_K - logq_K)).sum() + np.exp(tail) * (tail - torch.log1p(-logq_K.exp().sum()))
                )
            )
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


def test_the_teacher_is_that_of_interpolation_else_the_store_called_subword(
    project, hybrid: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
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


@pytest.fixture(scope="module")
def joined(evaluated: Any) -> JoinedStore:
    manifest = read_manifest(evaluated.manifest)
    store = LabelReader.open(evaluated.labels / "monophone")
    subwords = SubwordModel(evaluated.units / "subword.model")
    return Join(
        manifest, subwords=subwords, alignment=Alignment(evaluated.alignment), stores={"monophone": store}
    ).stores["monophone"]


def test_the_table_is_the_average_of_each_units_rows(joined: JoinedStore) -> None:
    left_out = joined.reader.ids[0]
    table_VH = average_teacher(joined, without={left_out})
    assert table_VH is not None
    assert table_VH.shape == (len(joined.reader.spec.inventory), joined.num_units)
    assert table_VH.sum(1).numpy() == pytest.approx(1, abs=1e-5)
    topk = joined.reader.block([name for name in joined.reader.ids if name != left_out]).topk
    dense_NH = np.zeros((len(topk.gold_N), joined.num_units))
    for n in range(len(dense_NH)):
        p_K = np.exp(topk.logp_NK[n].astype(np.float64))
        for unit, p in zip(joined.head_unit_V[topk.ids_NK[n]], p_K, strict=True):
            dense_NH[n, unit] += p
        dense_NH[n] += np.exp(topk.tail_N[n]) / joined.num_units
    for unit in set(topk.gold_N.tolist()):
        rows = dense_NH[topk.gold_N == unit]
        expected = rows.sum(0) + dense_NH.sum(0) / dense_NH.sum()
        assert table_VH[unit].numpy() == pytest.approx(expected / expected.sum(), abs=1e-4)


def test_nothing_is_left_to_average(joined: JoinedStore) -> None:
    assert average_teacher(joined, without=set(joined.reader.ids)) is None


def test_a_certain_ear_guesses_the_row_and_a_deaf_one_the_mean_of_all() -> None:
    table_VH = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    assert torch.allclose(guess(100 * torch.eye(3), table_VH).exp(), table_VH, atol=1e-6)
    assert torch.allclose(guess(torch.zeros(1, 3), table_VH).exp()[0], table_VH.mean(0))


def test_a_teacher_that_reads_no_context_leaves_nothing_to_learn_beyond_the_table() -> None:
    """Rows of the table itself are guessed without error by an ear that hears right; rows that hang on more are not."""
    table_VH = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    ids_MK, tail_M = torch.arange(3).expand(3, 3), torch.full((3,), -30.0)
    heard = guess(100 * torch.eye(3), table_VH)
    assert sparse_kl(heard, ids_MK=ids_MK, logp_MK=table_VH.log(), tail_M=tail_M).numpy() == pytest.approx(0, abs=1e-4)
    other = table_VH.roll(1, 1)
    assert (sparse_kl(heard, ids_MK=ids_MK, logp_MK=other.log(), tail_M=tail_M) > 0.1).all()


def summed(logits_NV: torch.Tensor, unit_N: torch.Tensor) -> dict[str, float]:
    sums = Sums()
    for rows in torch.arange(len(unit_N)).split(4096):
        sums.add(logits_NV[rows], unit_N[rows])
    found = sums.figures()
    assert found is not None
    return found


def test_entropy_is_that_of_torchs_categorical() -> None:
    logits_MV = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    wanted = torch.distributions.Categorical(logits=logits_MV).entropy().mean()
    assert summed(logits_MV, torch.zeros(6))["entropy"] == pytest.approx(float(wanted), rel=1e-6)
    assert summed(torch.tensor([[0.0, float("-inf")]]), torch.zeros(1))["entropy"] == 0.0


def test_nothing_is_said_of_no_rows() -> None:
    sums = Sums()
    sums.add(torch.zeros(0, 3), torch.zeros(0))
    assert sums.figures() is None


@pytest.mark.parametrize(
    ("sure", "right", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0, 1, 0], 4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(0.5 - 0.6)),
        ([0.5, 0.41], [1, 0], 0.5 * abs(1 - 0.5) + 0.5 * abs(0 - 0.41)),  # 0.5 opens the bin of 0.5 to 0.6
        ([0.5, 0.59], [1, 0], abs(0.5 - 0.545)),
        ([1.0, 0.95], [1, 0], abs(0.5 - 0.975)),  # 1 lies in the last
        ([0.0], [0], 0.0),
    ],
)
def test_calibration_has_ten_bins_that_hold_their_lower_edge(
    sure: list[float], right: list[int], expected: float
) -> None:
    found = calibration_error(calibration_bins(np.array(sure), np.array(right, np.bool_)))
    assert found == pytest.approx(expected)


def test_a_teacher_and_a_student_of_the_same_rows_have_the_same_calibration_error() -> None:
    rng = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(500, 6, generator=rng, dtype=torch.float64)
    gold_N = torch.randint(0, 6, (500,), generator=rng)
    teacher = calibration_error(quality_sums(select_topk(logits_NV, gold_N, k=6)))
    assert summed(logits_NV, gold_N)["calibration_error"] == pytest.approx(teacher, rel=1e-5)


def test_a_calibrated_output_has_a_small_calibration_error() -> None:
    rng = torch.Generator().manual_seed(0)
    logits_MV = torch.randn(20_000, 4, generator=rng)
    drawn_M = torch.multinomial(torch.softmax(logits_MV, 1), 1, generator=rng)[:, 0]
    assert summed(logits_MV, drawn_M)["calibration_error"] < 0.02
    assert summed(4 * logits_MV, drawn_M)["calibration_error"] > 0.2
