"""`hkd train`, `hkd bank` and `hkd export`: as written in a prepared folder, one line elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hkd.cli.main import app
from hkd.student.export import load_student
from kit.labelled import label_folder

TOML = """
[train]
batch_seconds = 7.0
encoder = {d_model = 16, num_layers = 3, num_heads = 2, conv_kernel = 5}
loop = {max_steps = 3, warmup_steps = 1}
"""


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    label_folder(folder)
    (folder / "hkd.toml").write_text((folder / "hkd.toml").read_text() + TOML)
    monkeypatch.chdir(folder)
    return folder


def test_the_command_as_written_trains_then_says_that_it_is_done_and_exports(project: Path) -> None:
    first = CliRunner().invoke(app, ["train", "--labels", "shards/"])
    assert first.exit_code == 0, first.output
    assert (project / "runs" / "hierarchical" / "model" / "student.json").exists()
    again = CliRunner().invoke(app, ["train", "--labels", "shards/", "--json"])
    assert "is done: nothing to do" in again.stderr
    assert json.loads(again.stdout)["was_done"] is True
    other = CliRunner().invoke(app, ["train", "--labels", "shards/", "--set", "lam=0.5"])
    assert other.exit_code == 2
    assert "its train.lam is 0.3 instead of 0.5" in " ".join(other.stderr.split())
    assert CliRunner().invoke(app, ["export", "--run", "hierarchical", "--out", "student"]).exit_code == 0
    assert "Recogniser(" in Path("student/README.md").read_text()
    near = CliRunner().invoke(app, ["export", "hierarchicl", "--out", "other"])
    assert near.exit_code == 2
    assert "Did you mean 'hierarchical'?" in " ".join(near.stderr.split())
    assert CliRunner().invoke(app, ["export", "--out", "other"]).exit_code == 2
    refused = CliRunner().invoke(app, ["train", "--labels", "shards/", "--set", "lamb=0.5", "--overwrite"])
    assert refused.exit_code == 2
    assert (project / "runs" / "hierarchical" / "model").is_dir()  # a setting that is none costs no run
    replaced = CliRunner().invoke(app, ["train", "--labels", "shards/", "--set", "lam=0.5", "--overwrite", "--json"])
    assert replaced.exit_code == 0, replaced.output
    assert json.loads((project / "runs" / "hierarchical" / "identity.json").read_text())["train"]["lam"] == 0.5
    student, _ = load_student(project / "student")
    assert not list(student.heads)


def test_a_bank_is_written_once_and_refused_in_a_sentence(project: Path) -> None:
    command = ["bank", "--folds", "2", "--set", "condition=['monophone']", "--set", "taps.monophone=2", "--json"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["segments"] > 50
    assert CliRunner().invoke(app, command).stdout == first.stdout
    other = CliRunner().invoke(app, [*command, "--set", "encoder.d_model=20"])
    assert other.exit_code == 2
    assert "its student.encoder.d_model is 16 instead of 20" in " ".join(other.stderr.split())


def test_overwrite_removes_nothing_but_a_run(project: Path) -> None:
    (project / "runs" / "mine").mkdir(parents=True)
    (project / "runs" / "mine" / "notes.txt").write_text("mine")
    done = CliRunner().invoke(app, ["train", "--run", "mine", "--overwrite"])
    assert done.exit_code == 2
    assert (project / "runs" / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "a/../../b", ".", ""])
def test_a_run_stays_below_the_folder_of_runs(project: Path, name: str) -> None:
    done = CliRunner().invoke(app, ["train", "--run", name, "--objective", "none", "--overwrite"])
    if not name:  # is no name: the objective's
        assert (project / "runs" / "none").is_dir()
        return
    assert done.exit_code == 2
    assert f"--run must be a name below runs, but is '{name}' instead" in " ".join(done.stderr.split())


def test_show_draws_and_trains_nothing(project: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--show", "--objective", "hard-heads"])
    assert result.exit_code == 0
    assert "hard-senone: senone hard, 5,126 units" in result.stdout
    assert not (project / "runs").exists()


def test_without_a_name_the_run_of_the_objective_has_its_table(project: Path) -> None:
    toml = (project / "hkd.toml").read_text()
    (project / "hkd.toml").write_text(f"{toml}\n[runs.hierarchical]\nhard_heads = false\n")
    result = CliRunner().invoke(app, ["train", "--show"])
    assert result.exit_code == 0
    assert "kd-senone" in result.stdout
    assert "hard-senone" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--labels", "shards/"], "Run `hkd prepare` first"),
        (["export", "none", "--out", "x"], "Run `hkd train` first"),
    ],
)
def test_elsewhere_one_line_says_what_to_run_first(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_unknown_setting_is_refused_naming_the_nearest(project: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--set", "lop.max_steps=3"])
    assert result.exit_code == 2
    assert "'lop' is no setting. Did you mean 'loop'?" in " ".join(result.stderr.split())
