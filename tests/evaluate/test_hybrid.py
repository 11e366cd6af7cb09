"""A hybrid student, from its folder: evaluated, tuned, transcribing, and its likelihoods as Kaldi's table."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import kaldi_native_io
import numpy as np
import pytest

from hkd.align.alignment import Alignment
from hkd.decode.hybrid import HybridConfig
from hkd.decode.recogniser import Recogniser
from hkd.decode.search import SearchConfig
from hkd.errors import UserError
from hkd.evaluate.likelihoods import ARK, SCP, write_likelihoods
from hkd.evaluate.result import n_best_path
from hkd.evaluate.run import EvaluateConfig, evaluate
from hkd.evaluate.transcribe import transcribe_file
from hkd.evaluate.tune import tune
from hkd.manifest import read as read_manifest


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
    said = transcribe_file(recogniser, Path(str(audio)))
    assert said["text"] == " ".join(said["pieces"][0]["units"])


def test_without_a_word_lm_it_says_what_it_needs(hybrid: Path) -> None:
    with pytest.raises(UserError, match=r"Give one: --lm words\.arpa"):
        Recogniser(hybrid / "model").warm_up()


def test_n_best_lists_stand_beside_the_same_hypotheses(project, hybrid: Path, unigram: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = Path(shutil.copytree(hybrid, tmp_path / "run"))
    arguments = {"manifest": project.manifest, "lm": str(unigram), "split": "dev"}
    narrow = SearchConfig(hybrid=HybridConfig(beam=8.0))
    plain = evaluate(run, tag="plain", config=EvaluateConfig(search=narrow), **arguments)
    listed = evaluate(run, tag="listed", config=EvaluateConfig(search=narrow, n_best=3), **arguments)
    assert listed.errors == plain.errors
    rows = [json.loads(line) for line in n_best_path(run, "dev", "listed").read_text().splitlines()]
    lists = [[(option["text"], option["score"]) for option in row["hypotheses"]] for row in rows]
    assert len(lists) == len(read_manifest(project.manifest).split("dev"))
    assert max(map(len, lists)) == 3
    for options in lists:
        assert len({text for text, _ in options}) == len(options) <= 3
        assert [score for _, score in options] == sorted((score for _, score in options), reverse=True)
    hypotheses = [json.loads(line)["hypothesis"] for line in (run / "eval-dev@listed.hyp.jsonl").read_text().splitlines()]
    assert sum(options[0][0] == text for options, text in zip(lists, hypotheses, strict=True) if options) > len(lists) / 2


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
