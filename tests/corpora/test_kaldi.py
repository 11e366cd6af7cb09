"""Kaldi data folders."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from hkd.audio import read_audio, write_wav
from hkd.corpora import read_corpus
from hkd.corpora.collect import Options, Report
from hkd.corpora.importers import guess_kind
from hkd.errors import UserError
from hkd.manifest import Manifest


def read_kaldi(path: Path, options: Options | None = None) -> Manifest:
    return read_corpus(str(path), kind="kaldi", options=options)


def data(folder: Path, **files: str) -> Path:
    write_wav(folder / "audio" / "r1.wav", np.linspace(-0.5, 0.5, 16_000).astype(np.float32))
    write_wav(folder / "audio" / "r2.wav", np.full(8000, 0.1, np.float32))
    base = {"wav.scp": "r1 audio/r1.wav\nr2\taudio/r2.wav\n", "text": "r2 B C\nr1 A  \n", "utt2spk": "r1 s1\nr2 s2\n"}
    for name, content in (base | {key.replace("_", "."): value for key, value in files.items()}).items():
        (folder / name).write_text(content)
    return folder


def test_paths_texts_speakers(tmp_path: Path) -> None:
    assert guess_kind(data(tmp_path)) == "kaldi"
    assert [(u.id, u.text, u.speaker, u.duration) for u in read_kaldi(tmp_path)] == [
        ("r1", "A", "s1", 1.0),
        ("r2", "B C", "s2", 0.5),
    ]


def test_speakers_by_spk2utt_and_of_nobody(tmp_path: Path) -> None:
    options = Options()
    data(tmp_path, utt2spk="r1 s1\nr2 s2\nr9 s9\n")
    read_kaldi(tmp_path, options)
    assert options.report.left_out == {"speakers (utt2spk, spk2utt) of no utterance": ["r9"]}
    (tmp_path / "utt2spk").unlink()
    (tmp_path / "spk2utt").write_text("s1 r1\ns2 r2\n")
    assert [u.speaker for u in read_kaldi(tmp_path)] == ["s1", "s2"]
    (tmp_path / "spk2utt").write_text("s1 r1\n")
    with pytest.raises(UserError, match="every utterance must have a speaker, but 'r2' has none"):
        read_kaldi(tmp_path)


def test_segments_that_go_on_after_their_recording_end_with_it(tmp_path: Path) -> None:
    segments = "u1 r1 0.0 0.5\nu2 r1 0.4 1.3\nu3 r1 0.4 1.04\n"
    options = Options()
    found = read_kaldi(data(tmp_path, segments=segments, text="u1 A\nu2 B\nu3 C\n", utt2spk=""), options)
    assert [u.duration for u in found] == [0.5, pytest.approx(0.6), pytest.approx(0.64)]
    kind = "segments that end up to 0.5 s after their recording are read to its end"
    assert options.report.notes[kind] == ["u2"]


def test_segments(tmp_path: Path) -> None:
    data(tmp_path, segments="u1 r1 0.1 0.6\nu2 r1 0.6 1.0\n", text="u1 A\nu2 B\n", utt2spk="")
    found = read_kaldi(tmp_path)
    assert [(u.id, u.offset, round(u.duration or 0, 6)) for u in found] == [("u1", 0.1, 0.5), ("u2", 0.6, 0.4)]
    assert [len(read_audio(u)) for u in found] == [8000, 6400]


def call(folder: Path, **tables: str) -> Path:
    """A call on two channels: 300 Hz on A, 1500 Hz on B; each speaker has two segments."""
    t = np.arange(16_000 * 4) / 16_000
    (folder / "data").mkdir(parents=True)
    soundfile.write(folder / "call.flac", np.stack([0.3 * np.sin(2 * np.pi * hz * t) for hz in (300, 1500)], 1), 16_000)
    base = {"text": "A-0 one\nA-1 two\nB-0 three\nB-1 four\n"}
    for name, content in (base | tables).items():
        (folder / "data" / name.replace("_scp", ".scp")).write_text(content)
    return folder / "data"


def pitch_hz(wave_S: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wave_S)).argmax() * 16_000 / len(wave_S))


TIMES = (("A-0", "0.0 1.5"), ("A-1", "1.5 3.0"), ("B-0", "0.2 1.6"), ("B-1", "2.0 -1"))


@pytest.mark.parametrize(
    ("segment", "side"),
    [
        (lambda name, time: f"{name} call {time} {int(name[0] == 'B')}", {}),
        (lambda name, time: f"{name} call {time} {name[0]}", {}),
        (lambda name, time: f"{name} call-{name[0]} {time}", {"A": "A", "B": "B"}),
        (lambda name, time: f"{name} call-{name[0]} {time}", {"A": "1", "B": "2"}),
        # segments are nearer
        (lambda name, time: f"{name} call-{name[0]} {time} {int(name[0] == 'B')}", {"A": "B", "B": "A"}),
    ],
)
def test_the_channel_that_is_asked_for_is_read(tmp_path: Path, segment, side: dict[str, str]) -> None:
    tables = {
        "wav_scp": "".join(f"call-{s} call.flac\n" for s in side) or "call call.flac\n",
        "segments": "".join(segment(name, time) + "\n" for name, time in TIMES),
    }
    if side:
        tables["reco2file_and_channel"] = "".join(f"call-{s} call {c}\n" for s, c in side.items())
    options = Options()
    whole = read_kaldi(call(tmp_path, **tables), options)
    assert [u.id for u in whole] == ["A-0", "A-1", "B-0", "B-1"]
    for u in whole:
        assert pitch_hz(read_audio(u)) == pytest.approx(300 if u.id[0] == "A" else 1500, abs=1)
    assert options.report.notes == {}
    assert sorted(path.name for path in tmp_path.rglob("*.flac")) == ["call.flac"], "nothing is cut out"


def test_sides_that_have_files_of_their_own(tmp_path: Path) -> None:
    data(tmp_path, text="r1 A\nr2 B\n")
    (tmp_path / "reco2file_and_channel").write_text("r1 call A\nr2 call B\n")
    assert [u.channel for u in read_kaldi(tmp_path)] == [None, None]


@pytest.mark.parametrize(
    ("fifth", "says"),
    [
        ("2", "must have channel 2, but has 2 channels"),
        ("-1", r"segments:1: channel must be A, B"),
        ("both", "segments:1: channel must be"),
    ],
)
def test_channels_that_are_not_there(tmp_path: Path, fifth: str, says: str) -> None:
    folder = call(tmp_path, wav_scp="call call.flac\n", segments=f"A-0 call 0 1 {fifth}\n", text="A-0 x\n")
    with pytest.raises(UserError, match=says):
        read_kaldi(folder)


def test_where_nobody_says_the_mean_is_read_and_said(tmp_path: Path) -> None:
    options = Options()
    (only,) = read_kaldi(call(tmp_path, wav_scp="call call.flac\n", text="call x\n"), options)
    assert only.channel is None
    assert [names for kind, names in options.report.notes.items() if "their mean is read" in kind] == [["call.flac"]]


def test_what_has_no_text_is_counted(tmp_path: Path) -> None:
    options = Options()
    read_kaldi(data(tmp_path / "a", text="r1 A\n"), options)
    assert options.report.left_out == {"recordings (wav.scp) without a line in text": ["r2"]}
    options = Options()
    read_kaldi(data(tmp_path / "b", segments="u1 r1 0 0.5\nu2 r1 0.5 1\n", text="u2 A\n", utt2spk=""), options)
    assert options.report.left_out == {
        "segments without a line in text": ["u1"],
        "recordings (wav.scp) without segments": ["r2"],
    }
    options = Options(report=Report(skip_bad=True))
    folder = data(tmp_path / "c", text="r1 A\nr2 B\nr9 C\n", wav_scp="r1 audio/r1.wav\nr2 sox x |\n")
    assert [u.id for u in read_kaldi(folder, options)] == ["r1"]
    assert [len(names) for names in options.report.left_out.values()] == [1, 2]
    (folder / "segments").write_text("r1 r1 0 1\nr2 r2 0 1\n")
    assert [u.id for u in read_kaldi(folder, Options(report=Report(skip_bad=True)))] == ["r1"]
