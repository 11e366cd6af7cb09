"""Exports: read back by us, and by the tools themselves."""

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import soundfile

from hkd import manifest
from hkd.audio import read_audio
from hkd.corpora import FORMATS, export, read_corpus
from hkd.corpora.collect import Options
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from kit.files import sound, write_files


@pytest.fixture
def whole(tmp_path: Path) -> Manifest:
    """Three splits; two utterances are cut from one recording."""
    audio = write_files(
        tmp_path / "audio",
        {"r1.wav": sound(2.0), "r2.flac": sound(0.5, format="FLAC"), "r3.wav": sound(0.7, rate_hz=8000)},
    )
    rows = (
        ("u2", "r1.wav", 0.25, 0.5, "train"),
        ("u1", "r1.wav", 1.1, 0.3, "train"),
        ("v", "r2.flac", 0.0, 0.5, "dev"),
        ("w", "r3.wav", 0.0, 0.7, "test"),
    )
    return Manifest(
        Utterance(
            id=name, text=f"said in {name}", audio_filepath=str(audio / file), offset=offset, duration=duration,
            speaker=f"s{name[0]}",
            extra=MappingProxyType({"split": split, "language": "en"}),
        )
        for name, file, offset, duration, split in rows
    )  # fmt: skip


def by_id(found: Manifest) -> list[Utterance]:
    return sorted((replace(u, extra=MappingProxyType({"split": u.split})) for u in found), key=lambda u: u.id)


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_exported_is_read_back(whole: Manifest, tmp_path: Path, to: str) -> None:
    if to == "lhotse":
        pytest.importorskip("lhotse")
    written = export(whole, to, tmp_path / "one")
    assert all(path.is_file() for path in written)
    back = read_corpus(str(tmp_path / "one"), options=Options(audio_to=tmp_path / "out"))
    for u, v in zip(by_id(back), by_id(whole), strict=True):
        assert (u.id, u.text, u.speaker, u.split, u.audio_filepath) == (
            v.id,
            v.text,
            v.speaker,
            v.split,
            v.audio_filepath,
        )
        assert (u.offset, u.duration) == pytest.approx((v.offset, v.duration), abs=1e-9)
    assert back.digest == whole.digest
    again = export(whole, to, tmp_path / "two")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written], (
        "the same manifest gives the same bytes"
    )


def test_nemo_keeps_every_field(whole: Manifest, tmp_path: Path) -> None:
    manifest.write(tmp_path / "m.jsonl", whole)
    (file, *_) = export(manifest.read(tmp_path / "m.jsonl").split("dev"), "nemo", tmp_path / "nemo")
    assert file.name == "dev.json"
    row = json.loads(file.read_text())
    assert {key: row[key] for key in ("duration", "text", "id", "speaker", "language")} == {
        "duration": 0.5, "text": "said in v", "id": "v", "speaker": "sv", "language": "en",
    }  # fmt: skip
    assert Path(row["audio_filepath"]).is_absolute()


def test_lhotse_reads_its_manifests_and_hears_the_same(whole: Manifest, tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    export(whole, "lhotse", tmp_path)
    for split in ("train", "dev", "test"):
        recordings = lhotse.load_manifest(tmp_path / f"hkd_recordings_{split}.jsonl.gz")
        supervisions = lhotse.load_manifest(tmp_path / f"hkd_supervisions_{split}.jsonl.gz")
        lhotse.validate_recordings_and_supervisions(recordings, supervisions, read_data=True)
        cuts = lhotse.load_manifest(tmp_path / f"hkd_cuts_{split}.jsonl.gz")
        for cut in cuts:
            lhotse.validate(cut)
            u = whole.by_id(cut.id)
            assert (cut.supervisions[0].text, cut.supervisions[0].speaker, cut.supervisions[0].language) == (
                u.text,
                u.speaker,
                "en",
            )
            np.testing.assert_array_equal(cut.load_audio()[0], read_audio(u, sample_rate_hz=cut.sampling_rate))


def test_kaldi_folders_are_those_that_others_read(whole: Manifest, tmp_path: Path) -> None:
    """lhotse's importer of Kaldi folders stands in for Kaldi, which no package index has."""
    kaldi = pytest.importorskip("lhotse.kaldi")
    export(whole, "kaldi", tmp_path / "k")
    assert {path.name for path in (tmp_path / "k" / "dev").iterdir()} == {
        "wav.scp",
        "text",
        "utt2spk",
        "spk2utt",
        "reco2dur",
    }
    for table in (tmp_path / "k").rglob("*"):
        if table.is_file():
            keys = [line.split()[0] for line in table.read_text().splitlines()]
            assert keys == sorted(set(keys), key=str.encode)
    for split, rate_hz in (("train", 16_000), ("dev", 16_000), ("test", 8_000)):
        recordings, supervisions, _ = kaldi.load_kaldi_data_dir(tmp_path / "k" / split, sampling_rate=rate_hz)
        for supervision in supervisions:
            u = whole.by_id(supervision.id)
            assert (supervision.text, supervision.speaker) == (u.text, u.speaker)
            assert (supervision.start, supervision.duration) == pytest.approx((u.offset, u.duration))
            assert recordings[supervision.recording_id].sources[0].source == u.audio_filepath


@pytest.mark.parametrize("to", FORMATS)
def test_channels_go_out_and_come_back(tmp_path: Path, to: str) -> None:
    if to == "lhotse":
        pytest.importorskip("lhotse")
    audio = str(write_files(tmp_path, {"r.wav": sound(1.0, channels=2)}) / "r.wav")
    rows = (("a", 0, 0.0), ("b", 1, 0.25), ("c", None, 0.5))
    if to == "kaldi":  # there every segment has a channel, or the recording has one
        rows = rows[:2]
    whole = Manifest(
        Utterance(id=i, text=i, audio_filepath=audio, channel=c, offset=o, duration=0.5) for i, c, o in rows
    )
    export(whole, to, tmp_path / "out")
    back = read_corpus(str(tmp_path / "out"), options=Options(audio_to=tmp_path / "x"))
    assert {u.id: (u.channel, u.audio_filepath, u.offset) for u in back} == {i: (c, audio, o) for i, c, o in rows}
    assert not (tmp_path / "x").exists()
    if to == "lhotse":
        import lhotse

        cuts = {cut.id: cut for cut in lhotse.load_manifest(tmp_path / "out" / "hkd_cuts.jsonl.gz")}
        for cut in cuts.values():
            lhotse.validate(cut)
        np.testing.assert_array_equal(cuts["b"].load_audio()[0], read_audio(whole.by_id("b")))
        assert cuts["c"].load_audio().shape[0] == 2


@pytest.mark.parametrize(
    ("change", "to", "says"),
    [
        ({"audio_filepath": None}, "nemo", "must have audio to be exported, but 1 have none, 'u2'"),
        ({"id": "a b"}, "kaldi", "id must have no blanks in Kaldi's tables, but is 'a b'"),
        ({"speaker": " x"}, "kaldi", "speaker must have no blanks"),
        ({}, "espnet", "--to must be one of nemo, lhotse, kaldi, but is 'espnet'"),
        (
            {"id": "r1", "audio_filepath": "r2.flac", "duration": 0.5, "offset": 0.0},
            "kaldi",
            "recordings must have names of their own",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    whole: Manifest, tmp_path: Path, change: dict[str, object], to: str, says: str
) -> None:
    first, *rest = whole
    if change.get("audio_filepath"):
        change["audio_filepath"] = str(tmp_path / "audio" / str(change["audio_filepath"]))
        rest.append(replace(first, id="u3"))
    with pytest.raises(UserError, match=says):
        export(Manifest([replace(first, **change), *rest]), to, tmp_path / "out")
    assert soundfile.info(str(tmp_path / "audio" / "r1.wav")).frames == 32_000


def test_kaldi_without_a_speaker_takes_the_utterance(whole: Manifest, tmp_path: Path) -> None:
    export(Manifest([replace(whole[2], speaker=None, extra=MappingProxyType({}))]), "kaldi", tmp_path / "k")
    assert (tmp_path / "k" / "utt2spk").read_text() == "v v\n"
