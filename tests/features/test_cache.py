"""Features on disk: what is computed is what is read, by anyone, whatever happened to the files; and a change makes new
ones."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hkd import manifest as manifests
from hkd.errors import HkdError, UserError
from hkd.features.cache import FeatureCache, FeatureSource
from hkd.features.fbank import FrontEnd
from hkd.manifest import Utterance

SPEEDS = (0.9, 1.0)
WAVE = FrontEnd(kind="wave", num_bins=160)


@pytest.fixture
def utterances(tiny_manifest: Path, monkeypatch: pytest.MonkeyPatch) -> list[Utterance]:
    monkeypatch.setattr("hkd.features.cache.SHARD_UTTERANCES", 2)
    return list(manifests.read(tiny_manifest))[:5]


def opened(folder: Path, utterances: list[Utterance], front_end: FrontEnd = WAVE) -> FeatureCache:
    return FeatureCache(folder, front_end=front_end, wanted=[[(u, SPEEDS) for u in utterances]])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_read_is_what_is_computed(utterances: list[Utterance], tmp_path: Path, workers: int) -> None:
    source = FeatureSource(front_end=WAVE)
    cache = opened(tmp_path, utterances)
    said: list[tuple[float, float]] = []
    assert cache.fill(source.compute, workers=workers, progress=lambda done, all, **_: said.append((done, all))) == 3
    assert said == [(1, 3), (2, 3), (3, 3)]
    assert cache.fill(source.compute) == 0
    reading = FeatureSource(front_end=WAVE, cache=cache)
    for utterance in utterances:
        for speed in (*SPEEDS, 1.1):  # the last one is not there, and made
            np.testing.assert_array_equal(reading(utterance, speed), source.compute(utterance, speed))
    assert cache.get(utterances[0].id, 1.1) is None


def test_another_channel_has_files_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    soundfile.write(path, np.stack([np.full(1600, 0.1), np.full(1600, 0.3)], 1), 16_000, subtype="FLOAT")
    source = FeatureSource(front_end=WAVE)
    for channel, level in ((None, 0.2), (0, 0.1), (1, 0.3)):
        utterance = Utterance(id="u", text="x", audio_filepath=str(path), channel=channel)
        cache = FeatureCache(tmp_path / "cache", front_end=WAVE, wanted=[[(utterance, (1.0,))]])
        assert cache.fill(source.compute) == 1
        np.testing.assert_allclose(cache.get("u", 1.0), level, atol=1e-6)


def test_whoever_makes_them_in_whatever_order_the_bytes_are_the_same(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    source = FeatureSource(front_end=WAVE)
    for name in ("a", "b"):
        opened(tmp_path / name, utterances).fill(source.compute)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_a_cut_or_lost_file_is_made_anew_and_others_are_left(utterances: list[Utterance], tmp_path: Path) -> None:
    source = FeatureSource(front_end=WAVE)
    cache = opened(tmp_path, utterances)
    cache.fill(source.compute)
    cut, lost, _ = sorted(tmp_path.iterdir())
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    lost.unlink()
    reading = opened(tmp_path, utterances)
    with pytest.raises(HkdError, match="again"):
        [reading.get(utterance.id, 1.0) for utterance in utterances]
    assert opened(tmp_path, utterances).fill(source.compute) == 2
    assert cut.read_bytes() == whole


def test_other_sound_other_spans_and_other_features_are_other_files(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    source = FeatureSource(front_end=WAVE)
    audio = tmp_path / "sound.wav"
    audio.write_bytes(Path(str(utterances[0].audio_filepath)).read_bytes())
    [one] = [Utterance(id="a", text="", audio_filepath=str(audio))]
    folder = tmp_path / "cache"
    assert opened(folder, [one]).fill(source.compute) == 1
    os.utime(audio, ns=(1, 1))
    assert opened(folder, [one]).fill(source.compute) == 1
    assert opened(folder, [Utterance(id="a", text="", audio_filepath=str(audio), offset=0.1)]).fill(source.compute) == 1
    assert opened(folder, [one], FrontEnd()).fill(FeatureSource().compute) == 1
    assert opened(folder, [one]).fill(source.compute) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_sound_that_cannot_be_read_is_one_sentence(tmp_path: Path, workers: int) -> None:
    audio = tmp_path / "broken.wav"
    audio.write_bytes(b"no sound")
    cache = opened(tmp_path / "cache", [Utterance(id="a", text="", audio_filepath=str(audio))])
    with pytest.raises(UserError, match=r"broken\.wav") as raised:
        cache.fill(FeatureSource(front_end=WAVE).compute, workers=workers)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"nowhere\.wav"):
        opened(tmp_path / "cache", [Utterance(id="a", text="", audio_filepath="nowhere.wav")])
