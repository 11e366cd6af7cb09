"""Tuning: the best try is what evaluating with its values gives."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hkd.decode.search import SearchConfig
from hkd.errors import UserError
from hkd.evaluate.run import EvaluateConfig, evaluate
from hkd.evaluate.tune import tune
from hkd.manifest import read as read_manifest
from hkd.manifest import write as write_manifest


def test_the_best_try_can_be_repeated(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = Path(shutil.copytree(project.runs[1], tmp_path / "run"))
    arpa = tmp_path / "words.arpa"
    lines = [f"-1.5\t{word}" for word in ("</s>", "the", "a", "small", "dog", "teacher")]
    arpa.write_text("\n".join(["\\data\\", "ngram 1=7", "", "\\1-grams:", "-99\t<s>", *lines, "", "\\end\\", ""]))
    arguments = {"manifest": project.manifest, "lm": str(arpa), "split": "dev"}
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
