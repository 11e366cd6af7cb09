"""The model card: its figures are the evaluation's, its examples run and search as the evaluation did, and it says what
the student is."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hkd.cli.main import app
from hkd.decode.ctc import SearchConfig
from hkd.decode.graph import HybridConfig
from hkd.decode.recogniser import Recogniser
from hkd.errors import UserError
from hkd.evaluate.decoding import EvaluateConfig
from hkd.evaluate.report import model_card, write_card
from hkd.evaluate.run import evaluate
from hkd.evaluate.score import read_result
from hkd.manifest import read as read_manifest
from hkd.student.export import load_student


def test_it_says_what_the_student_is_and_how_well_it_understands(evaluated, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = evaluated.runs[-1]
    text = model_card(run)
    report, (student, meta) = read_result(run, "test"), load_student(run / "model")
    for rate in report.errors.values():
        assert f"{100 * rate.rate:.2f}" in text
    assert f"{student.num_parameters():,}" in text
    assert meta.inventory.digest[:12] in text
    assert "hierarchical: auxiliary output layers" in text
    assert "label store senone" in text
    assert text.startswith("---\nlibrary_name: hkd\n")
    assert "{" not in text
    assert "CTC over" in text
    assert "No language model is needed to run it." in text
    write_card(run, tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == text


def test_without_figures_there_is_no_card(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="Run `hkd evaluate hierarchical` first"):
        model_card(project.runs[-1])
    with pytest.raises(UserError, match="must be an exported student"):
        model_card(tmp_path)


def test_an_export_before_the_evaluation_has_a_card_whose_examples_run(
    project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    run = project.runs[0]
    text = model_card(run, needs_figures=False)
    assert "Not evaluated yet: `hkd evaluate none`" in text
    assert f"| objective | {run.name}: the main loss alone" in text
    check_examples(text, run, sound_of(project.manifest), SearchConfig(), None)


def check_examples(text: str, run: Path, sound: Path, search: SearchConfig, lm: str | None) -> str:
    """Run what the card shows, in the working directory; both print what this search gives, and that comes back."""
    wanted = str(Recogniser(str(run), search=search, lm=lm).transcribe(str(sound))["text"])
    shell, python = re.findall(r"```(?:python)?\n(.*?)\n```", text, re.DOTALL)
    places = {"FOLDER": str(run / "model"), "FILE.wav": str(sound)}
    _, *words = (places.get(word, word) for word in shlex.split(shell))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{wanted}\n"
    for name, path in places.items():
        python = python.replace(name, path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(python, {})
    assert printed.getvalue() == f"{wanted}\n"
    return wanted


def sound_of(manifest: Path) -> Path:
    return Path(str(read_manifest(manifest)[0].audio_filepath))


def test_its_examples_run(evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    run = evaluated.runs[1]
    check_examples(model_card(run), run, sound_of(evaluated.manifest), SearchConfig(), None)


def test_beside_an_lm_it_tells_how(project, unigram: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(unigram.parent)
    run = Path(shutil.copytree(project.runs[1], tmp_path / "run"))
    search = SearchConfig(decoder="beam", word_bonus=9.0, lexicon=False)
    config = EvaluateConfig(search=search, level=0.8, num_draws=100)
    evaluate(run, manifest=project.manifest, lm=unigram.name, config=config)
    evaluate(run, manifest=project.manifest, lm=unigram.name, split="dev", config=config)
    text = model_card(run)
    assert "the figures below are with one beside the search" in text
    assert "Decoding: beam (beam 16, lm words.arpa, lm_weight 0.5, word_bonus 9.0, lm_parameters 0)." in text
    assert "WER % (80 %)" in text
    assert "95 %" not in text
    assert check_examples(text, run, sound_of(project.manifest), search, unigram.name)
    path = run / "eval-test.json"
    path.write_text(path.read_text().replace(read_result(run, "test").inputs["lm"], "some-hub/words.arpa"))
    assert "--lm some-hub/words.arpa" in model_card(run)


def test_a_hybrid_student_s_card(
    project, hybrid: Path, unigram: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(unigram.parent)
    run = Path(shutil.copytree(hybrid, tmp_path / "run"))
    search = SearchConfig(hybrid=HybridConfig(acoustic_scale=0.7, prior_scale=0.0))
    evaluate(run, manifest=project.manifest, lm=unigram.name, config=EvaluateConfig(search=search, num_draws=100))
    text, meta = model_card(run), load_student(str(run / "model"))[1]
    assert f"| main output | {len(meta.inventory)} senone units" in text
    assert "CTC" not in text
    assert "No language model is needed" not in text
    assert f"| language model beside it | words.arpa (`{read_result(run, 'test').inputs['lm']}`) |" in text
    assert "Decoding: graph (lm words.arpa, acoustic_scale 0.7, prior_scale 0.0, beam 14.0, max_active 4000)." in text
    assert check_examples(text, run, sound_of(project.manifest), search, unigram.name)
