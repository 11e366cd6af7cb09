"""lhotse's manifests, written by lhotse itself."""

import gc
import gzip
import json
from pathlib import Path

import pytest

from hkd.audio import read_audio
from hkd.corpora import read_corpus
from hkd.corpora.lhotse import read_lhotse, read_recipe
from hkd.corpora.place import Place
from hkd.errors import UserError
from hkd.testing.files import sound, tar_of, write_files

lhotse = pytest.importorskip("lhotse")


@pytest.fixture
def sets(tmp_path: Path):
    """(recordings, supervisions): two recordings of one second, the first with two supervisions; the second has two channels."""
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
    whole = read_corpus(str(tmp_path / "m"), audio_to=tmp_path / "out")
    assert facts(whole) == WANTED
    assert {u.split for u in whole} == {"train"}
    assert dict(whole.by_id("u1").extra) == {"snr": 3.5, "recording": "r1", "language": "English", "split": "train"}
    assert facts(read_lhotse(tmp_path / "m" / "c_supervisions_train.jsonl.gz", audio_to=tmp_path / "out")) == WANTED
    second = read_audio(whole.by_id("u3"))
    assert abs(second).max() == pytest.approx(0.2, rel=0.02), "channel 1 is twice as loud as channel 0"
    (tmp_path / "m" / "c_recordings_train.jsonl.gz").unlink()
    with pytest.raises(UserError, match="recordings must lie beside it"):
        read_lhotse(tmp_path / "m" / "c_supervisions_train.jsonl.gz", audio_to=tmp_path)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_cuts(sets, tmp_path: Path, ending: str) -> None:
    cuts = lhotse.CutSet.from_manifests(*sets)
    for name, found in (("cuts_dev", cuts), ("cuts_dev-trimmed", cuts.trim_to_supervisions(keep_overlapping=False))):
        found.to_file(tmp_path / f"{name}{ending}")
        whole = read_corpus(str(tmp_path / f"{name}{ending}"), audio_to=tmp_path / "out")
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
    whole = read_corpus(str(tmp_path / "shar"), audio_to=tmp_path / "out")
    assert [(u.id, u.text) for u in whole] == [("u1", "TEXT u1"), ("u2", "TEXT u2")]
    assert [len(read_audio(u)) for u in whole] == [6400, 8000]
    assert all(Path(u.audio_filepath or "").parent == tmp_path / "out" for u in whole)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    read_corpus(str(tmp_path / "shar"), audio_to=tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    next((tmp_path / "shar").glob("recording.*.tar")).write_bytes(tar_of({"x": b"y"}, packed=""))
    with pytest.raises(UserError, match="lhotse cannot read it"):
        read_corpus(str(tmp_path / "shar"), audio_to=tmp_path / "out")
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
        "textless": (first.map_supervisions(_without_text), "must have a text"),
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
            read_lhotse(target, audio_to=tmp_path / "out")


def _without_text(supervision):
    return lhotse.utils.fastcopy(supervision, text=None)


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
            read_lhotse(path, audio_to=tmp_path)


def test_a_recipe_of_lhotses(tmp_path: Path) -> None:
    names = ["_".join(f"{n:08b}") for n in range(60)]
    root = write_files(tmp_path / "waves", {f"{name}.wav": sound(0.1) for name in names})
    whole = read_corpus("yesno", kind="lhotse", place=Place(root=root), audio_to=tmp_path / "out")
    assert {name: len(whole.split(name)) for name in ("train", "test")} == {"train": 30, "test": 30}
    assert whole.by_id(names[1]).text.endswith("NO YES")
    with pytest.raises(UserError, match=r"lhotse's recipe yesno cannot read .*AssertionError"):
        read_recipe("yesno", tmp_path, audio_to=tmp_path)
    with pytest.raises(UserError, match=r"is neither\. Near: .*yesno"):
        read_recipe("yesnoo", tmp_path, audio_to=tmp_path)
