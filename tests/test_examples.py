"""The examples run as a person runs them, on a project with label stores, and what they train comes nearer to the
teacher."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kit.labelled import label_folder

EXAMPLES = Path(__file__).parents[1] / "examples"
LONGEST = 80


@pytest.fixture(scope="module")
def project(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("examples") / "project")
    label_folder(folder, levels=["monophone"])
    return folder


def run(name: str, *arguments: str, cwd: Path) -> str:
    given = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_examples_are_short():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) >= 3
    assert max(lengths.values()) <= LONGEST, lengths


def test_a_plain_loop(project: Path, tmp_path: Path):
    losses = [
        float(x)
        for x in re.findall(
            r"KL to the teacher ([\d.]+)", run("plain_pytorch.py", str(project), "monophone", cwd=tmp_path)
        )
    ]
    third = len(losses) // 3
    assert sum(losses[-third:]) < sum(losses[:third])


def test_the_trainer_of_hugging_face(project: Path, tmp_path: Path):
    out = run("hf_trainer.py", str(project), "monophone", str(tmp_path / "out"), cwd=tmp_path)
    losses = eval(out.strip().splitlines()[-1])
    assert len(losses) == 4
    assert all(0 < loss < 1e4 for loss in losses)


def test_lhotse_as_icefall_uses_it(project: Path, tmp_path: Path):
    subprocess.run(
        [sys.executable, "-m", "hkd", "manifest", "export", str(tmp_path / "cuts"), "--to", "lhotse"],
        cwd=project,
        check=True,
        timeout=100,
    )
    out = run("lhotse_icefall.py", str(project), "monophone", str(tmp_path / "cuts"), cwd=tmp_path)
    losses = [float(x) for x in re.findall(r"KL to the teacher ([\d.]+)", out)]
    assert len(losses) >= 2
    assert all(0 < loss < 20 for loss in losses)
    assert "0 utterances with labels" not in out
