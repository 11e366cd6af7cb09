"""What a run does before its first step, and what it does not do twice."""

import pytest

from hkd.manifest import Utterance
from hkd.train import run


def test_mean_and_deviation_are_of_all_speakers_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = [Utterance(id=f"{speaker}{n}", text="a", speaker=speaker) for speaker in "abc" for n in range(3)]
    frames = {utterance.id: 100 for utterance in spoken}
    assert run.sample_of_speakers(spoken, frames) == spoken
    monkeypatch.setattr(run, "CMVN_SECONDS", 5.0)
    assert [utterance.id for utterance in run.sample_of_speakers(spoken, frames)] == ["a0", "b0", "c0", "a1", "b1"]
    nobody = [Utterance(id=str(n), text="a") for n in range(9)]
    assert run.sample_of_speakers(nobody, {utterance.id: 100 for utterance in nobody}) == nobody[:5]
