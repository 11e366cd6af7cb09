"""Reading sound: formats, rates, channels, offsets; and everything that can be wrong with a file, named and never a
crash."""

import io
import math
import os
import struct
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
    assert "must have a channel 3" in check_audio([utterance(path, channel=3)])[0]


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


KINDS = [
    (kind, subtype, channels)
    for kind in soundfile.available_formats()
    for subtype in soundfile.available_subtypes(kind)
    for channels in (1, 2)
    # no header; two files; libsndfile reads it in one go alone
    if kind not in ("RAW", "SD2") and not subtype.startswith("DWVW")
]


@pytest.mark.parametrize(("kind", "subtype", "channels"), KINDS)
def test_cuts_are_the_same_as_slices_of_the_whole_in_every_format(
    tmp_path: Path, kind: str, subtype: str, channels: int
) -> None:
    rate = 8000 if subtype in ("GSM610", "OPUS") else 16_000
    total = rate + 123
    noise_SC = np.random.default_rng(0).normal(size=(total, channels)) * 0.2
    wave_SC = np.clip(noise_SC * np.abs(np.sin(np.arange(total) / rate * 3))[:, None], -0.9, 0.9)
    path = tmp_path / "x.dat"
    try:
        soundfile.write(path, wave_SC, rate, format=kind, subtype=subtype)
        with soundfile.SoundFile(path) as file:
            blocks, rate = [file.read(4096, dtype="float32", always_2d=True) for _ in range(20)], file.samplerate
    except soundfile.LibsndfileError:
        with pytest.raises(UserError, match=r"must (be WAV|hold sound)"):
            probe(path)  # libsndfile cannot write this, or not read what it wrote
        return
    whole_S = np.concatenate(blocks).mean(1)
    assert probe(path) == AudioInfo(sample_rate_hz=rate, num_samples=len(whole_S), channels=channels)
    assert len(whole_S) == pytest.approx(total, abs=1100)  # block codecs fill their last block
    fields = {"sample_rate_hz": rate}
    np.testing.assert_allclose(read_audio(utterance(path), **fields), whole_S, atol=1e-6)
    for start in (0, 1, 4097, len(whole_S) - 900, len(whole_S) - 10):
        cut = utterance(path, offset=start / rate, duration=min(800, len(whole_S) - start) / rate)
        np.testing.assert_allclose(read_audio(cut, **fields), whole_S[start : start + 800], atol=1e-6)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_lossy_recordings_are_cut_exactly_at_the_end_too(tmp_path: Path, kind: str, subtype: str | None) -> None:
    """libsndfile's own seeking into the last page of Vorbis gives other sound than decoding up to there."""
    rate = 16_000
    wave_S = np.random.default_rng(1).normal(size=70 * rate) * 0.2
    wave_S[20 * rate : -2 * rate] *= 1e-4  # quiet makes long pages
    path = tmp_path / "x.dat"
    soundfile.write(path, wave_S, rate, format=kind, subtype=subtype)
    whole_S = read_audio(utterance(path))
    for start_s in (0.5, 9.0, 30.0, 65.0, 68.2, 69.5):
        cut_S = read_audio(utterance(path, offset=start_s, duration=0.4))
        start = int(start_s * rate)
        np.testing.assert_allclose(cut_S, whole_S[start : start + 6400], atol=1e-6)


def encoded(kind: str, subtype: str | None = None, *, num: int = 32_000, **more) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, 0.2 * np.random.default_rng(0).normal(size=num), 16_000, format=kind, subtype=subtype, **more)
    return data.getvalue()


def encoded_floats(peak: float) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(1.0) * 2 * peak, 16_000, format="WAV", subtype="FLOAT")
    return out.getvalue()


def put(data: bytes, at: int, layout: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, at, value)
    return bytes(changed)


def flac_samples(data: bytes, total: int) -> bytes:
    return data[:21] + bytes([data[21] & 0xF0 | total >> 32]) + struct.pack(">I", total & 0xFFFFFFFF) + data[26:]


WAV, AU, FLAC = encoded("WAV"), encoded("AU", "PCM_16"), encoded("FLAC")
AIFF, W64, RF64, SPHERE = (encoded(kind, "PCM_16") for kind in ("AIFF", "W64", "RF64", "NIST"))
AT = WAV.index(b"data") + 4
LISTED = WAV[:36] + b"LIST" + struct.pack("<I", 4) + b"INFO" + WAV[36:]
LIES = {  # whose true length is 2 s
    "wav unknown": put(WAV, AT, "<I", 0xFFFFFFFF),
    "wav unknown twice": put(put(WAV, AT, "<I", 0xFFFFFFFF), 4, "<I", 0xFFFFFFFF),
    "wav by sox to a pipe": put(WAV, AT, "<I", 0x7FFFF000),
    "wav by a killed recorder": put(put(WAV, AT, "<I", 0), 4, "<I", 0),
    "wav by a killed recorder, with a list": put(LISTED, LISTED.index(b"data") + 4, "<I", 0),
    "mu-law by a killed recorder": put(encoded("WAV", "ULAW"), encoded("WAV", "ULAW").index(b"data") + 4, "<I", 0),
    "au unknown": put(AU, 8, ">I", 0xFFFFFFFF),
    "aiff frames unknown": put(AIFF, AIFF.index(b"COMM") + 10, ">I", 0),
    "aiff size unknown": put(AIFF, AIFF.index(b"SSND") + 4, ">I", 0xFFFFFFFF),
    "w64 unknown": put(W64, W64.index(b"data") + 16, "<q", -1),
    "rf64 unknown": put(RF64, RF64.index(b"ds64") + 24, "<q", -1),
    "sphere without count": SPHERE.replace(b"sample_count -i 32000", b"sample_count -i 0    "),
    "flac unknown": flac_samples(FLAC, 0),
    "flac absurd": flac_samples(FLAC, (1 << 36) - 1),
    "flac a little more": flac_samples(FLAC, 32_010),
}
REFUSED = {
    "flac of one sample": (flac_samples(FLAC, 1), "must be one stream"),
    "flac cut off": (FLAC[: len(FLAC) // 2], "flac decoder lost sync"),
    "flac cut off, unknown": (flac_samples(FLAC, 0)[: len(FLAC) // 2], "flac decoder lost sync"),
    "ogg cut off": (encoded("OGG")[:6000], "has no samples"),
    "opus cut off": (encoded("OGG", "OPUS")[:200], "malformed"),
    "two mp3s": (encoded("MP3") * 2, "must be one stream"),
    "au of none": (put(AU, 8, ">I", 0), "has no samples"),
    "header alone": (WAV[:44], "has no samples"),
    "caf unknown": (put(encoded("CAF"), encoded("CAF").index(b"data") + 4, ">q", -1), "malformed"),
    "shorten": (SPHERE.replace(b"-s3 pcm", b"-s26 pcm,embedded-shorten-v2.00"), "sph2pipe -f wav"),
    "integers as floats": (encoded_floats(9000.0), "must hold samples between -1 and 1, but one is 9000"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
    "a page": (b"<!DOCTYPE html>", "is a web page"),
    "NaN": (encoded("WAV", "FLOAT")[:-4] + struct.pack("<f", math.nan), "must hold finite samples"),
    "infinite": (encoded("AU", "DOUBLE")[:-8] + struct.pack(">d", math.inf), "must hold finite samples"),
}


def granules_gone(data: bytes) -> bytes:
    """An Ogg stream whose last page does not say where it ends."""
    at = data.rfind(b"OggS")
    page = bytearray(data[at:])
    page[6:14], page[22:26] = b"\xff" * 8, bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ 0x04C11DB7 if checksum & 0x80000000 else checksum << 1) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", checksum)
    return data[:at] + bytes(page)


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_not_believed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(LIES[name])
    honest = {"flac": FLAC, "mu": encoded("WAV", "ULAW")}.get(name.partition(" ")[0].partition("-")[0], WAV)
    (tmp_path / "honest").write_bytes(honest)
    assert probe(path) == AudioInfo(
        sample_rate_hz=16_000, num_samples=32_000, channels=1, missing_s=probe(path).missing_s
    )
    assert probe(path).missing_s < 0.01 or name == "flac absurd"
    whole_S = read_audio(utterance(tmp_path / "honest"))
    np.testing.assert_allclose(read_audio(utterance(path)), whole_S, atol=1e-4)
    np.testing.assert_allclose(read_audio(utterance(path, offset=1.5, duration=0.5)), whole_S[24_000:], atol=1e-4)
    with pytest.raises(UserError, match="truncated"):
        read_audio(utterance(path, offset=1.5, duration=0.7))


def test_a_variable_mp3_without_its_tag_is_counted_by_decoding(tmp_path: Path) -> None:
    loud_then_quiet = np.random.default_rng(0).normal(size=160_000) * np.repeat([0.2, 1e-3], 80_000)
    path = tmp_path / "x.mp3"
    soundfile.write(path, loud_then_quiet, 16_000, bitrate_mode="VARIABLE", compression_level=0.2)
    data = path.read_bytes()
    second = data.find(data[:2], 4)
    path.write_bytes(data[second:])  # the first frame holds the tag
    assert soundfile.info(path).frames < 100_000  # guessed from the first frame's bit rate
    info = probe(path)
    assert info.num_samples == pytest.approx(160_000, abs=3 * 1152)
    whole_S = read_audio(utterance(path))
    assert len(whole_S) == info.num_samples
    np.testing.assert_allclose(
        read_audio(utterance(path, offset=9.0, duration=0.5)), whole_S[144_000:152_000], atol=1e-6
    )
    path.write_bytes(data + b"APETAGEX" + bytes(5000))
    assert probe(path).num_samples == 160_000


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_right_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    data, reason = REFUSED[name]
    path = tmp_path / "x.dat"
    path.write_bytes(data)
    for read in (probe, lambda path: read_audio(utterance(path))):
        with pytest.raises(UserError) as caught:
            read(path)
        assert reason in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert check_audio([utterance(path)])


def test_ogg_that_does_not_say_where_it_ends_and_pipes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.opus"
    path.write_bytes(granules_gone(encoded("OGG", "OPUS")))
    with pytest.raises(UserError, match="must be one stream"):
        probe(path)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(UserError, match=r"regular file, but is a pipe"):
        probe(tmp_path / "pipe.wav")
    (tmp_path / "x.raw").write_bytes(WAV[44:])
    with pytest.raises(UserError, match="cannot be read"):
        probe(tmp_path / "x.raw")


@pytest.mark.parametrize(("data", "rate"), [(WAV, 2), (AU, 2), (AIFF, 2), (W64, 2), (encoded("WAV", "ALAW"), 1)])
def test_a_file_that_is_cut_off_says_what_is_missing(tmp_path: Path, data: bytes, rate: int) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(data[: len(data) - 16_000 * rate])
    info = probe(path)
    assert info.num_samples == pytest.approx(16_000, abs=100)
    assert info.missing_s == pytest.approx(1.0, abs=0.02)
    assert len(read_audio(utterance(path))) == info.num_samples


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
    assert list(problems) == list(range(1, 1 + len(cases)))
    for problem, (_, reason) in zip(problems.values(), cases, strict=True):
        assert reason in problem
    assert seen[-1] == (len(spans), len(spans))


def test_a_declared_duration_that_is_too_short_is_a_cut_and_no_problem(tmp_path: Path) -> None:
    write_wav(tmp_path / "x.wav", tone(1.0))
    assert check_audio([utterance(tmp_path / "x.wav", duration=0.5)]) == {}
    assert check_audio([utterance(tmp_path / "x.wav", duration=1.02)]) == {}  # within the tolerance


def test_reading_what_is_broken_raises_one_sentence(tmp_path: Path) -> None:
    for name, (span, _) in broken(tmp_path).items():
        if name != "silent.wav":
            with pytest.raises(UserError) as caught:
                read_audio(span)
            assert "\n" not in str(caught.value)


def test_int16_rounds_and_clips() -> None:
    assert to_int16(np.array([-2, -1, 0, 0.5, 1, 2], np.float32)).tolist() == [-32768, -32768, 0, 16384, 32767, 32767]
    assert math.isclose(to_int16(np.array([1.4 / 32768], np.float32))[0], 1)
