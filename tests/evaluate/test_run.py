"""evaluate: from a run's folder to its figures, deterministic, left when it is finished, with or without the heads' data."""

import shutil
from pathlib import Path

import pytest

from hkd.errors import UserError
from hkd.evaluate.result import result_paths
from hkd.evaluate.run import EvaluateConfig, evaluate, find_setting
from hkd.manifest import read as read_manifest
from hkd.units.text import words


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


def test_other_references_or_settings_are_evaluated_anew(project, run: Path) -> None:  # type: ignore[no-untyped-def]
    first = evaluate(run, manifest=project.manifest)
    assert evaluate(run, manifest=project.manifest, config=EvaluateConfig(level=0.9)).to_json() != first.to_json()
    edited = run / "manifest.jsonl"
    part = read_manifest(project.manifest).split("test")
    edited.write_text(
        project.manifest.read_text().replace(part[0].text, "Something else.").replace('"audio/', f'"{project.folder}/audio/')
    )
    again = evaluate(run, manifest=edited)
    assert again.hypotheses[0].reference == "something else"
    assert again.data["words"] != first.data["words"]


def test_references_are_the_normalised_transcripts_and_figures_name_their_parts(project, run: Path) -> None:  # type: ignore[no-untyped-def]
    report = evaluate(run, manifest=project.manifest, split="dev")
    part = read_manifest(project.manifest).split("dev")
    assert [row.reference for row in report.hypotheses] == [" ".join(words(u.text)) for u in part]
    assert (report.objective, report.seed, report.data["utterances"]) == ("hierarchical", 3, len(part))
    assert report.data["speakers"] == 1
    assert report.errors["wer"].by_speaker is None  # one block says nothing
    assert report.frames == {}  # no alignment given


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


@pytest.mark.parametrize("change", [{"decoder": "magic"}, {"level": 1.0}, {"num_draws": 1}, {"batch_seconds": 0.0}, {"seed": -1}])
def test_settings_are_checked(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"evaluate.{next(iter(change))} must"):
        EvaluateConfig(**change)  # type: ignore[arg-type]


def test_a_setting_is_found_in_any_table_the_outermost_first() -> None:
    assert find_setting({"loop": {"seed": 3}, "objective": "none"}, "seed") == 3
    assert find_setting({"a": {"seed": 3}, "seed": 4}, "seed") == 4
    assert find_setting({"a": {}}, "seed") is None
