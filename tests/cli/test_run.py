"""`hkd run` never removes what it did not write under the same settings, and sees what changed in the files that it
reads."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PIPELINE = """
title = "labels alone"
jobs = 2
[prepare]
corpus = "speech/manifest.jsonl"
text = "said.txt"
[units]
vocab_size = 60
[words]
order = 2
[dump.monophone]
lm = "phone-trigram"
unit = "monophone"
"""


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hkd", "run", "pipe.toml", "--work", "work", "--json", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def files(folder: Path) -> dict[str, bytes]:
    found = {
        str(path.relative_to(folder)): path.read_bytes() for path in (folder / "work").rglob("*") if path.is_file()
    }
    return {name: data for name, data in found.items() if name != "work/stages/contents.json"}


@pytest.fixture(scope="module")
def finished(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_manifest.parent, folder / "speech")
    (folder / "said.txt").write_text("the number is\nplease enter\n")
    (folder / "pipe.toml").write_text(PIPELINE)
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["ran"]) == {"prepare", "align", "units", "words", "dump-monophone"}
    return folder


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The finished folder, put back afterwards: the manifest names the recordings by their whole path."""
    shutil.copytree(finished, tmp_path / "copy")
    yield finished
    shutil.rmtree(finished)
    shutil.copytree(tmp_path / "copy", finished)


def edit(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new, 1))

    return change


def louder(folder: Path) -> None:
    """A corrected recording: other samples, the same length."""
    path = min((folder / "speech").rglob("*.wav"))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


CHANGES = {
    "settings of units": (edit("pipe.toml", "vocab_size = 60", "vocab_size = 50"), "stage units",
        "vocab_size: 60, now 50"),
    "a default written out": (edit("pipe.toml", "order = 2", "order = 3"), "stage words", "order: 2, now 3"),
    "text": (edit("said.txt", "please", "do please"), "said.txt", "stage prepare"),
    "split": (edit("speech/manifest.jsonl", '"train"', '"test"'), "manifest.jsonl", "stage prepare"),
    "transcript": (edit("speech/manifest.jsonl", "the", "a"), "manifest.jsonl", "stage prepare"),
    "recording": (louder, "audio of manifest.jsonl", "stage align"),
    "manifest of the folder": (edit("work/manifest.jsonl", '"train"', '"test"'), "manifest.jsonl", "stage align"),
    "text of the folder": (edit("work/text/said.txt", "please", "do please"), "text/*.txt*", "stage words"),
    "store's settings": (edit("pipe.toml", 'unit = "monophone"', 'unit = "monophone"\nk = 5'), "stage dump-monophone",
        "k: not given, now 5"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "what", "more"), CHANGES.values(), ids=list(CHANGES))
def test_what_changed_is_seen_and_nothing_is_removed(work: Path, change: Callable[[Path], None], what: str, more: str):
    change(work)
    before = files(work)
    done = run(work)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().count("\n") <= 1  # the pipeline's title, and the refusal
    assert what in done.stderr
    assert more in done.stderr
    assert "Nothing was removed." in done.stderr
    assert done.stderr.strip().endswith("hkd run pipe.toml --work work --overwrite")
    assert files(work) == before


def test_the_command_that_is_named_replaces_it(work: Path):
    edit("speech/manifest.jsonl", '"train"', '"dev"')(work)
    assert run(work).returncode == 2
    done = run(work, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "prepare" in json.loads(done.stdout)["ran"]
    assert '"dev"' in (work / "work" / "manifest.jsonl").read_text()
    assert json.loads(run(work).stdout)["ran"] == []


def test_nothing_changed_is_up_to_date_though_files_were_touched(work: Path):
    for path in (work / "speech").rglob("*"):
        path.touch()
    done = run(work)
    assert json.loads(done.stdout)["ran"] == []


def test_a_project_of_ones_own_is_not_written_into(work: Path):
    own = work / "mine"
    own.mkdir()
    (own / "hkd.toml").write_text("[units]\nvocab_size = 70\n")
    command = [sys.executable, "-m", "hkd", "run", "pipe.toml", "--work", "mine", "--overwrite"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "mine/hkd.toml must be written by `hkd run`, but is your own." in done.stderr
    assert [path.name for path in own.iterdir()] == ["hkd.toml"]
