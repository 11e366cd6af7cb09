"""A split decoded: n-best lists, tuning, hybrid students, likelihoods as Kaldi's table."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import kaldi_native_io
import numpy as np
import pytest

from hkd.align.alignment import Alignment
from hkd.decode.ctc import BeamConfig, SearchConfig
from hkd.decode.graph import HybridConfig
from hkd.decode.recogniser import Recogniser
from hkd.errors import UserError
from hkd.evaluate.decoding import ARK, SCP, EvaluateConfig, tune, write_likelihoods
from hkd.evaluate.run import evaluate
from hkd.evaluate.score import n_best_path, read_result, result_paths
from hkd.manifest import read as read_manifest
from hkd.manifest import write as write_manifest
from hkd.testing.teachers import make_teacher_folder

BEAM = EvaluateConfig(search=SearchConfig(decoder="beam", beam=BeamConfig(beam=8)), n_best=4)


@pytest.fixture
def run(project, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A copy of a run."""
    return Path(shutil.copytree(project.runs[0], tmp_path / "none"))


@pytest.mark.parametrize("beside", ["nothing", "arpa", "gpt2"])
def test_lists_are_ranked_distinct_and_headed_by_the_hypothesis(  # type: ignore[no-untyped-def]
    project, run: Path, unigram: Path, tmp_path: Path, beside: str
) -> None:
    lm = {
        "nothing": lambda: None,
        "arpa": lambda: str(unigram),
        "gpt2": lambda: str(make_teacher_folder(tmp_path / "gpt2", "gpt2")),
    }[beside]()
    search = replace(BEAM.search, word_bonus=0.0 if lm is None else 2.0)
    part = read_manifest(project.manifest).split("test")
    plain = evaluate(run, manifest=project.manifest, config=EvaluateConfig(search=search), lm=lm, tag="plain")
    report = evaluate(run, manifest=project.manifest, config=replace(BEAM, search=search), lm=lm, tag="best")
    assert report.hypotheses == plain.hypotheses
    assert not n_best_path(run, "test", "plain").exists()
    rows = [json.loads(line) for line in n_best_path(run, "test", "best").read_text().splitlines()]
    assert [row["id"] for row in rows] == [utterance.id for utterance in part]
    for row, hypothesis in zip(rows, report.hypotheses, strict=True):
        texts, scores = ([option[name] for option in row["hypotheses"]] for name in ("text", "score"))
        assert hypothesis.hypothesis == (texts[0] if texts else "")
        assert len(set(texts)) == len(texts) <= 4
        assert scores == sorted(scores, reverse=True)
    assert max(len(row["hypotheses"]) for row in rows) > 1


def test_the_one_of_greedy_decoding(project, run: Path) -> None:  # type: ignore[no-untyped-def]
    report = evaluate(run, manifest=project.manifest, config=EvaluateConfig(n_best=1))
    rows = [json.loads(line) for line in n_best_path(run, "test").read_text().splitlines()]
    assert [option["text"] for row in rows for option in row["hypotheses"]] == [
        row.hypothesis for row in report.hypotheses
    ]
    assert all(option["score"] < 0 for row in rows for option in row["hypotheses"])


def test_another_number_is_decoded_anew_and_none_is_content_with_any(project, run: Path) -> None:  # type: ignore[no-untyped-def]
    def counts() -> list[int]:
        return [len(json.loads(line)["hypotheses"]) for line in n_best_path(run, "test").read_text().splitlines()]

    evaluate(run, manifest=project.manifest, config=replace(BEAM, n_best=0))
    evaluate(run, manifest=project.manifest, config=BEAM)
    assert max(counts()) == 4
    evaluate(run, manifest=project.manifest, config=replace(BEAM, n_best=2))
    assert max(counts()) == 2
    written = result_paths(run, "test")[0].stat().st_mtime_ns
    for n_best in (2, 0):
        evaluate(run, manifest=project.manifest, config=replace(BEAM, n_best=n_best))
        assert result_paths(run, "test")[0].stat().st_mtime_ns == written
    n_best_path(run, "test").unlink()
    evaluate(run, manifest=project.manifest, config=replace(BEAM, n_best=2))
    assert max(counts()) == 2
    evaluate(run, manifest=project.manifest, config=EvaluateConfig())  # another search: those lists are not its own
    assert not n_best_path(run, "test").exists()
    assert "n_best" not in read_result(run, "test").inputs


def test_more_than_the_search_has_is_refused_before_decoding(project, run: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        UserError, match=r"n_best must be 1 at most where the decoder is greedy, but is 2 instead\. Take --decoder beam"
    ):
        evaluate(run, manifest=project.manifest, config=EvaluateConfig(n_best=2))
    with pytest.raises(
        UserError,
        match=r"n_best must not exceed the beam of 8, but is 9 instead\. Widen it: --set search\.beam\.beam=18",
    ):
        evaluate(run, manifest=project.manifest, config=replace(BEAM, n_best=9))
    assert not result_paths(run, "test")[0].exists()


def test_the_best_try_can_be_repeated(project, unigram: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = Path(shutil.copytree(project.runs[1], tmp_path / "run"))
    arguments = {"manifest": project.manifest, "lm": str(unigram), "split": "dev"}
    tries = tune(run, grid={"lm_weight": (0.1, 0.9), "word_bonus": (0.0, 4.0)}, **arguments)
    assert [t.wer for t in tries] == sorted(t.wer for t in tries)
    assert {tuple(t.values.values()) for t in tries} == {(0.1, 0.0), (0.1, 4.0), (0.9, 0.0), (0.9, 4.0)}
    for chosen in (tries[0], tries[-1]):
        search = SearchConfig(decoder="beam", **chosen.values)
        report = evaluate(run, config=replace(EvaluateConfig(), search=search), tag="x", **arguments)
        assert report.errors["wer"].rate == chosen.wer


def test_nothing_is_chosen_on_test(project) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="split must not be test"):
        tune(project.runs[0], manifest=project.manifest, lm="x.arpa", split="test")


def test_nothing_is_chosen_without_words(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    silent = [replace(utterance, text="") for utterance in read_manifest(project.manifest)]
    write_manifest(tmp_path / "manifest.jsonl", silent)
    with pytest.raises(UserError, match="split dev must have words in its transcripts"):
        tune(project.runs[0], manifest=tmp_path / "manifest.jsonl", lm="x.arpa", split="dev")


def test_the_export_knows_the_frames_of_each_senone(project, hybrid: Path) -> None:  # type: ignore[no-untyped-def]
    frames_V = Recogniser(hybrid / "model").senone_frames()
    alignment = Alignment(project.alignment)
    train_ids = [u.id for u in read_manifest(project.manifest).split("train") if u.id in alignment]
    assert sum(frames_V) == sum(alignment[name].num_frames for name in train_ids)
    tier = alignment[train_ids[0]].tiers["senone"]
    assert all(frames_V[unit] > 0 for unit in tier.unit_U)


def test_evaluated_from_its_folder_and_tuned(project, hybrid: Path, unigram: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = Path(shutil.copytree(hybrid, tmp_path / "run"))
    arguments = {"manifest": project.manifest, "lm": str(unigram), "split": "dev"}
    with_heads = evaluate(run, alignment=project.alignment, labels=project.labels, units=project.units, **arguments)
    assert with_heads.decoder["name"] == "graph"
    assert set(with_heads.frames) == {"main", "hard-monophone", "hard-subword", "kd-monophone", "kd-subword"}
    tries = tune(run, grid={"acoustic_scale": (0.05, 0.5), "prior_scale": (0.0,)}, **arguments)
    search = SearchConfig(hybrid=replace(HybridConfig(), **tries[0].values))
    again = evaluate(run, config=EvaluateConfig(search=search), tag="tuned", **arguments)
    assert again.errors["wer"].rate == tries[0].wer
    recogniser = Recogniser(run / "model", lm=str(unigram))
    audio = next(u.audio_filepath for u in read_manifest(project.manifest))
    said = recogniser.transcribe(Path(str(audio)))
    assert said["text"] == " ".join(said["pieces"][0]["units"])


def test_without_a_word_lm_it_says_what_it_needs(hybrid: Path) -> None:
    with pytest.raises(UserError, match=r"Give one: --lm words\.arpa"):
        Recogniser(hybrid / "model").warm_up()


def test_n_best_lists_of_a_hybrid_are_refused_before_decoding(
    project, hybrid: Path, unigram: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    run = Path(shutil.copytree(hybrid, tmp_path / "run"))
    with pytest.raises(
        UserError, match=r"n_best must be 0 for a hybrid student.* but is 3 instead\. Leave n_best out\."
    ):
        evaluate(run, config=EvaluateConfig(n_best=3), manifest=project.manifest, lm=str(unigram), split="dev")
    assert not result_paths(run, "dev")[0].exists()


def test_likelihoods_are_a_kaldi_table(project, hybrid: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    count = write_likelihoods(hybrid, tmp_path, manifest=project.manifest, split="dev", prior_scale=0.5)
    part = read_manifest(project.manifest).split("dev")
    assert count == len(part)
    with kaldi_native_io.SequentialFloatMatrixReader(f"scp:{tmp_path / SCP}") as reader:
        found = {key: np.array(value) for key, value in reader}
    assert list(found) == sorted(utterance.id for utterance in part)
    recogniser = Recogniser(hybrid / "model")
    frames_V = np.array(recogniser.senone_frames()) + 1.0
    for matrix_TV in found.values():
        posterior_TV = np.exp(matrix_TV.astype(np.float64) + 0.5 * np.log(frames_V / frames_V.sum()))
        np.testing.assert_allclose(posterior_TV.sum(1), 1, rtol=1e-4)
    assert (tmp_path / ARK).stat().st_size > 4 * sum(matrix.size for matrix in found.values())


def test_a_ctc_student_has_no_likelihoods(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="must hold a hybrid student"):
        write_likelihoods(project.runs[0], tmp_path, manifest=project.manifest)
