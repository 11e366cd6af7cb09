"""What a run does before its first step, and what it does not do twice."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hkd import manifest as manifests
from hkd.config import merge
from hkd.errors import UserError
from hkd.manifest import Utterance
from hkd.train import run
from hkd.train.config import TrainConfig
from hkd.train.data import open_data
from kit.runs import config_of, inputs, opened, trained

from .conftest import TINY


def test_mean_and_deviation_are_of_all_speakers_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = [Utterance(id=f"{speaker}{n}", text="a", speaker=speaker) for speaker in "abc" for n in range(3)]
    frames = {utterance.id: 100 for utterance in spoken}
    assert run.sample_of_speakers(spoken, frames) == spoken
    monkeypatch.setattr(run, "CMVN_SECONDS", 5.0)
    assert [utterance.id for utterance in run.sample_of_speakers(spoken, frames)] == ["a0", "b0", "c0", "a1", "b1"]
    nobody = [Utterance(id=str(n), text="a") for n in range(9)]
    assert run.sample_of_speakers(nobody, {utterance.id: 100 for utterance in nobody}) == nobody[:5]


def test_what_a_run_began_with_is_checked_once_and_what_changed_is_checked_again(
    labelled: Path, tmp_path: Path
) -> None:
    project = shutil.copytree(labelled, tmp_path / "project")
    config = config_of(merge(TINY, {"objective": "hierarchical", "loop": {"max_steps": 2}}))
    given, folder = inputs(project), tmp_path / "run"
    assert open_data(config, run=folder, **given).needed  # there is no run yet
    run.train(config, folder, device="cpu", **given)
    assert open_data(config, run=folder, **given).needed is None

    utterances = list(manifests.read(project / "manifest.jsonl"))
    edited = [replace(u, text=f"{u.text} today") if u.split == "train" else u for u in utterances]
    manifests.write(project / "edited.jsonl", edited)
    with pytest.raises(UserError, match="the transcript must be the one that was aligned"):
        open_data(config, run=folder, **{**given, "manifest": project / "edited.jsonl"})
    untimed = [replace(u, duration=None) for u in utterances]  # how long the sound is, its file alone tells
    manifests.write(project / "untimed.jsonl", untimed)
    assert open_data(config, run=folder, **{**given, "manifest": project / "untimed.jsonl"}).needed


def test_another_channel_of_the_same_files_is_other_data(labelled: Path, tmp_path: Path) -> None:
    project = shutil.copytree(labelled, tmp_path / "project")
    settings = merge(TINY, {"objective": "none"})
    mixed = opened(project, settings).identity
    found = []
    for channel in (0, 1):
        utterances = [replace(u, channel=channel) for u in manifests.read(labelled / "manifest.jsonl")]
        manifests.write(project / "manifest.jsonl", utterances)
        found.append(opened(project, settings).identity["data"]["spans"])
    assert len({mixed["data"]["spans"], *found}) == 3


def test_sound_that_is_newer_than_the_run_is_named(
    labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = shutil.copytree(labelled, tmp_path / "project")
    config, given = config_of(merge(TINY, {"objective": "none", "loop": {"max_steps": 1}})), inputs(project)
    for _ in range(2):
        run.train(config, tmp_path / "run", device="cpu", **given)
    assert "newer" not in caplog.text
    first = manifests.read(given["manifest"]).split("train")[0]
    Path(str(first.audio_filepath)).touch()
    run.train(config, tmp_path / "run", device="cpu", **given)
    [said] = [record.message for record in caplog.records if "newer" in record.message]
    assert said.startswith(f"1 sound files are newer than {tmp_path / 'run' / 'identity.json'} ({first.audio_filepath}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loop": {"best_by": "dev_wre"}}, "`best_by` must be a figure of the evaluation .*dev_wer.*'dev_wre'"),
        ({"dev_split": "nosuch", "loop": {"best_by": "dev_wer"}}, "there is none.*'dev_wer' instead"),
        ({"objective": "hard-heads", "levels": ["phones"]}, "`levels` must be one of senone, .*'phones' instead"),
        ({"stores": ["phones"]}, r"`stores` must name label stores \(monophone, senone, subword\), but 'phones'"),
    ],
)
def test_names_that_are_none_are_refused_before_the_run_begins(
    labelled: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trained(labelled, tmp_path / "run", merge(TINY, settings))
    assert not (tmp_path / "run").exists()


def test_steps_and_batches_follow_the_amount_of_speech(labelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    default = TrainConfig()
    assert [default.fitted(hours * 3600).batch_seconds for hours in (0.1, 0.5, 1, 960)] == [15, 45, 90, 120]
    assert default.max_steps(10) == 800
    assert default.max_steps(28_800) == 345_600  # LibriSpeech-960: 12 epochs
    assert replace(default, epochs=3).max_steps(10) == 30
    assert config_of({"loop": {"max_steps": 7}, "batch_seconds": 33.0}).fitted(1e6).batch_seconds == 33
    assert config_of({"loop": {"max_steps": 7}}).max_steps(10) == 7
    both = config_of({"epochs": 2, "loop": {"max_steps": 7}})
    assert run.contradictions(both, 20) == ["`epochs` is 2 and wins over `loop.max_steps`, 7. Take one of them out."]
    data = opened(labelled, {})
    assert data.config.batch_seconds == 15
    assert data.identity["train"]["batch_seconds"] == 15
