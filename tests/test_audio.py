"""Reading sound: formats, rates, channels, offsets; and everything that can be wrong with a file, named and never a crash."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.audio import AudioInfo, check_audio, probe, read_audio, to_int16, write_wav
from hkd.errors import UserError
from hkd.manifest import Utterance
from hkd.timebase import seconds_to_samples


def tone(seconds: float, rate: int = 16_000, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def utterance(path: Path, **fields) -> Utterance:
    return Utterance(id="u", text="x", audio_filepath=str(path), **fields)


def pitch_hz(wave_S: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wave_S * np.hanning(len(wave_S)))).argmax() * 16_000 / len(wave_S))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(
    ("ending", "subtype"),
    [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("mp3", None), ("ogg", "VORBIS"), ("opus", "OPUS")],
)
def test_every_format_and_rate_becomes_16_khz(tmp_path: Path, rate: int, ending: str, subtype: str | None) -> None:
    if ending == "opus" and rate in (22_050, 44_100):
        pytest.skip("Opus has no such rate")
    path = tmp_path / f"x.{ending}"
    soundfile.write(path, tone(1.0, rate), rate, subtype=subtype, format="OGG" if ending == "opus" else None)
    assert probe(path).duration_s == pytest.approx(1.0, abs=0.1)  # MP3 pads
    wave_S = read_audio(utterance(path))
    assert wave_S.dtype == np.float32
    assert len(wave_S) == pytest.approx(16_000, abs=1600)
    assert pitch_hz(wave_S[2000:14_000]) == pytest.approx(440, abs=3)


def test_wav_comes_back_exactly_and_channels_are_averaged(tmp_path: Path) -> None:
    wave_S = np.random.default_rng(0).integers(-32768, 32768, 8000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave_S, 16_000)
    assert np.array_equal(to_int16(read_audio(utterance(tmp_path / "a.wav"))), wave_S)
    stereo_SC = np.stack([tone(0.5), np.zeros(8000, np.float32)], 1)
    soundfile.write(tmp_path / "b.wav", stereo_SC, 16_000, subtype="FLOAT")
    assert np.allclose(read_audio(utterance(tmp_path / "b.wav")), stereo_SC.mean(1), atol=1e-7)
    assert probe(tmp_path / "b.wav") == AudioInfo(sample_rate_hz=16_000, num_samples=8000, channels=2)


@pytest.mark.parametrize("ending", ["wav", "flac", "au", "ogg"])
def test_the_channel_that_is_asked_for_is_the_one_that_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    soundfile.write(path, np.stack([tone(1.0, hz=300), tone(1.0, hz=1500), tone(1.0, hz=2500)], 1), 16_000)
    for channel, hz in ((0, 300), (1, 1500), (2, 2500)):
        assert pitch_hz(read_audio(utterance(path, channel=channel))) == pytest.approx(hz, abs=3)
    with pytest.raises(UserError, match=r"must have a channel 3 \(the first is 0\), but has 3"):
        read_audio(utterance(path, channel=3))
    assert "must have a channel 3" in check_audio([utterance(path, channel=3)])[0].reason


@settings(max_examples=25, deadline=None)
@given(offset=st.floats(0, 0.9), duration=st.floats(0.01, 0.1))
def test_offset_and_duration_cut_by_the_one_rounding_rule(
    tmp_path_factory: pytest.TempPathFactory, offset: float, duration: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "ramp.wav"
    ramp_S = np.arange(16_000, dtype=np.int16)
    if not path.exists():
        soundfile.write(path, ramp_S, 16_000)
    start, length = seconds_to_samples(offset), seconds_to_samples(duration)
    cut_S = to_int16(read_audio(utterance(path, offset=offset, duration=duration)))
    assert np.array_equal(cut_S, ramp_S[start : start + length])


def test_neighbouring_cuts_meet_without_overlap_or_gap(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.arange(1000, dtype=np.int16), 8000)
    at = 0.0411
    first = read_audio(utterance(tmp_path / "x.wav", duration=at), sample_rate_hz=8000)
    rest = read_audio(utterance(tmp_path / "x.wav", offset=at), sample_rate_hz=8000)
    assert len(first) + len(rest) == 1000


def broken(folder: Path) -> dict[str, tuple[Utterance, str]]:
    good = tone(1.0)
    write_wav(folder / "good.wav", good)
    write_wav(folder / "silent.wav", np.zeros(16_000, np.float32))
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no sound at all\n" * 100)
    (folder / "folder.wav").mkdir()
    (folder / "cut.wav").write_bytes((folder / "good.wav").read_bytes()[:9000])
    soundfile.write(folder / "whole.flac", np.random.default_rng(0).normal(size=64_000) * 0.1, 16_000)
    (folder / "cut.flac").write_bytes((folder / "whole.flac").read_bytes()[:40_000])
    (folder / "header.wav").write_bytes((folder / "good.wav").read_bytes()[:44])
    make = {
        "gone.wav": ({}, "No such file"),
        "silent.wav": ({}, "silent"),
        "nan.wav": ({}, "finite"),
        "empty.wav": ({}, "empty"),
        "text.wav": ({}, "cannot be read"),
        "folder.wav": ({}, "folder.wav"),
        "cut.wav": ({"duration": 1.0}, "truncated"),
        "cut.flac": ({"duration": 4.0}, "cut.flac"),
        "header.wav": ({}, "header.wav"),
        "good.wav": ({"duration": 2.0}, "truncated"),
    }
    found = {name: (utterance(folder / name, **fields), reason) for name, (fields, reason) in make.items()}
    found["beyond"] = (utterance(folder / "good.wav", offset=5.0), "reach beyond 5 s")
    found["none"] = (Utterance(id="u", text="x"), "has no audio")
    found["zero"] = (utterance(folder / "good.wav", duration=0.0), "good.wav")
    return found


def test_all_that_can_be_wrong_is_named_with_its_line_and_nothing_crashes(tmp_path: Path) -> None:
    cases = list(broken(tmp_path).values())
    fine = utterance(tmp_path / "good.wav", duration=1.0)
    spans = [fine, *(case for case, _ in cases), fine]
    seen = []
    problems = check_audio(spans, progress=lambda done, total, **facts: seen.append((done, total)))
    assert [p.line for p in problems] == list(range(2, 2 + len(cases)))
    for problem, (_, reason) in zip(problems, cases, strict=True):
        assert reason in problem.reason
        assert str(problem).startswith(f"line {problem.line}: utterance 'u'")
    assert seen[-1] == (len(spans), len(spans))
    assert check_audio(spans, lines=range(10, 10 + len(spans)))[0].line == 11


def test_a_declared_duration_that_is_too_short_is_a_cut_and_no_problem(tmp_path: Path) -> None:
    write_wav(tmp_path / "x.wav", tone(1.0))
    assert check_audio([utterance(tmp_path / "x.wav", duration=0.5)]) == []
    assert check_audio([utterance(tmp_path / "x.wav", duration=1.02)]) == []  # within the tolerance


def test_reading_what_is_broken_raises_one_sentence(tmp_path: Path) -> None:
    for name, (span, _) in broken(tmp_path).items():
        if name not in ("silent.wav", "nan.wav"):
            with pytest.raises(UserError) as caught:
                read_audio(span)
            assert "\n" not in str(caught.value)


def test_int16_rounds_and_clips() -> None:
    assert to_int16(np.array([-2, -1, 0, 0.5, 1, 2], np.float32)).tolist() == [-32768, -32768, 0, 16384, 32767, 32767]
    assert math.isclose(to_int16(np.array([1.4 / 32768], np.float32))[0], 1)
