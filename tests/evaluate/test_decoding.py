"""n-best lists: ranked, distinct in words, headed by the hypothesis, and made anew where another number is asked for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hkd.decode.beam import BeamConfig
from hkd.decode.search import SearchConfig
from hkd.errors import UserError
from hkd.evaluate.decoding import check_n_best
from hkd.evaluate.result import n_best_path, read_result, result_paths
from hkd.evaluate.run import EvaluateConfig, evaluate
from hkd.manifest import read as read_manifest
from hkd.testing.teachers import make_teacher_folder
from hkd.units.text import words

BEAM = EvaluateConfig(search=SearchConfig(decoder="beam", beam=BeamConfig(beam=8)), n_best=4)


@pytest.fixture
def run(project, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A copy of a run."""
    return Path(shutil.copytree(project.runs[0], tmp_path / "none"))


def write_arpa(project, path: Path) -> str:  # type: ignore[no-untyped-def]
    """An LM in which all words of the project are as likely."""
    known = sorted({word for utterance in read_manifest(project.manifest) for word in words(utterance.text)})
    lines = [f"-2.0\t{word}" for word in ("</s>", *known)]
    path.write_text("\n".join(["\\data\\", f"ngram 1={len(lines) + 1}", "", "\\1-grams:", "-99\t<s>", *lines, "", "\\end\\", ""]))
    return str(path)


@pytest.mark.parametrize("beside", ["nothing", "arpa", "gpt2"])
def test_lists_are_ranked_distinct_and_headed_by_the_hypothesis(project, run: Path, tmp_path: Path, beside: str) -> None:  # type: ignore[no-untyped-def]
    lm = {
        "nothing": lambda: None,
        "arpa": lambda: write_arpa(project, tmp_path / "words.arpa"),
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
    assert [option["text"] for row in rows for option in row["hypotheses"]] == [row.hypothesis for row in report.hypotheses]
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
        UserError, match=r"n_best must not exceed the beam of 8, but is 9 instead\. Widen it: --set search\.beam\.beam=18"
    ):
        evaluate(run, manifest=project.manifest, config=replace(BEAM, n_best=9))
    check_n_best(9, SearchConfig(), is_hybrid=True)  # from a lattice
    assert not result_paths(run, "test")[0].exists()
