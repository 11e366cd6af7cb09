"""The commands evaluate, transcribe and report in a project's folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hkd.cli.evaluate import model_folder, run_folders
from hkd.cli.main import app
from hkd.decode.ctc import SearchConfig
from hkd.decode.graph import HybridConfig
from hkd.decode.recogniser import Recogniser
from hkd.errors import UserError
from hkd.student.export import load_student, save_student

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


def test_transcribe_goes_on_after_a_bad_file_and_says_so_in_the_end(folder: Path) -> None:
    good, last = sorted((folder / "audio").iterdir())[:2]
    (folder / "empty.wav").touch()
    (folder / "text.flac").write_text("no sound")
    result = runner.invoke(
        app, ["transcribe", str(good), "empty.wav", "nowhere.wav", "text.flac", str(last), "--run", "none"]
    )
    assert result.exit_code == 1
    assert [line.partition(": ")[0] for line in result.stdout.splitlines()] == [str(good), str(last)]
    lines = [line for line in result.stderr.splitlines() if not line.startswith("No word is recognised in ")]
    assert [line.partition(": ")[0] for line in lines] == ["empty.wav", "nowhere.wav", "text.flac", "hkd"]
    assert lines[-1] == "hkd: 3 of 5 files could not be transcribed: empty.wav, nowhere.wav, text.flac."
    result = runner.invoke(app, ["transcribe", "empty.wav", "--run", "none"])
    assert (result.exit_code, result.stdout) == (2, "")


def test_transcribe_takes_a_folder_and_names_what_it_leaves_out(folder: Path) -> None:
    sounds = sorted((folder / "audio").iterdir())[:2]
    (folder / "in/deep").mkdir(parents=True)
    names = ["in/a.wav", "in/deep/B.WAV"]
    for sound, name in zip(sounds, names, strict=True):
        shutil.copy(sound, folder / name)
    (folder / "in/notes.txt").write_text("x")
    (folder / "in/talk.m4a").write_text("x")
    (folder / "in/._a.wav").write_text("x")
    result = runner.invoke(app, ["transcribe", "in", "--run", "none"])
    assert result.exit_code == 0, result.output
    assert [line.partition(": ")[0] for line in result.stdout.splitlines()] == names
    assert "left out: 1 hidden files or folders: ._a.wav" in result.stderr
    assert "ffmpeg -i NAME.m4a NAME.flac): in/talk.m4a" in result.stderr
    (folder / "in/deep/c.wav").touch()
    result = runner.invoke(app, ["transcribe", "in", "--run", "none"])
    assert (result.exit_code, len(result.stdout.splitlines())) == (1, 2)
    assert "1 of 3 files could not be transcribed: in/deep/c.wav." in result.stderr
    (folder / "bare").mkdir()
    result = runner.invoke(app, ["transcribe", "bare", "--run", "none"])
    assert result.exit_code == 2
    assert "must hold sound" in result.stderr


@torch.no_grad()
def test_a_student_that_says_nothing_is_said_to_say_nothing(folder: Path) -> None:
    model = folder / "runs" / "none" / "model"
    student, meta = load_student(str(model))
    student.main.out.bias[0] += 100.0  # the blank, always
    pieces = (model / "subword.model").read_bytes()
    save_student(model, student, inventory=meta.inventory, subword_model=pieces, extra=meta.extra)
    sound = str(sorted((folder / "audio").iterdir())[0])
    result = runner.invoke(app, ["transcribe", sound, "--run", "none"])
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert result.stderr.startswith(
        f"No word is recognised in {sound}. If that is so of all speech: CTC needs more speech"
    )
    result = runner.invoke(app, ["evaluate", "none"])
    assert result.exit_code == 0, result.output
    assert "Nothing, or almost nothing, is said by none (27 of 27 words are left out)." in result.stdout
    assert "--set main=senone" in result.stdout


def said(*arguments: str) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_transcribe_searches_as_evaluate_does(folder: Path, unigram: Path) -> None:
    sound = sorted((folder / "audio").iterdir())[0]
    one = ("transcribe", str(sound), "--model", "none")

    def text(lm: str | None = None, **search: object) -> str:
        recogniser = Recogniser(folder / "runs" / "none" / "model", search=SearchConfig(**search), lm=lm)
        return f"{recogniser.transcribe(sound)['text']}\n"

    lm = str(unigram)
    greedy, beam = text(), text(lm, decoder="beam", word_bonus=3.0)
    few, free = text(lm, decoder="beam", word_bonus=0.0), text(lm, decoder="beam", word_bonus=3.0, lexicon=False)
    assert len({greedy, beam, few, free}) == 4
    assert said(*one) == greedy
    assert said(*one, "--decoder", "beam", "--lm", lm, "--set", "search.word_bonus=3") == beam
    (folder / "hkd.toml").write_text(f'[evaluate]\nlm = "{lm}"\nsearch = {{decoder = "beam", word_bonus = 3.0}}\n')
    assert said(*one) == beam
    assert said(*one, "--set", "search.word_bonus=0.0") == few
    assert said(*one, "--set", "search.lexicon=false") == free


def test_what_tuning_finds_can_be_given_back(
    folder: Path, hybrid: Path, unigram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(hybrid, folder / "runs" / "hybrid")
    monkeypatch.setattr("hkd.evaluate.decoding.CTC_GRID", {"lm_weight": (0.2, 0.7), "word_bonus": (1.5,)})
    monkeypatch.setattr("hkd.evaluate.decoding.HYBRID_GRID", {"acoustic_scale": (0.07, 0.7), "prior_scale": (0.25,)})
    for run in ("hybrid", "none"):
        common = ("evaluate", run, "--split", "dev", "--lm", str(unigram), "--set", "num_draws=100")
        _, first, *_, best = said(*common, "--tune").splitlines()
        *values, wer = map(float, first.split())
        assert best.startswith("Best: --set search.")
        [report] = json.loads(said(*common, *best.removeprefix("Best: ").split(), "--tag", "tuned", "--json"))
        names = ("acoustic_scale", "prior_scale") if run == "hybrid" else ("lm_weight", "word_bonus")
        assert [report["decoder"][name] for name in names] == values
        assert f"{100 * report['errors']['wer']['rate']:.2f}" == f"{wer:.2f}"


def test_a_hybrid_is_evaluated_and_transcribed_with_the_same_scales(folder: Path, hybrid: Path, unigram: Path) -> None:
    shutil.copytree(hybrid, folder / "runs" / "hybrid")
    given = (
        "--lm",
        str(unigram),
        "--set",
        "search.hybrid.acoustic_scale=0.7",
        "--set",
        "search.hybrid.prior_scale=0",
        "--set",
        "num_draws=100",
    )
    [report] = json.loads(said("evaluate", "hybrid", "--split", "dev", *given, "--json"))
    assert report["decoder"]["acoustic_scale"] == 0.7
    assert report["decoder"]["prior_scale"] == 0.0
    sound = sorted((folder / "audio").iterdir())[0]
    search = SearchConfig(hybrid=HybridConfig(acoustic_scale=0.7, prior_scale=0.0))
    wanted, usual = (
        Recogniser(hybrid / "model", search=how, lm=str(unigram)).transcribe(sound)["text"]
        for how in (search, SearchConfig())
    )
    assert said("transcribe", str(sound), "--model", "hybrid", *given) == f"{wanted}\n"
    assert wanted != usual


def test_what_cannot_be_is_one_line_and_exit_2(folder: Path) -> None:
    for arguments, said in (
        (["evaluate", "nonsense"], "but is 'nonsense' instead"),
        (["evaluate", "none", "--split", "nonsense"], "split must be one of"),
        (["evaluate", "none", "--set", "n_best=3"], "Take --decoder beam"),
        (["report", "none"], "Run `hkd evaluate none --split test` first"),
        (["transcribe", "missing.wav", "--model", "none"], "No such file"),
        (["transcribe", "missing.wav"], "--run must be given"),
        (["transcribe", "missing.wav", "--model", "none", "--set", "search.bean=2"], "Did you mean 'beam'?"),
        (["evaluate", "none", "--set", "search.hybrid.prior_scale=-1"], "hybrid.prior_scale must not be negative"),
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr.replace("\n", " ")
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stdout == ""


PARTS = {
    "evaluate": ("model/student.json", "model/model.safetensors", "model/subword.model", "student.json",
        "final.safetensors", "config.toml"),
    "report": ("eval-test.json", "eval-test.hyp.jsonl", "eval-test.timing.json", "metrics.jsonl", "timing.jsonl",
        "student.json"),
    "report --card card.md": ("identity.json", "coverage.json", "config.toml", "model/student.json"),
}  # fmt: skip


@pytest.mark.parametrize("content", [b"[]", b'{"step": {}}', bytes(range(128, 256))], ids=["list", "other", "binary"])
@pytest.mark.parametrize("command", PARTS)
def test_a_broken_part_of_a_run_is_no_internal_error(folder: Path, evaluated, command: str, content: bytes) -> None:  # type: ignore[no-untyped-def]
    for name in PARTS[command]:
        run = Path(shutil.copytree(evaluated.runs[-1], folder / "runs" / "hierarchical", dirs_exist_ok=True))
        (run / name).write_bytes(content)
        result = runner.invoke(app, [*command.split(), "hierarchical"])
        assert result.exit_code in (0, 1, 2), (name, result.output)
        assert "internal error" not in result.output, (name, result.output)
        assert result.exit_code == 0 or len(result.stderr.strip().splitlines()) == 1, (name, result.stderr)


def test_edited_transcripts_cost_the_heads_figures_alone(folder: Path) -> None:
    manifest = folder / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"text": "', '"text": "indeed '))
    result = runner.invoke(app, ["evaluate", "hierarchical", "--decoder", "beam", "--set", "n_best=2", "--json"])
    assert result.exit_code == 0, result.output
    [report] = json.loads(result.stdout)
    assert list(report["frames"]) == ["main"]
    assert report["frames"]["main"]["kl"] is None
    assert report["errors"]["wer"]["rate"] > 0
    assert {path.name for path in (folder / "runs" / "hierarchical").glob("eval-test.*")} == {
        "eval-test.json", "eval-test.hyp.jsonl", "eval-test.errors.txt", "eval-test.timing.json",
        "eval-test.nbest.jsonl",
    }  # fmt: skip


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
