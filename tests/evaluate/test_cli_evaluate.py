"""The commands evaluate, transcribe and report in a project's folder."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hkd.cli.evaluate import model_folder, run_folders
from hkd.cli.main import app
from hkd.errors import UserError

runner = CliRunner()


@pytest.fixture
def folder(project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # type: ignore[no-untyped-def]
    """A copy of the project as the working directory, with two of its runs."""
    copy = Path(shutil.copytree(project.folder, tmp_path / "demo"))
    for name in ("interpolation", "hard-heads"):
        shutil.rmtree(copy / "runs" / name)
    monkeypatch.chdir(copy)
    return copy


def test_evaluate_report_transcribe(folder: Path) -> None:
    result = runner.invoke(app, ["evaluate", "--json"])
    assert result.exit_code == 0, result.output
    reports = json.loads(result.stdout)
    assert [report["run"] for report in reports] == ["hierarchical", "none"]
    result = runner.invoke(app, ["evaluate", "none"])
    assert f"{100 * reports[1]['errors']['wer']['rate']:.2f}" in result.stdout
    result = runner.invoke(app, ["report", "--out", "page.html", "--markdown", "table.md"])
    assert result.exit_code == 0, result.output
    assert (folder / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert (folder / "table.md").read_text().startswith("| run |")
    sound = sorted((folder / "audio").iterdir())[:2]
    result = runner.invoke(app, ["transcribe", str(sound[0]), "--model", "runs/none"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    result = runner.invoke(app, ["transcribe", *map(str, sound), "--model", "none", "--json"])
    assert result.exit_code == 0, result.output


def test_what_cannot_be_is_one_line_and_exit_2(folder: Path) -> None:
    for arguments, said in (
        (["evaluate", "nonsense"], "but is 'nonsense' instead"),
        (["evaluate", "none", "--split", "nonsense"], "split must be one of"),
        (["report", "none"], "Run `hkd evaluate none --split test` first"),
        (["transcribe", "missing.wav", "--model", "none"], "No such file"),
        (["transcribe", "missing.wav"], "--model must be given"),
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr.replace("\n", " ")
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stdout == ""


def test_runs_and_models_by_name_or_folder(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    runs = project.folder / "runs"
    assert [run.name for run in run_folders(None, runs)] == sorted(run.name for run in project.runs)
    assert run_folders(["none", str(project.runs[1])], runs) == [project.runs[0], project.runs[1]]
    for given in (project.runs[0], project.runs[0] / "model", Path("none")):
        assert (model_folder(given, runs) / "student.json").exists()
    with pytest.raises(UserError, match="Run `hkd train` first"):
        run_folders(None, tmp_path)
    with pytest.raises(UserError, match="neither"):
        model_folder(tmp_path, runs)
