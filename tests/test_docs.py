"""The commands of README and of the pages in docs/ run, in their order, on folders of real files; links lead
somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hkd.cli.main import app
from hkd.testing.teachers import make_teacher_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# what a test must not spend: small LMs and students, in the file that `hkd prepare` leaves as it is
SETTINGS = """
[units]
vocab_size = 60
[lm.senone]
loop = {max_steps = 3}
max_scored_positions = 20
[lm.subword]
loop = {max_steps = 3}
[train]
batch_seconds = 8.0
encoder = {d_model = 16, num_layers = 3, num_heads = 2}
loop = {max_steps = 3, save_every = 3, log_every = 1}
"""


def shell_blocks(text: str) -> list[str]:
    return [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    ]


def run_all(text: str, folder: Path, **environment: str) -> int:
    """Run every line of a page's bash blocks; how many there were."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", **environment}
    lines = shell_blocks(text)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "python":
            words[0] = sys.executable
        elif words[0] == "hkd":
            words[:1] = [sys.executable, "-m", "hkd"]
        done = subprocess.run(words, cwd=folder, env=given, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return len(lines)


@pytest.fixture
def speech(tmp_path: Path, tiny_manifest: Path) -> Path:
    """A newcomer's folder: sound files, each with its text beside it, and sentences for an LM."""
    from hkd.manifest import read

    folder = tmp_path / "my-speech"
    folder.mkdir()
    for number, utterance in enumerate(read(tiny_manifest)):
        name = "a" if number == 0 else utterance.id
        shutil.copy(utterance.audio_filepath, folder / f"{name}.wav")
        (folder / f"{name}.txt").write_text(utterance.text)
    (tmp_path / "hkd.toml").write_text(SETTINGS)
    texts = [u.text for u in read(tiny_manifest)]
    (tmp_path / "sentences.txt").write_text(
        "".join(f"{text}\n{' '.join(reversed(text.strip('.').split()))}\n" for text in texts)
    )
    return tmp_path


def cached_bert(folder: Path) -> None:
    """A hub cache that holds a tiny random BERT under bert-large's name, as the hub's own client lays it out."""
    model = folder / "models--google-bert--bert-large-uncased"
    make_teacher_folder(model / "snapshots" / ("0" * 40), "bert", texts=["the red door is open today"])
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)


@pytest.mark.timeout(900)
def test_every_command_of_the_readme_and_of_the_pages_runs(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cached_bert(speech / "hub")
    shutil.copytree(speech, fresh := tmp_path.parent / f"{tmp_path.name}-fresh")
    readme = shell_blocks(README)
    assert len(readme) > 10
    pages = {
        page: shell_blocks(page.read_text(encoding="utf-8"))
        for page in (ROOT / "docs").rglob("*.md")
        if page.name != "scale-out.md"
    }
    monkeypatch.setenv("HF_HUB_CACHE", str(speech / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(speech / "hub"))
    assert sum(map(len, pages.values())) > 20

    def run_here(name: str, lines: list[str], folder: Path) -> None:
        monkeypatch.chdir(folder)
        for line in lines:
            program, *words = shlex.split(line, comments=True)
            assert program == "hkd", line
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, f"{name}: {line}\n{done.output}"

    run_here("README", readme, speech)
    assert (speech / "report.html").exists()
    for page, lines in pages.items():  # the tutorial in a fresh folder, the others where README's commands have run
        source, folder = fresh if page.stem == "tutorial" else speech, tmp_path.parent / f"{tmp_path.name}-{page.stem}"
        run_here(page.name, lines, shutil.copytree(source, folder))


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def test_the_commands_on_scale_out_give_the_bytes_of_one_process(prepared: Path, tmp_path: Path):
    page = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
    hands, slurm, alone = (shutil.copytree(prepared, tmp_path / name) for name in ("hands", "slurm", "alone"))
    for folder in (hands, slurm, alone):
        with (folder / "hkd.toml").open("a") as file:
            file.write("\n[dump]\nmonophone = {utterances_per_shard = 2}\nby-ray = {utterances_per_shard = 2}\n")
    assert run_all(page, hands) == 3
    assert run_all("```bash\nhkd teacher-dump --lm phone-trigram --unit monophone\n```", alone) == 1
    one = files_of(alone / "shards" / "monophone")
    assert files_of(hands / "shards" / "monophone") == one
    by_ray = files_of(hands / "shards" / "by-ray")
    assert by_ray.keys() == one.keys()
    assert by_ray["report.json"] == one["report.json"]

    script = re.search(r"```sbatch\n(.*?)```", page, re.DOTALL).group(1).replace("world-size 16", "world-size 2")
    (slurm / "labels.sh").write_text(script)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    array = [
        subprocess.Popen(
            ["bash", "labels.sh"],
            cwd=slurm,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "SLURM_ARRAY_TASK_ID": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in array:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
    assert files_of(slurm / "shards" / "monophone") == one


def test_links_to_files_lead_somewhere():
    for name in ("README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"
