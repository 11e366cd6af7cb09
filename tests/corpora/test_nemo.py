"""NeMo manifests."""

import json
from pathlib import Path

import pytest

from hkd.corpora import read_corpus
from hkd.corpora.collect import Options
from hkd.errors import UserError
from hkd.manifest import Manifest
from kit.files import sound, tar_of, write_files


def read_nemo(path: Path, options: Options | None = None) -> Manifest:
    return read_corpus(str(path), kind="nemo", options=options)


def jsonl(*rows: dict[str, object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_fields_and_ids(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"wav/a/1.wav": sound(), "wav/b/1.wav": sound(2.0)})
    rows = (
        {"audio_filepath": str(root / "wav/a/1.wav"), "duration": 0.2, "text": "one  two", "speaker": 7, "lang": "en"},
        {"audio_filepath": "wav/b/1.wav", "text": "three", "offset": 0.5, "duration": 1},
        {"audio_filepath": "wav/b/1.wav", "text": "four", "id": "own", "offset": 1.5},
    )
    (root / "m.json").write_bytes(b"\xef\xbb\xbf" + jsonl(*rows).replace(b"\n", b"\r\n\r\n"))
    found = read_nemo(root / "m.json")
    assert [(u.id, u.text, u.offset, u.duration, u.speaker) for u in found] == [
        ("a/1", "one two", 0.0, 0.2, "7"), ("b/1-0000500", "three", 0.5, 1.0, None), ("own", "four", 1.5, 0.5, None),
    ]  # fmt: skip
    assert dict(found[0].extra) == {"lang": "en"}


def test_a_folder_of_splits(tmp_path: Path) -> None:
    files = {f"{name}.wav": sound() for name in "abc"}
    for name, manifest in zip("abc", ("train_manifest.json", "valid.json", "my-test.jsonl"), strict=True):
        files[manifest] = jsonl({"audio_filepath": f"{name}.wav", "text": name})
    assert {u.id: u.split for u in read_nemo(write_files(tmp_path, files))} == {"a": "train", "b": "dev", "c": "test"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"audio_filepath": "a.wav", "text": "x", "duration": "long"}, "m.json:2: field 'duration' must be a number"),
        (
            {"audio_filepath": "a.wav", "text": "x", "offset": 10**400},
            "m.json:2: field 'offset' must be finite, but has 401 digits",
        ),
        ({"audio_filepath": "a.wav", "text": "x", "offset": 9}, "must lie within its audio"),
        ({"audio_filepath": "b.wav", "text": "x"}, "b.wav: No such file"),
        ({"audio_filepath": "g.wav", "text": "again"}, "m.json:2: id must be unique, but 'g' stands at .*m.json:1 too"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: dict[str, object], says: str) -> None:
    good = {"audio_filepath": "g.wav", "text": "good"}
    write_files(tmp_path, {"a.wav": sound(), "g.wav": sound(), "m.json": jsonl(good, row)})
    with pytest.raises(UserError, match=says):
        read_nemo(tmp_path / "m.json")


@pytest.mark.parametrize(
    ("fields", "channel"),
    [
        ({"channel": 1}, 1),
        ({"channel_selector": 0}, 0),
        ({"channel_selector": [1]}, 1),
        ({"channel_selector": "average"}, None),
        ({}, None),
    ],
)
def test_channels(tmp_path: Path, fields: dict[str, object], channel: int | None) -> None:
    row = {"audio_filepath": "call.wav", "text": "x", **fields}
    (only,) = read_nemo(write_files(tmp_path, {"call.wav": sound(channels=2), "m.json": jsonl(row)}) / "m.json")
    assert (only.channel, only.id) == (channel, "call-channel1" if channel else "call")
    assert "channel" not in only.extra


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"channel_selector": [0, 1]}, "m.json:1: channel must be one channel"),
        ({"channel": 2}, "must have channel 2, but has 2 channels"),
        ({"channel": "left"}, "m.json:1: channel must be A, B"),
    ],
)
def test_channels_that_cannot_be(tmp_path: Path, fields: dict[str, object], says: str) -> None:
    row = {"audio_filepath": "call.wav", "text": "x", **fields}
    with pytest.raises(UserError, match=says):
        read_nemo(write_files(tmp_path, {"call.wav": sound(channels=2), "m.json": jsonl(row)}) / "m.json")


def test_tarred_data_in_all_its_forms(tmp_path: Path) -> None:
    row = {"audio_filepath": "speaker-1.wav", "text": "x", "duration": 0.2}
    write_files(tmp_path / "a", {"m.json": jsonl({**row, "shard_id": 0})})
    write_files(tmp_path / "b", {"m.json": jsonl(row), "audio_0.tar": tar_of({"speaker-1.wav": sound()}, packed="")})
    for folder in "ab":
        with pytest.raises(
            UserError, match=r"m\.json:1: tarred NeMo data cannot be read\. Give the manifest of the sound files"
        ):
            read_nemo(tmp_path / folder / "m.json")
    for name in ("sharded/manifest__OP_0..3_CL_.json", "tar/audio_{0..7}.tar"):
        with pytest.raises(UserError, match="tarred NeMo data cannot be read"):
            read_corpus(str(tmp_path / name))
    write_files(tmp_path / "a", {"speaker-1.wav": sound()})
    assert len(read_nemo(tmp_path / "a" / "m.json")) == 1, "the sound files are there after all"


def test_hidden_manifests_and_another_text(tmp_path: Path) -> None:
    row = {"audio_filepath": "a.wav", "text": "x", "text_pc": "X."}
    write_files(
        tmp_path,
        {"a.wav": sound(), "m.json": jsonl(row), "._m.json": b"\0\5\26", ".ipynb_checkpoints/m.json": jsonl(row)},
    )
    options = Options(columns={"text": "text_pc"})
    (only,) = read_nemo(tmp_path, options)
    assert only.text == "X."
    assert sorted(*options.report.left_out.values()) == ["._m.json", ".ipynb_checkpoints/"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("document", [[{"audio_filepath": "a.wav", "text": "hi"}], {"u": {"wav": "a.wav"}}])
def test_one_document_of_json_is_refused(tmp_path: Path, document: object, indent: int | None) -> None:
    (tmp_path / "m.json").write_text(json.dumps(document, indent=indent))
    with pytest.raises(UserError, match=r"m\.json:1: a line must be one JSON object, but is a list or .* `jq"):
        read_nemo(tmp_path / "m.json")


def test_file_urls_are_paths(tmp_path: Path) -> None:
    write_files(tmp_path, {"a b.wav": sound()})
    (tmp_path / "m.json").write_bytes(jsonl({"audio_filepath": (tmp_path / "a b.wav").as_uri(), "text": "hi"}))
    [only] = read_nemo(tmp_path / "m.json")
    assert (only.id, only.audio_filepath) == ("a b", str(tmp_path / "a b.wav"))
