"""A run: every objective trains, killed and started again it ends in the same bytes, and the export is what was
trained."""

import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hkd.config import merge, read_toml, to_table
from hkd.errors import UserError
from hkd.features.fbank import log_mel
from hkd.student.export import load_student
from hkd.train.data import TrainingData, show_data
from hkd.train.run import export_run, load_run
from kit.labelled import label_folder
from kit.runs import config_of, opened, rows, trained
from kit.workers import two_processes

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # as the processes that are killed


def test_killed_and_started_again_a_run_ends_in_the_same_bytes(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any], start: Start
) -> None:
    whole = trained(labelled, tmp_path / "a" / "run", tiny)
    process = start(labelled, tmp_path / "b" / "run", tiny)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= 6:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = trained(labelled, tmp_path / "b" / "run", tiny)
    assert again.metrics == whole.metrics
    for name in ("final.safetensors", "metrics.jsonl", "config.toml", "model/model.safetensors", "model/student.json"):
        assert (tmp_path / "a" / "run" / name).read_bytes() == (tmp_path / "b" / "run" / name).read_bytes(), name
    assert trained(labelled, tmp_path / "b" / "run", tiny).was_done
    with pytest.raises(UserError, match=r"its train\.lam is 0\.3 instead of 0\.5"):
        trained(labelled, tmp_path / "b" / "run", {**tiny, "lam": 0.5})
    assert config_of(read_toml(tmp_path / "b" / "run" / "config.toml")) == config_of(tiny)


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "none"},
        {"objective": "hard-heads", "label_smoothing": 0.5},
        {"objective": "interpolation"},
        {"objective": "interpolation", "main": "senone"},
        {"objective": "interpolation", "hard_heads": True},
        {"objective": "auxiliary", "levels": ["subword"], "kd": {"where": "ctc"}},
        {"objective": "hierarchical", "hard_heads": False, "kd": {"where": "segments", "tail": "gold-residual"}},
        {"objective": "hierarchical", "heads_warmup_steps": 2, "lam_end": 0.0, "lams": {"subword": 1.0}},
    ],
    ids=lambda settings: "-".join(str(v) for v in settings.values() if isinstance(v, str)),
)
def test_every_objective_trains_and_its_loss_falls(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any], settings: dict[str, Any]
) -> None:
    changes = {"loop": {"max_steps": 10, "log_every": 1, "eval_every": 0, "learning_rate": 3e-3}, "shares_every": 0}
    report = trained(labelled, tmp_path / "run", merge(merge(tiny, changes), settings))
    first, last = (
        [row["ctc" if settings.get("main") != "senone" else "senone"] for row in rows(tmp_path / "run") if "lr" in row][
            i
        ]
        for i in (0, -1)
    )
    assert last < first
    assert all(value == value for value in report.metrics.values())
    assert report.parameters == sum(p.numel() for p in load_student(tmp_path / "run" / "model")[0].parameters())


def test_the_bar_shows_the_rate_of_sound_and_the_figures_do_not_hang_on_it(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    shown: dict[str, float] = {}
    report = trained(labelled, tmp_path / "run", tiny, progress=lambda done, total, **facts: shown.update(facts))  # type: ignore[arg-type]
    assert shown["audio_s_per_s"] > 0
    assert shown.keys() - report.metrics.keys() == {"audio_s_per_s"}
    assert not any("audio_s_per_s" in row for row in rows(tmp_path / "run"))


def test_two_processes_give_what_one_gives(labelled: Path, tmp_path: Path, tiny: dict[str, Any], start: Start) -> None:
    settings = merge(tiny, {"loop": {"max_steps": 6, "log_every": 1, "eval_every": 3}})
    process = start(labelled, tmp_path / "two", settings, command=two_processes())
    trained(labelled, tmp_path / "one", settings)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    one, two = ([row for row in rows(tmp_path / name) if "gradient_share" not in row] for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=2e-4)
    weights = [safetensors.torch.load_file(tmp_path / name / "final.safetensors") for name in ("one", "two")]
    torch.testing.assert_close(weights[0], weights[1], rtol=2e-3, atol=1e-4)  # Adam divides gradients by their size


@pytest.mark.parametrize("accumulate", [3, 50])  # 50: more shares than utterances, so that some are empty
def test_accumulation_gives_what_one_share_gives_with_dropout(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any], accumulate: int
) -> None:
    settings = merge(tiny, {"encoder": {"dropout": 0.3}, "shares_every": 0, "loop": {"max_steps": 5, "log_every": 1}})
    trained(labelled, tmp_path / "one", settings)
    trained(labelled, tmp_path / "many", merge(settings, {"loop": {"accumulate": accumulate}}))
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        assert a == pytest.approx(b, rel=2e-4)


def test_the_export_gives_the_trainers_own_outputs(labelled: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    trained(labelled, tmp_path / "run", merge(tiny, {"loop": {"max_steps": 2}}))
    export_run(tmp_path / "run", tmp_path / "out")
    x_BTF = log_mel(torch.randn(16000).numpy() * 0.1)[None]
    length_B = torch.tensor([x_BTF.shape[1]])
    with torch.no_grad():
        expected = load_run(tmp_path / "run")(x_BTF, length_B).logits_BTV
        for folder in (tmp_path / "run" / "model", tmp_path / "out"):
            student, meta = load_student(folder)
            assert not list(student.heads)
            assert torch.equal(student(x_BTF, length_B).logits_BTV, expected)
    assert meta.extra["objective"] == "hierarchical"
    (tmp_path / "out" / "model.onnx").write_bytes(b"of another student")
    (tmp_path / "out" / "encoder").mkdir()
    export_run(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert not (tmp_path / "out" / "encoder").exists()
    with pytest.raises(UserError, match=r"has no final\.safetensors|has no student\.json"):
        load_run(tmp_path)


def test_a_conditioned_student_trains_and_exports_its_own_outputs(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any], start: Start
) -> None:
    """`none`, self-conditioned: hard heads at the named levels, kept at export; the upper layers at times read
    posteriors alone."""
    changes = {
        "objective": "none",
        "condition": ["senone", "monophone"],
        "condition_alone": 0.5,
        "taps": {"monophone": 1},
    }
    settings = merge(tiny, {**changes, "loop": {"max_steps": 4, "log_every": 1}})
    report = trained(labelled, tmp_path / "run", settings)
    assert set(report.metrics) >= {"ctc", "hard-senone", "hard-monophone"}
    x_BTF, length_B = log_mel(torch.randn(16000).numpy() * 0.1)[None], torch.tensor([100])
    exported, _ = load_student(tmp_path / "run" / "model")
    with torch.no_grad():
        assert torch.equal(exported(x_BTF, length_B).logits_BTV, load_run(tmp_path / "run")(x_BTF, length_B).logits_BTV)
    assert list(exported.heads) == ["hard-senone", "hard-monophone"]
    assert report.parameters == exported.num_parameters()
    trained(labelled, tmp_path / "parts", merge(settings, {"loop": {"accumulate": 3}}))
    # the first row: shares of gradient
    for a, b in zip(rows(tmp_path / "run")[1:], rows(tmp_path / "parts")[1:], strict=True):
        assert a == pytest.approx(b, rel=2e-4)


def test_killed_between_its_last_step_and_the_export_a_run_exports_what_was_trained(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    settings = merge(tiny, {"loop": {"max_steps": 2}})
    trained(labelled, tmp_path / "run", settings)
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    shutil.rmtree(tmp_path / "run" / "model")
    trained(labelled, tmp_path / "run", settings)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()} == wanted


def test_too_little_coverage_is_refused_with_the_missing_ids_and_enough_is_taken(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    project = tmp_path / "project"
    shutil.copytree(labelled, project)
    shutil.rmtree(project / "shards")
    ids = sorted(path.stem for path in (project / "audio").iterdir() if path.stem != "utt004")
    label_folder(project, levels=["subword"], ids=ids)
    settings = merge(tiny, {"loop": {"max_steps": 2}})
    with pytest.raises(
        UserError,
        match=r"'labels subword' has labels for 5 of 6 utterances, .* \(missing: utt004\).* --min-coverage 0\.8333",
    ):
        trained(project, tmp_path / "run", settings)
    assert not (tmp_path / "run" / "config.toml").exists()
    report = trained(project, tmp_path / "run", {**settings, "min_coverage": 0.8333})
    [head] = [head for head in report.coverage["heads"] if head["head"] == "labels subword"]
    assert (head["covered"], head["missing"]) == (5, ["utt004"])


def test_the_drawing_shows_taps_coverage_and_positions_without_a_slot(labelled: Path, tiny: dict[str, Any]) -> None:
    text = show_data(opened(labelled, tiny))
    assert "hard-senone: senone hard, 5,126 units × 4 slots of 10 ms" in text
    assert "labels monophone      100.0% of utterances" in text
    assert "of the time slots" in text
    assert re.search(r"[1-9]\d* \(\d+\.\d%\) are too short for a slot and left out", text)


def test_the_gradients_shares_are_measured_before_step_one(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    trained(labelled, tmp_path / "run", merge(tiny, {"loop": {"max_steps": 1}}))
    first = rows(tmp_path / "run")[0]
    assert first["step"] == 0
    assert set(first["gradient_share"]) == {
        "ctc",
        *(f"{kind}-{level}" for kind in ("hard", "kd") for level in ("senone", "monophone", "subword")),
    }
    assert sum(first["gradient_share"].values()) == pytest.approx(1)
    assert all(value > 0 for value in first["gradient_norm"].values())


def test_settings_go_to_toml_and_back(tiny: dict[str, Any]) -> None:
    config = config_of(merge(tiny, {"kds": {"bert": {"temperature": 3.0}}, "hard_heads": False}))
    assert config_of(to_table(config)) == config


def test_a_share_of_the_utterances_is_part_of_a_larger_one(labelled: Path, tiny: dict[str, Any]) -> None:
    def with_share(share: float) -> TrainingData:
        return opened(labelled, {**tiny, "train_share": share})

    whole, half, few = map(with_share, (1.0, 0.5, 0.3))
    names = [[u.id for u in data.train] for data in (whole, half, few)]
    assert [len(part) for part in names] == [len(names[0]), round(len(names[0]) / 2), round(0.3 * len(names[0]))]
    assert set(names[2]) < set(names[1]) < set(names[0])
    assert [name for name in names[0] if name in set(names[1])] == names[1]
    assert [u.id for u in half.dev] == [u.id for u in whole.dev]
    assert half.identity != whole.identity
    for share, message in ((0.0, "above 0"), (0.01, "leave an utterance"), (1.5, "between 0 and 1")):
        with pytest.raises(UserError, match=message):
            with_share(share)


def test_features_on_disk_give_the_same_run(labelled: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    settings = merge(tiny, {"loop": {"max_steps": 4, "save_every": 4, "eval_every": 4}})
    cached = {**settings, "features_cache": str(tmp_path / "features"), "workers": 1}
    trained(labelled, tmp_path / "plain" / "run", settings)
    trained(labelled, tmp_path / "cached" / "run", cached)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert times
    trained(labelled, tmp_path / "again" / "run", cached)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == times
    for name in ("final.safetensors", "metrics.jsonl", "model/student.json"):
        expected = (tmp_path / "plain" / "run" / name).read_bytes()
        assert all((tmp_path / other / "run" / name).read_bytes() == expected for other in ("cached", "again")), name
    # where features come from is no part of a run
    assert trained(labelled, tmp_path / "cached" / "run", settings).was_done
    with pytest.raises(UserError, match="features_cache"):
        config_of({**cached, "augment": {"noise_probability": 0.5}})
