"""lhotse's manifests, written by lhotse itself."""

import gc
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hkd.audio import read_audio
from hkd.corpora import read_corpus
from hkd.corpora.collect import Options
from hkd.errors import UserError
from hkd.manifest import Manifest
from kit.files import sound, tar_of, write_files

lhotse = pytest.importorskip("lhotse")


def read_lhotse(path: Path, options: Options | None = None) -> Manifest:
    return read_corpus(str(path), kind="lhotse", options=options)


@pytest.fixture
def sets(tmp_path: Path):
    """(recordings, supervisions): two recordings of one second, the first with two supervisions; the second has two
    channels."""
    audio = write_files(tmp_path / "audio", {"r1.wav": sound(1.0), "r2.wav": sound(1.0, channels=2)})
    recordings = lhotse.RecordingSet.from_recordings(lhotse.Recording.from_file(audio / f"r{n}.wav") for n in (1, 2))
    rows = [("u1", "r1", 0.0, 0.4, 0), ("u2", "r1", 0.5, 0.5, 0), ("u3", "r2", 0.25, 0.5, 1)]
    supervisions = lhotse.SupervisionSet.from_segments(
        lhotse.SupervisionSegment(
            id=i,
            recording_id=r,
            start=s,
            duration=d,
            channel=c,
            text=f"TEXT {i}",
            speaker="s",
            language="English",
            custom={"snr": 3.5},
        )
        for i, r, s, d, c in rows
    )
    return recordings, supervisions


def facts(whole) -> list[tuple[object, ...]]:
    return [(u.id, u.text, u.offset, u.duration, u.speaker) for u in sorted(whole, key=lambda u: u.id)]


WANTED = [("u1", "TEXT u1", 0.0, 0.4, "s"), ("u2", "TEXT u2", 0.5, 0.5, "s"), ("u3", "TEXT u3", 0.25, 0.5, "s")]


def test_recordings_with_supervisions(sets, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for set_, name in zip(sets, ("recordings", "supervisions"), strict=True):
        set_.to_file(tmp_path / "m" / f"c_{name}_train.jsonl.gz")
    whole = read_corpus(str(tmp_path / "m"), options=Options(audio_to=tmp_path / "out"))
    assert facts(whole) == WANTED
    assert {u.split for u in whole} == {"train"}
    assert dict(whole.by_id("u1").extra) == {"snr": 3.5, "recording": "r1", "language": "English", "split": "train"}
    assert (
        facts(read_lhotse(tmp_path / "m" / "c_supervisions_train.jsonl.gz", options=Options(audio_to=tmp_path / "out")))
        == WANTED
    )
    second = read_audio(whole.by_id("u3"))
    assert abs(second).max() == pytest.approx(0.2, rel=0.02), "channel 1 is twice as loud as channel 0"
    (tmp_path / "m" / "c_recordings_train.jsonl.gz").unlink()
    with pytest.raises(UserError, match="recordings must lie beside it"):
        read_lhotse(tmp_path / "m" / "c_supervisions_train.jsonl.gz", options=Options(audio_to=tmp_path))


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_cuts(sets, tmp_path: Path, ending: str) -> None:
    cuts = lhotse.CutSet.from_manifests(*sets)
    for name, found in (("cuts_dev", cuts), ("cuts_dev-trimmed", cuts.trim_to_supervisions(keep_overlapping=False))):
        found.to_file(tmp_path / f"{name}{ending}")
        whole = read_corpus(str(tmp_path / f"{name}{ending}"), options=Options(audio_to=tmp_path / "out"))
        assert facts(whole) == WANTED
        assert {u.split for u in whole} == {"dev"}


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # lhotse's reader leaves files open
def test_shar(sets, tmp_path: Path) -> None:
    cuts = (
        lhotse.CutSet.from_manifests(*sets)
        .filter(lambda cut: cut.recording_id == "r1")
        .trim_to_supervisions(keep_overlapping=False)
    )
    (tmp_path / "shar").mkdir()
    cuts.to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=1)
    whole = read_corpus(str(tmp_path / "shar"), options=Options(audio_to=tmp_path / "out"))
    assert [(u.id, u.text) for u in whole] == [("u1", "TEXT u1"), ("u2", "TEXT u2")]
    assert [len(read_audio(u)) for u in whole] == [6400, 8000]
    assert all(Path(u.audio_filepath or "").parent == tmp_path / "out" for u in whole)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    read_corpus(str(tmp_path / "shar"), options=Options(audio_to=tmp_path / "out"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    next((tmp_path / "shar").glob("recording.*.tar")).write_bytes(tar_of({"x": b"y"}, packed=""))
    with pytest.raises(UserError, match="lhotse cannot read it"):
        read_corpus(str(tmp_path / "shar"), options=Options(audio_to=tmp_path / "out"))
    gc.collect()  # so that the files are closed while their warnings are ignored


def test_what_hkd_does_not_do_to_sound_is_refused(sets, tmp_path: Path) -> None:
    recordings, supervisions = sets
    cuts = lhotse.CutSet.from_manifests(recordings, supervisions)
    first = cuts[0]
    command = json.loads(json.dumps(recordings["r1"].to_dict()))
    command["sources"][0] |= {"type": "command", "source": "rm -rf /"}
    broken = {
        "fast": (first.perturb_speed(1.1), "is to be transformed"),
        "padded": (first.pad(duration=2.0), "must have one recording, but is a MixedCut"),
        "window": (first.truncate(duration=0.2), "must lie within its cut"),
        "piped": (command, r"must be a file, but is a command \('rm -rf /'\)"),
    }
    for name, (item, says) in broken.items():
        row = item if isinstance(item, dict) else item.to_dict()
        lines = [row] if name != "piped" else [row, supervisions[0].to_dict()]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        target = tmp_path / f"{name}.jsonl"
        if name == "piped":
            target = tmp_path / "piped"
            target.mkdir()
            (tmp_path / "piped.jsonl").rename(target / "all.jsonl")
        with pytest.raises(UserError, match=says):
            read_lhotse(target, options=Options(audio_to=tmp_path / "out"))


def test_broken_lines_are_named(tmp_path: Path) -> None:
    for number, (line, says) in enumerate(
        [
            ("{", "no JSON"),
            ("[]", "is a list"),
            ('{"type": "MonoCut"}', "must be an item of lhotse's"),
            ('{"id": "x", "type": "Kut"}', "must be an item"),
        ]
    ):
        path = tmp_path / f"{number}.jsonl.gz"
        path.write_bytes(gzip.compress(f"\n{line}\n".encode()))
        with pytest.raises(UserError, match=rf"{number}\.jsonl\.gz:2: .*{says}"):
            read_lhotse(path, options=Options(audio_to=tmp_path))


def test_a_recipe_of_lhotses(tmp_path: Path) -> None:
    names = ["_".join(f"{n:08b}") for n in range(60)]
    root = write_files(tmp_path / "waves", {f"{name}.wav": sound(0.1) for name in names})
    whole = read_corpus("yesno", kind="lhotse", options=Options(root=root, audio_to=tmp_path / "out"))
    assert {name: len(whole.split(name)) for name in ("train", "test")} == {"train": 30, "test": 30}
    assert whole.by_id(names[1]).text.endswith("NO YES")
    with pytest.raises(UserError, match=r"lhotse's recipe yesno cannot read .*AssertionError"):
        read_corpus("yesno", kind="lhotse", options=Options(root=tmp_path))
    with pytest.raises(UserError, match=r"is neither\. Near: .*yesno"):
        read_corpus("yesnoo", kind="lhotse", options=Options(root=tmp_path))


@pytest.fixture
def call(tmp_path: Path):
    """A call on two channels: 300 Hz on the first, 1500 Hz on the second."""
    t = np.arange(8000 * 4) / 8000
    soundfile.write(tmp_path / "call.wav", np.stack([0.3 * np.sin(2 * np.pi * hz * t) for hz in (300, 1500)], 1), 8000)
    return lhotse.Recording.from_file(tmp_path / "call.wav")


def pitch_hz(u) -> float:
    wave_S = read_audio(u)
    return float(np.abs(np.fft.rfft(wave_S)).argmax() * 16_000 / len(wave_S))


def segment(name: str, recording: str, channel: int | list[int], start: float = 0.5):
    return lhotse.SupervisionSegment(name, recording, start, 1.0, channel=channel, text=name)


def test_the_channel_that_is_asked_for_is_read(call, tmp_path: Path) -> None:
    many = [
        segment("A", call.id, [0]),
        segment("B", call.id, [1]),
        segment("b", call.id, 1),
        segment("AB", call.id, [0, 1]),
    ]
    cuts = [
        lhotse.MultiCut("multi", 0, 4, [0, 1], recording=call, supervisions=many),
        lhotse.MonoCut("mono", 0, 4, 1, recording=call, supervisions=[segment("B2", call.id, 0)]),
    ]
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    options = Options(audio_to=tmp_path / "out")
    whole = read_lhotse(tmp_path / "cuts.jsonl", options)
    assert {u.id: u.channel for u in whole} == {"A": 0, "B": 1, "b": 1, "AB": None, "B2": 1}
    assert {u.id: round(pitch_hz(u)) for u in whole if u.id != "AB"} == {"A": 300, "B": 1500, "b": 1500, "B2": 1500}
    assert sorted(map(tuple, options.report.notes.values())) == [("B2: 0, cut: 1",), ("call.wav",)]
    assert not (tmp_path / "out").exists(), "nothing is cut out"


def test_channels_in_files_of_their_own(call, tmp_path: Path) -> None:
    for name, hz in (("a", 300), ("b", 1500)):
        soundfile.write(tmp_path / f"{name}.flac", 0.3 * np.sin(2 * np.pi * hz * np.arange(32_000) / 8000), 8000)
    row = call.to_dict()
    row["sources"] = [
        {"type": "file", "channels": [n], "source": str(tmp_path / f"{name}.flac")} for n, name in enumerate("ab")
    ]
    lhotse.RecordingSet.from_recordings([lhotse.Recording.from_dict(row)]).to_file(tmp_path / "recordings.jsonl")
    sides = [segment("A", call.id, 0), segment("B", call.id, [1])]
    lhotse.SupervisionSet.from_segments(sides).to_file(tmp_path / "supervisions.jsonl")
    whole = read_lhotse(tmp_path / "supervisions.jsonl")
    assert [round(pitch_hz(u)) for u in whole] == [300, 1500]
    assert [u.channel for u in whole] == [None, None]
    lhotse.SupervisionSet.from_segments([segment("AB", call.id, [0, 1])]).to_file(tmp_path / "supervisions.jsonl")
    with pytest.raises(UserError, match="must be read in one channel or in all of one file"):
        read_lhotse(tmp_path / "supervisions.jsonl")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_channels_in_shar(call, tmp_path: Path) -> None:
    sides = [segment("A", call.id, 0), segment("B", call.id, [1])]
    cut = lhotse.MultiCut("c", 0, 4, [0, 1], recording=call, supervisions=sides)
    (tmp_path / "shar").mkdir()
    lhotse.CutSet.from_cuts([cut]).to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=1)
    whole = read_lhotse(tmp_path / "shar", Options(audio_to=tmp_path / "out"))
    assert [round(pitch_hz(u)) for u in whole] == [300, 1500]
    assert len(list((tmp_path / "out").iterdir())) == 1, (
        "a recording is written once, not once for each of its utterances"
    )
    gc.collect()


@pytest.mark.parametrize(
    ("channel", "says"), [(2, "must have channel 2, but has 0, 1"), ([0, 5], "must have channel 5, but has 0, 1")]
)
def test_channels_that_are_not_there(call, tmp_path: Path, channel: int | list[int], says: str) -> None:
    lhotse.RecordingSet.from_recordings([call]).to_file(tmp_path / "recordings.jsonl")
    lhotse.SupervisionSet.from_segments([segment("A", call.id, channel)]).to_file(tmp_path / "supervisions.jsonl")
    with pytest.raises(UserError, match=says):
        read_lhotse(tmp_path / "supervisions.jsonl")


def test_what_has_no_text_is_counted(sets, tmp_path: Path) -> None:
    recordings, supervisions = sets
    cuts = lhotse.CutSet.from_manifests(recordings, supervisions.filter(lambda s: s.recording_id == "r1"))
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    options = Options()
    assert len(read_lhotse(tmp_path / "cuts.jsonl.gz", options)) == 2
    assert [(kind, len(names)) for kind, names in options.report.left_out.items()] == [
        ("cuts without a supervision", 1)
    ]
    first = next(iter(supervisions))
    textless = [lhotse.utils.fastcopy(first, id="quiet", text=None), first]
    (tmp_path / "t").mkdir()
    recordings.to_file(tmp_path / "t" / "recordings.jsonl")
    lhotse.SupervisionSet.from_segments(textless).to_file(tmp_path / "t" / "supervisions.jsonl")
    lhotse.CutSet.from_manifests(recordings.subset(first=1), lhotse.SupervisionSet.from_segments(textless)).to_file(
        tmp_path / "textless.jsonl"
    )
    for path in (tmp_path / "t", tmp_path / "textless.jsonl"):
        options = Options()
        assert [u.id for u in read_lhotse(path, options)] == [first.id]
        assert options.report.left_out["supervisions without a text"] == ["quiet"]
    (tmp_path / "m").mkdir()
    recordings.to_file(tmp_path / "m" / "recordings.jsonl")
    supervisions.filter(lambda s: s.recording_id == "r1").to_file(tmp_path / "m" / "supervisions.jsonl")
    (tmp_path / "m" / "._recordings.jsonl").write_bytes(b"\0\5")
    options = Options()
    assert len(read_lhotse(tmp_path / "m", options)) == 2
    assert options.report.left_out == {
        "hidden files or folders": ["._recordings.jsonl"],
        "recordings without a supervision": ["r2"],
    }
