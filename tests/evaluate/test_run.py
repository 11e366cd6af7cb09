"""evaluate: from a run's folder to its figures, deterministic, left when it is finished, with or without the heads'
data."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from hkd.decode.ctc import SearchConfig
from hkd.errors import UserError
from hkd.evaluate.decoding import EvaluateConfig
from hkd.evaluate.heads import MAIN
from hkd.evaluate.report import write_report
from hkd.evaluate.run import evaluate
from hkd.evaluate.score import read_result, result_paths, score_all, tags_of
from hkd.manifest import Utterance
from hkd.manifest import read as read_manifest
from hkd.manifest import write as write_manifest
from hkd.testing.teachers import make_teacher_folder
from hkd.units.text import words
from hkd.units.tying import PhoneTying, adopt


@pytest.fixture
def run(project, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A copy of the hierarchical run."""
    return Path(shutil.copytree(project.runs[-1], tmp_path / "hierarchical"))


def test_the_same_bytes_again_and_left_when_finished(project, run: Path) -> None:  # type: ignore[no-untyped-def]
    paths = result_paths(run, "test")
    arguments = {"manifest": project.manifest, "alignment": project.alignment, "labels": project.labels}
    first = evaluate(run, **arguments)
    content = [path.read_bytes() for path in paths]
    times = [path.stat().st_mtime_ns for path in paths]
    assert evaluate(run, **arguments).to_json() == first.to_json()
    assert [path.stat().st_mtime_ns for path in paths] == times
    paths[0].unlink()
    evaluate(run, **arguments)
    assert [path.read_bytes() for path in paths[:2]] == content[:2]
    paths[0].unlink()
    alone = evaluate(run, config=EvaluateConfig(batch_seconds=1), **arguments)  # one utterance a batch
    assert paths[1].read_bytes() == content[1]
    assert alone.errors == first.errors
    for name, figures in alone.frames.items():
        assert figures["accuracy"] == first.frames[name]["accuracy"]
        assert (figures["kl"] or 0) == pytest.approx(first.frames[name]["kl"] or 0, rel=1e-4)
    assert first.rtf is not None
    assert 0 < first.rtf < 5


def test_features_on_disk_change_no_figure_and_are_made_once(project, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = {"manifest": project.manifest, "alignment": project.alignment, "labels": project.labels}
    first = evaluate(run, **arguments)
    paths = result_paths(run, "test")
    content = [path.read_bytes() for path in paths[:2]]
    config = EvaluateConfig(features_cache=str(tmp_path / "features"))
    times = []
    for _ in range(2):
        paths[0].unlink()
        again = evaluate(run, config=config, **arguments)
        assert [path.read_bytes() for path in paths[:2]] == content
        assert again.rtf is not None
        assert first.rtf is not None
        assert again.rtf > 0

        times.append([path.stat().st_mtime_ns for path in sorted((tmp_path / "features").iterdir())])
    assert times[0] == times[1]
    assert len(times[0]) == 1


def test_other_references_or_settings_are_evaluated_anew(project, run: Path) -> None:  # type: ignore[no-untyped-def]
    first = evaluate(run, manifest=project.manifest)
    assert evaluate(run, manifest=project.manifest, config=EvaluateConfig(level=0.9)).to_json() != first.to_json()
    edited = run / "manifest.jsonl"
    part = read_manifest(project.manifest).split("test")
    edited.write_text(
        project.manifest.read_text()
        .replace(part[0].text, "Something else.")
        .replace('"audio/', f'"{project.folder}/audio/')
    )
    again = evaluate(run, manifest=edited)
    assert again.hypotheses[0].reference == "something else"
    assert again.data["words"] != first.data["words"]


def test_sound_recorded_again_is_evaluated_again_and_sound_that_is_gone_changes_nothing(
    project,
    run: Path,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    folder = Path(shutil.copytree(project.folder, tmp_path / "copy"))
    manifest = folder / "manifest.jsonl"
    assert evaluate(run, manifest=manifest).inputs == evaluate(run, manifest=project.manifest).inputs
    before = result_paths(run, "test")[0].stat().st_mtime_ns
    path = Path(str(read_manifest(manifest).split("test")[0].audio_filepath))
    wave_S, rate = soundfile.read(path)
    soundfile.write(path, -wave_S, rate)
    again = evaluate(run, manifest=manifest)
    assert (after := result_paths(run, "test")[0].stat().st_mtime_ns) != before
    path.unlink()
    assert evaluate(run, manifest=manifest).to_json() == again.to_json()
    assert result_paths(run, "test")[0].stat().st_mtime_ns == after


def test_references_are_the_normalised_transcripts_and_figures_name_their_parts(project, run: Path) -> None:  # type: ignore[no-untyped-def]
    report = evaluate(run, manifest=project.manifest, split="dev")
    part = read_manifest(project.manifest).split("dev")
    assert [row.reference for row in report.hypotheses] == [" ".join(words(u.text)) for u in part]
    assert (report.objective, report.seed, report.data["utterances"]) == ("hierarchical", 3, len(part))
    assert report.data["speakers"] == 1
    assert report.errors["wer"].by_speaker is None  # one block says nothing
    assert list(report.frames) == [MAIN]  # no alignment given


def test_all_runs_have_the_same_parameters_at_inference(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    counts = set()
    for run in project.runs:
        copy = tmp_path / run.name
        shutil.copytree(run / "model", copy / "model")  # the exported student alone is enough
        counts.add(evaluate(copy, manifest=project.manifest).parameters)
    assert len(counts) == 1


def test_a_run_without_a_student_is_refused(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="must have an exported student"):
        evaluate(tmp_path, manifest=project.manifest)
    with pytest.raises(UserError, match="split must be one of dev, test, train"):
        evaluate(project.runs[0], manifest=project.manifest, split="nonsense")


def said_otherwise(project, path: Path, text: Callable[[Utterance], str]) -> Path:  # type: ignore[no-untyped-def]
    """The project's manifest with other transcripts."""
    write_manifest(path, [replace(utterance, text=text(utterance)) for utterance in read_manifest(project.manifest)])
    return path


@pytest.mark.parametrize(("text", "without"), [("Привет, мир!", {"per"}), ("", {"wer", "cer", "per"})])
def test_a_rate_without_reference_tokens_is_null(project, run: Path, text: str, without: set[str]) -> None:  # type: ignore[no-untyped-def]
    manifest = said_otherwise(project, run / "manifest.jsonl", lambda _: text)
    evaluate(run, manifest=manifest, split="dev")
    written = json.loads(result_paths(run, "dev")[0].read_text())["errors"]
    assert {name for name, rate in written.items() if rate["rate"] is None} == without
    back = read_result(run, "dev")
    assert {name for name, rate in back.errors.items() if math.isnan(rate.rate)} == without
    assert back.errors["wer"].tokens == 2 * len(back.hypotheses) * bool(text)
    listed = result_paths(run, "dev")[0].with_suffix(".errors.txt").read_text()
    assert "nan" not in listed
    assert (" –\n" in listed) == (not text)


def test_phones_are_those_of_the_projects_own_lexicon(project, run: Path) -> None:  # type: ignore[no-untyped-def]
    units = Path(shutil.copytree(project.units, run / "units"))
    phones = PhoneTying(["SIL", "Q", "q", "e1", "e2"])
    adopt(units, phones, {"привет": [("Q", "q", "e1")], "мир": [("e2", "SIL")]}, overwrite=True)
    manifest = said_otherwise(project, run / "manifest.jsonl", lambda _: "Привет, мир!")
    english = evaluate(run, manifest=manifest, split="dev")
    report = evaluate(run, manifest=manifest, split="dev", units=units)
    assert (english.errors["per"].tokens, report.errors["per"].tokens) == (0, 4 * len(report.hypotheses))
    back = read_result(run, "dev")
    assert {row.reference_phones for row in back.hypotheses} == {"Q q e1 e2"}
    assert score_all(back.hypotheses)["per"].totals() == score_all(report.hypotheses)["per"].totals()
    assert back.errors["per"] == report.errors["per"]


def test_heads_that_do_not_fit_cost_a_warning_and_no_error_rate(  # type: ignore[no-untyped-def]
    project, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = said_otherwise(project, run / "manifest.jsonl", lambda u: f"{u.text} indeed")
    arguments = {"alignment": project.alignment, "labels": project.labels, "split": "dev"}
    report = evaluate(run, manifest=manifest, **arguments)
    assert list(report.frames) == [MAIN]  # which needs no alignment
    assert report.frames[MAIN]["kl"] is None
    assert report.errors["wer"].rate == read_result(run, "dev").errors["wer"].rate > 0
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "hierarchical: the figures of its heads are left out: utterance '" in record.getMessage()
    assert "the transcript must be the one that was aligned" in record.getMessage()
    assert set(evaluate(run, manifest=project.manifest, **arguments).frames) > {MAIN}


def test_an_lm_folder_with_other_weights_of_the_same_size_is_another_lm(project, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = EvaluateConfig(search=SearchConfig(decoder="beam", lm_weight=2.0))
    arguments = {
        "manifest": project.manifest,
        "split": "dev",
        "config": config,
        "lm": str(tmp_path / "lm"),
        "tag": "fusion",
    }
    make_teacher_folder(tmp_path / "lm", "gpt2", seed=0)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "lm").iterdir()}
    first = evaluate(run, **arguments)
    make_teacher_folder(tmp_path / "lm", "gpt2", seed=1)
    assert {path.name: path.stat().st_size for path in (tmp_path / "lm").iterdir()} == sizes
    assert evaluate(run, **arguments).inputs["lm"] != first.inputs["lm"]


@pytest.mark.parametrize(
    "change", [{"level": 1.0}, {"num_draws": 1}, {"batch_seconds": 0.0}, {"seed": -1}, {"n_best": -1}]
)
def test_settings_are_checked(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"`evaluate.{next(iter(change))}` must"):
        EvaluateConfig(**change)  # type: ignore[arg-type]


def test_another_way_to_decode_lies_beside_under_its_tag(evaluated, unigram: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = Path(shutil.copytree(evaluated.runs[0], tmp_path / "none"))
    usual = [path.read_bytes() for path in result_paths(run, "test")]
    known = {w for u in read_manifest(evaluated.manifest) for w in words(u.text)}
    config = EvaluateConfig(search=SearchConfig(decoder="beam", word_bonus=3.0))
    report = evaluate(
        run, manifest=evaluated.manifest, config=config, lm=str(unigram), tag="fusion", alignment=evaluated.alignment
    )
    assert report.name == "none@fusion"
    assert report.frames == {}
    assert report.decoder["lm"] == "words.arpa"
    assert {w for row in report.hypotheses for w in row.hypothesis.split()} <= known
    assert [path.read_bytes() for path in result_paths(run, "test")] == usual
    assert tags_of(run, "test") == ["fusion"]
    assert read_result(run, "test", "fusion").to_json() == report.to_json()
    table = write_report([run, evaluated.runs[3]], tmp_path / "page.html")
    assert [row.name for row in table.rows] == ["none", "none@fusion", "hierarchical"]
    assert "words.arpa" in (tmp_path / "page.html").read_text()
    with pytest.raises(UserError, match="tag must be letters"):
        evaluate(run, manifest=evaluated.manifest, tag="../x")
    with pytest.raises(UserError, match="decoder must be beam"):
        evaluate(run, manifest=evaluated.manifest, lm=str(unigram))
